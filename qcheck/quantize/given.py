"""An artifact that someone else made: where its denoiser is, and what it says of itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from qcheck.core.digest import digest_of
from qcheck.core.errors import UserError
from qcheck.model.family import FAMILIES
from qcheck.runtime import ort_runner
from qcheck.runtime.ort_runner import Feed

ORDER = "as given"  # nobody says when the adapter was merged


@dataclass(frozen=True)
class File:
    """A file that ONNX Runtime loads: it, those that hold its tensors, and the digest of them all."""

    name: str
    path: Path
    parts: tuple[Path, ...]
    digest: str

    def bytes(self) -> int:
        """Of the file and its tensors."""
        return sum(part.stat().st_size for part in self.parts)


@dataclass(frozen=True)
class Given(File):
    """A file whose inputs are known to be the denoiser's: how each is fed, and the type of its latents."""

    feeds: tuple[Feed, ...]
    compute: str


def read(given: Path, threads: int) -> File:
    """The file at ``given``: an ONNX file, or the denoiser of a pipeline folder in optimum's layout.

    Raises:
        UserError: there is none, or ONNX Runtime does not load it.
    """
    path = _locate(given).absolute()
    try:
        ort_runner.session(path, threads)
        parts = _parts(path)
    except Exception as error:  # ONNX Runtime's own exceptions share no base but this
        raise UserError(
            f"artifact {str(path)!r} does not load in ONNX Runtime: {' '.join(str(error).split())[:300]}",
            "Give a file that runs on the CPU provider; what only TensorRT runs cannot be judged here.",
        ) from error
    names = [path.stem, *(parent.name for parent in path.parents)]
    name = next((name for name in names if name not in _COMMON), path.stem)
    return File(name, path, parts, digest_of(*parts))


_DENOISERS = tuple(dict.fromkeys(family.denoiser for family in FAMILIES))
_COMMON = ("model", *_DENOISERS)  # names that say nothing


def _parts(path: Path) -> tuple[Path, ...]:
    """The file, and every file beside it that holds tensors of it."""
    model = onnx.load(path, load_external_data=False)
    places = {
        entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    return (path, *(path.parent / place for place in sorted(places)))


def fitted(
    found: File, asked: Mapping[str, np.ndarray], latent: str, timesteps: Sequence[float], threads: int
) -> Given:
    """``found`` with how it is fed, held to what the probes will ask.

    ``asked`` are the denoiser's inputs by name, at the first of the solver's ``timesteps``; ``latent`` is the input of
    latents.

    Raises:
        UserError: its inputs are not the denoiser's, it takes other sizes, or only whole timesteps where the solver has
            fractions.
    """
    feeds = ort_runner.feeds(ort_runner.session(found.path, threads), found.path, asked)
    for feed in feeds:
        if not feed.fits(asked[feed.role]):
            raise UserError(
                f"{found.path}: input {feed.name!r} is fixed to {_shown(feed.sides)}, the probes ask "
                f"{_shown(asked[feed.role].shape[1:])}",
                "Give --width and --height of the file, or the base and adapter that it was made from.",
            )
    timestep = next(feed for feed in feeds if feed.role == "timestep")
    unit = float(asked["timestep"][0]) / timesteps[0]  # flow-matching denoisers may be fed a share of the solver's time
    odd = [t * unit for t in timesteps if t * unit != int(t * unit)]
    if odd and timestep.dtype.kind == "i":
        raise UserError(
            f"{found.path}: input {timestep.name!r} takes whole timesteps, this pipeline asks {odd[0]:g}",
            "Export it with a float timestep, or check with --steps that divide the training steps.",
        )
    compute = next(feed.dtype.name for feed in feeds if feed.role == latent)
    return Given(**vars(found), feeds=tuple(feeds), compute=compute)


def _shown(sides: Sequence[int | None]) -> str:
    return " x ".join("any" if side is None else str(side) for side in sides)


def _locate(given: Path) -> Path:
    if given.is_file():
        return given
    for inner in (*(Path(name) / "model.onnx" for name in _DENOISERS), Path("model.onnx")):
        if (given / inner).is_file():
            return given / inner
    alone = sorted(given.glob("*.onnx")) if given.is_dir() else []
    if len(alone) == 1:
        return alone[0]
    what = (
        f"holds {len(alone)} ONNX files and no {' or '.join(_DENOISERS)}/model.onnx"
        if given.is_dir()
        else "does not exist"
    )
    raise UserError(
        f"artifact {str(given)!r} {what}",
        "Give the denoiser's .onnx file, or a folder that optimum-cli export or qcheck export wrote.",
    )
