"""The keywords of the Python API: the options of the commands in snake case, typed, by what they describe."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypedDict

from qcheck.spec.limits import Limits
from qcheck.spec.probe import ProbeSet
from qcheck.spec.recipe import Recipe
from qcheck.spec.scheme import Scheme
from qcheck.spec.target import Target

Named = str | Path
Require = Literal["all", "any"]
Files = Named | Sequence[Named] | None
Floats = float | Sequence[float] | None
Schemes = Named | Scheme | Sequence[Named | Scheme] | None
Orders = str | Sequence[str] | None


class Adapting(TypedDict, total=False):
    """Keywords of the adapters and the device.

    ``weight``: how strongly each adapter is applied, 1 by default. ``reference_lora``: what ``qat`` calibrated each
    adapter from; it is the reference of the artifacts. ``with_lora``: adapters of both arms, FILE or "FILE=WEIGHT".
    ``allow_unmatched``: take adapters of which some layers are not in this base. ``target``: the device.
    """

    weight: Floats
    reference_lora: Files
    with_lora: Files
    allow_unmatched: bool
    target: Named | Target


class Quantizing(TypedDict, total=False):
    """Keywords of the artifacts.

    ``scheme``: one or several; by default all that quantize and that TensorRT runs on the target. ``order``: when the
    adapter is merged, one or several. ``max_rank``: the rank of the adapter's inputs in the order bound.
    ``bound_with``: other adapters, "FILE" or "FILE=WEIGHT", that the same file takes. ``recipe``: how ranges of inputs
    are found. ``ranges``: a file of ranges that ``calibrate`` wrote.
    """

    scheme: Schemes
    order: Orders
    max_rank: int | None
    bound_with: Files
    recipe: Named | Recipe | None
    ranges: Named | None


class Sampling(TypedDict, total=False):
    """Keywords of a probe's run, each in place of what the probe set says.

    ``trigger``: words put before every prompt. ``steps`` of the solver, ``guidance`` scale, ``seed`` of the first
    probe, or "random" to draw it and the compared timesteps, ``width`` and ``height`` in pixels.
    """

    trigger: str | None
    steps: int | None
    guidance: float | None
    seed: int | str | None
    width: int | None
    height: int | None


class Running(TypedDict, total=False):
    """Keywords of the machine.

    ``build``: compile with TensorRT-RTX where it is installed. ``device``: "cpu", "cuda" or "cuda:1", by default
    "auto", the first CUDA device where there is one. ``precision``: "float32", or "tf32" for faster products on a GPU.
    ``threads``: processor threads, by default all. ``batch``: probes that run together.
    """

    build: bool
    device: str
    precision: str
    threads: int | None
    batch: int


class Made(Adapting, Quantizing, Sampling, Running, total=False):
    """Keywords of an export or a calibration, which have no verdict.

    ``probes``: the probe set, of which only the sampling counts where nothing is judged.
    """

    probes: Named | ProbeSet | None


class Judging(TypedDict, total=False):
    """Keywords of the verdict.

    ``artifact``: ONNX files that others quantized, judged beside the schemes, or alone. ``limits``: what the verdict
    compares with. ``style_pictures``: a folder of pictures of the adapter's style, on which its benefit is measured.
    ``judge``: networks that look at finished pictures, "clip=FOLDER", "dinov2=FOLDER" or
    "lpips=FILE".
    ``require``: whether "all" cases have to pass, or "any"; "all" where schemes are named.
    """

    artifact: Files
    limits: Named | Limits
    style_pictures: Named | None
    judge: str | Sequence[str] | None
    require: Require | None


class Probing(TypedDict, total=False):
    """Keywords of the probes.

    ``prompts``: prompts instead of the probe set's, a text file, a list, or lists by the name of their group.
    ``max_probes``: no more probes than this are added.
    """

    prompts: Named | Sequence[str] | Mapping[str, Sequence[str]] | None
    max_probes: int | None


class Bundling(TypedDict, total=False):
    """Keywords of a bundle's content.

    ``bundle_probes``: the number of probes, by default as many as the host's verdict takes, at most 16. ``base_arm``:
    the board also runs the quantized base, whose outputs are otherwise the host's. ``twin``: the denoiser in 16 bit
    too, which the board times beside the quantized one. ``pack``: also one file to send, a .tar.zst.
    """

    bundle_probes: int | None
    base_arm: bool
    twin: bool
    pack: bool


class Request(Made, Judging, Probing, total=False):
    """Keywords of a check: all of them."""
