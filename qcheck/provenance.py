"""What a result file says about its own making."""

import datetime
import platform
import subprocess
from importlib import metadata

from qcheck import __version__, files, recipe
from qcheck.job import Job
from qcheck.report.model import Provenance

PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "onnx",
    "onnx-ir",
    "onnxruntime-gpu",
    "onnxruntime",
    "tensorrt",
    "tensorrt-rtx",
    "nvidia-modelopt",
    "bitsandbytes",
    "onnxscript",
    "ml-dtypes",
    "tokenizers",
    "safetensors",
    "numpy",
    "scipy",
    "scikit-image",
    "scikit-learn",
)


def versions() -> dict[str, str]:
    """The installed versions of what a check computes with."""
    installed = {dist.metadata["Name"].lower().replace("_", "-"): dist.version for dist in metadata.distributions()}
    return {name: installed[name] for name in PACKAGES if name in installed}


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
        versions=versions(),
        machine=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, {job.threads} threads",
        recipe=job.recipe.name,
        recipe_digest=files.digest(files.digest_value(job.recipe), *recipe.calibration(job.recipe, job.probes).prompts),
        limits=job.limits.name,
        limits_digest=files.digest_value(job.limits),
        seconds=seconds,
    )
