"""What a result file says about its own making."""

import datetime
import platform
import subprocess

from qcheck import __version__, files, libraries, recipe
from qcheck.job import Job
from qcheck.report.model import Provenance


def _commit() -> str | None:
    """The commit of a checkout that qcheck runs from, marked ``+`` when files differ from it."""
    git = ("git", "-C", str(files.PACKAGE.parent))
    try:
        if not (files.PACKAGE.parent / ".git").exists():
            return None
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def collect(job: Job, seconds: dict[str, float]) -> Provenance:
    """Provenance of a finished job."""
    return Provenance(
        qcheck=__version__,
        commit=_commit(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        arguments=job.arguments(),
        versions=libraries.versions(),
        machine=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, {job.threads} threads",
        recipe=job.recipe.name,
        recipe_digest=files.digest(files.digest_value(job.recipe), *recipe.calibration(job.recipe, job.probes).prompts),
        limits=job.limits.name,
        limits_digest=files.digest_value(job.limits),
        seconds=seconds,
    )
