"""The provenance that a result file records: versions, machine, commit and digests."""

import datetime
import platform
import subprocess

from qcheck import __version__
from qcheck.core import versions
from qcheck.core.digest import digest_of, digest_of_value
from qcheck.core.values import PACKAGE
from qcheck.model.device import Device
from qcheck.result.report import Provenance
from qcheck.spec import recipe
from qcheck.spec.check import CheckSpec


def commit() -> str | None:
    """The commit of a checkout that qcheck runs from, marked ``+`` when files differ from it."""
    git = ("git", "-C", str(PACKAGE.parent))
    try:
        if not (PACKAGE.parent / ".git").exists():
            return None
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def collect(spec: CheckSpec, device: Device, seconds: dict[str, float], reference_error: float | None) -> Provenance:
    """Provenance of a finished request that was computed on ``device``."""
    return Provenance(
        qcheck=__version__,
        commit=commit(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        versions=versions.versions(),
        machine=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, "
        f"{spec.execution.threads} threads",
        device=device.title,
        device_memory=device.peak(),
        reference_error=reference_error,
        recipe=spec.recipe.name,
        recipe_digest=digest_of(digest_of_value(spec.recipe), *recipe.calibration(spec.recipe, spec.probes).prompts),
        limits=spec.limits.name,
        limits_digest=digest_of_value(spec.limits),
        seconds=seconds,
    )
