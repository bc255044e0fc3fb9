"""An artifact of another tool: the ONNX file of its denoiser, its inputs and its digest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qcheck.core.digest import digest_of
from qcheck.core.errors import UserError
from qcheck.model.family import FAMILIES
from qcheck.quantize import onnx_file
from qcheck.runtime import ort_runner
from qcheck.runtime.ort_runner import Feed
from qcheck.runtime.runner import call

ORDER = "as given"  # the file does not tell when the adapter was merged


@dataclass(frozen=True)
class File:
    """A file that ONNX Runtime loads. ``parts`` are the file and its external tensors, ``digest`` is of all of them."""

    name: str
    path: Path
    parts: tuple[Path, ...]
    digest: str

    def bytes(self) -> int:
        """The size of the file and its external tensors."""
        return sum(part.stat().st_size for part in self.parts)


@dataclass(frozen=True)
class Given(File):
    """A file whose inputs are the denoiser's: how each input is fed, and the type of the latents."""

    feeds: tuple[Feed, ...]
    compute: str


def read(source: Path, threads: int) -> File:
    """The file at ``source``: an ONNX file, or the denoiser of a pipeline folder in optimum's layout.

    Raises:
        UserError: there is none, or ONNX Runtime does not load it.
    """
    path = locate(source).absolute()
    try:
        parts = (path, *onnx_file.read(path)[1])
        ort_runner.session(path, threads)
    except Exception as error:  # ONNX Runtime's own exceptions share no base but this
        raise UserError(
            f"artifact {str(path)!r} does not load in ONNX Runtime: {' '.join(str(error).split())[:300]}",
            "Give a file that runs on the CPU provider; what only TensorRT runs cannot be judged here.",
        ) from error
    names = [path.stem, *(parent.name for parent in path.parents)]
    name = next((name for name in names if name not in _GENERIC_NAMES), path.stem)
    return File(name, path, parts, digest_of(*parts))


_DENOISERS = tuple(dict.fromkeys(family.denoiser for family in FAMILIES))
_GENERIC_NAMES = ("model", *_DENOISERS)  # names that do not tell artifacts apart


def fitted(
    file: File, inputs: Mapping[str, np.ndarray], latent: str, timesteps: Sequence[float], threads: int
) -> Given:
    """``file`` with the feed of each of its inputs, checked against the inputs that the probes need.

    ``inputs`` are the denoiser's inputs by name, at the first of the solver's ``timesteps``; ``latent`` names the input
    of latents.

    Raises:
        UserError: its inputs are not the denoiser's, it takes other sizes, or only whole timesteps where the solver has
            fractions.
    """
    feeds = ort_runner.feeds(ort_runner.session(file.path, threads), file.path, inputs)
    for feed in feeds:
        if not feed.fits(inputs[feed.role]):
            raise UserError(
                f"{file.path}: input {feed.name!r} is fixed to {_shape_text(feed.sides)}, the probes ask "
                f"{_shape_text(inputs[feed.role].shape[1:])}",
                "Give --width and --height of the file, or the base and adapter that it was made from.",
            )
    timestep = next(feed for feed in feeds if feed.role == "timestep")
    unit = float(inputs["timestep"][0]) / timesteps[0]  # flow-matching denoisers take a fraction of the solver's time
    fractions = [t * unit for t in timesteps if t * unit != int(t * unit)]
    if fractions and timestep.dtype.kind == "i":
        raise UserError(
            f"{file.path}: input {timestep.name!r} takes whole timesteps, this pipeline asks {fractions[0]:g}",
            "Export it with a float timestep, or check with --steps that divide the training steps.",
        )
    compute = next(feed.dtype.name for feed in feeds if feed.role == latent)
    return Given(**vars(file), feeds=tuple(feeds), compute=compute)


def require_runs(file: Given, inputs: Mapping[str, np.ndarray], latent: str, fixed: frozenset[str]) -> None:
    """Run ``file`` once, on the first row of ``inputs``; those in ``fixed`` have no rows.

    Raises:
        UserError: it fails, or its output has another shape than the input ``latent``.
    """
    first = {name: value if name in fixed else value[:1] for name, value in inputs.items()}
    with ort_runner.OnnxRunner(file.path, 1, fixed) as runner:
        try:
            call(runner, first, latent)
        except Exception as error:  # as in ``read``
            raise UserError(
                f"artifact {str(file.path)!r} does not run: {' '.join(str(error).split())[:300]}",
                "Give the denoiser's file of this base, whose one output is the denoiser's.",
            ) from error


def _shape_text(sides: Sequence[int | None]) -> str:
    return " x ".join("any" if side is None else str(side) for side in sides)


def locate(source: Path) -> Path:
    """The ONNX file that ``source`` is, or that a folder in optimum's layout has for its denoiser.

    Raises:
        UserError: there is none, or a folder has several.
    """
    if source.is_file():
        return source
    for inner in (*(Path(name) / "model.onnx" for name in _DENOISERS), Path("model.onnx")):
        if (source / inner).is_file():
            return source / inner
    onnx_files = sorted(source.glob("*.onnx")) if source.is_dir() else []
    if len(onnx_files) == 1:
        return onnx_files[0]
    problem = (
        f"holds {len(onnx_files)} ONNX files and no {' or '.join(_DENOISERS)}/model.onnx"
        if source.is_dir()
        else "does not exist"
    )
    raise UserError(
        f"artifact {str(source)!r} {problem}",
        "Give the denoiser's .onnx file, or a folder that optimum-cli export or qcheck export wrote.",
    )
