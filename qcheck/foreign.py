"""An artifact that someone else made: where its denoiser is, and what it says of itself."""

from dataclasses import dataclass
from pathlib import Path

from qcheck import files, gate
from qcheck.backend import onnxruntime, tensorrt
from qcheck.backend.onnxruntime import Feed
from qcheck.backend.tensorrt import Shapes
from qcheck.errors import UserError
from qcheck.model.components import DENOISER
from qcheck.report.model import Build
from qcheck.work import Work

ORDER = "as given"  # nobody says when the adapter was merged


@dataclass(frozen=True)
class Foreign:
    """The file, the digest of its content, its inputs, and the type of its latents."""

    name: str
    path: Path
    digest: str
    feeds: tuple[Feed, ...]
    compute: str


def read(given: Path, threads: int) -> Foreign:
    """The denoiser at ``given``: an ONNX file, or a pipeline folder in optimum's layout.

    Raises:
        UserError: there is none, ONNX Runtime does not load it, or its inputs are not a denoiser's.
    """
    path = _locate(given)
    try:
        running = onnxruntime.session(path, threads)
    except Exception as error:  # ONNX Runtime's own exceptions share no base but this
        raise UserError(
            f"artifact {str(path)!r} does not load in ONNX Runtime: {' '.join(str(error).split())[:300]}",
            "Give a file that runs on the CPU provider; what only TensorRT runs cannot be judged here.",
        ) from error
    found = tuple(onnxruntime.feeds(running, path))
    compute = next(feed.dtype.name for feed in found if feed.role == "sample")
    content = sorted(p for p in path.parent.iterdir() if p.is_file() and p.suffix != ".json")
    name = given.stem if given.is_file() else given.name
    return Foreign(name, path, files.digest(*(content if len(content) < _PARTS else [path])), found, compute)


_PARTS = 64  # tensors of a file may lie beside it, in as many files as its exporter liked


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
    target = work.job.target
    builder = tensorrt.choose(target.capability.value, target.proxy.value if target.proxy else None)
    if not work.job.build:
        builder = "switched off by --no-build"
    if isinstance(builder, str):
        return gate.not_run(target, builder)
    with work.timed(f"{found.name}: build for SM {builder.capability}", 1) as advance, gate.scratch() as place:
        made = gate.run(builder, target, found.path, [], found.compute, _shapes(work, found), place)
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
