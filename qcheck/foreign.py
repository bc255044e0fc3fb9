"""An artifact that someone else made: where its denoiser is, and what it says of itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from qcheck import files, gate
from qcheck.backend import onnxruntime
from qcheck.backend.onnxruntime import Feed
from qcheck.backend.tensorrt import Shapes
from qcheck.errors import UserError
from qcheck.model.components import DENOISER
from qcheck.report.model import Build
from qcheck.work import Work

ORDER = "as given"  # nobody says when the adapter was merged


@dataclass(frozen=True)
class Foreign:
    """The file and those that hold its tensors, the digest of them all, its inputs, and the type of its latents."""

    name: str
    path: Path
    parts: tuple[Path, ...]
    digest: str
    feeds: tuple[Feed, ...]
    compute: str

    def bytes(self) -> int:
        """Of the file and its tensors."""
        return sum(part.stat().st_size for part in self.parts)


def read(given: Path, threads: int) -> Foreign:
    """The denoiser at ``given``: an ONNX file, or a pipeline folder in optimum's layout.

    Raises:
        UserError: there is none, ONNX Runtime does not load it, or its inputs are not a denoiser's.
    """
    path = _locate(given).absolute()
    try:
        running = onnxruntime.session(path, threads)
        parts = _parts(path)
    except Exception as error:  # ONNX Runtime's own exceptions share no base but this
        raise UserError(
            f"artifact {str(path)!r} does not load in ONNX Runtime: {' '.join(str(error).split())[:300]}",
            "Give a file that runs on the CPU provider; what only TensorRT runs cannot be judged here.",
        ) from error
    found = tuple(onnxruntime.feeds(running, path))
    compute = next(feed.dtype.name for feed in found if feed.role == "sample")
    names = [path.stem, *(parent.name for parent in path.parents)]
    name = next((name for name in names if name not in _COMMON), path.stem)
    return Foreign(name, path, parts, files.digest(*parts), found, compute)


_COMMON = ("model", DENOISER)  # names that say nothing


def _parts(path: Path) -> tuple[Path, ...]:
    """The file, and every file beside it that holds tensors of it."""
    model = onnx.load(path, load_external_data=False)
    places = {
        entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    return (path, *(path.parent / place for place in sorted(places)))


def require_fitting(work: Work, found: Foreign) -> None:
    """Hold the file's fixed axes and types to what the probes will ask.

    Raises:
        UserError: it takes other sizes, or only whole timesteps where the solver has fractions.
    """
    first = work.setup.inputs("base", work.probes[:1])
    asked = {"sample": first.latents.shape[1:], "encoder_hidden_states": first.hidden.shape[2:]}
    for feed in found.feeds:
        wanted = asked.get(feed.role, ())
        if any(fixed not in {None, side} for fixed, side in zip(feed.sides, wanted, strict=False)):
            raise UserError(
                f"{found.path}: input {feed.name!r} is fixed to {_shown(feed.sides)}, the probes ask {_shown(wanted)}",
                "Give --width and --height of the file, or the base and adapter that it was made from.",
            )
    timestep = next(feed for feed in found.feeds if feed.role == "timestep")
    odd = [t for t in work.setup.all_timesteps() if t != int(t)]
    if odd and timestep.dtype.kind == "i":
        raise UserError(
            f"{found.path}: input {timestep.name!r} takes whole timesteps, this solver asks {odd[0]:g}",
            "Export it with a float timestep, or check with --steps that divide the training steps.",
        )


def _shown(sides: Sequence[int | None]) -> str:
    return " x ".join("any" if side is None else str(side) for side in sides)


def _locate(given: Path) -> Path:
    if given.is_file():
        return given
    for inner in (Path(DENOISER) / "model.onnx", Path("model.onnx")):
        if (given / inner).is_file():
            return given / inner
    alone = sorted(given.glob("*.onnx")) if given.is_dir() else []
    if len(alone) == 1:
        return alone[0]
    what = f"holds {len(alone)} ONNX files and no {DENOISER}/model.onnx" if given.is_dir() else "does not exist"
    raise UserError(
        f"artifact {str(given)!r} {what}",
        "Give the denoiser's .onnx file, or a folder that optimum-cli export or qcheck export wrote.",
    )


def build(work: Work, found: Foreign) -> Build:
    """Compile it for the target, where something here can; what it should compute in is not known."""
    target, builder = work.job.target, gate.choose(work.job)
    if isinstance(builder, str):
        return gate.not_run(target, builder)
    with work.timed(f"{found.name}: build for SM {builder.capability}", 1) as advance, gate.scratch() as place:
        made = gate.run(builder, target, found.path, [], None, _shapes(work, found), place)
        advance(1)
    return made


def _shapes(work: Work, found: Foreign) -> Shapes:
    """As ``gate.shapes_of``, by the file's own names; a fixed batch stays as it is."""
    own, shapes = gate.shapes_of(work), dict[str, tuple[list[int], list[int], list[int]]]()
    for feed in found.feeds:
        if feed.role in own:
            low, best, high = ([feed.rows or sizes[0], *sizes[1:]] for sizes in own[feed.role])
            shapes[feed.name] = (low, best, high)
        elif feed.rank and not feed.rows:
            shapes[feed.name] = ([1], [1], [1])
    return shapes
