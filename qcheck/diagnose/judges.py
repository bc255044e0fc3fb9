"""What networks of the user's own say of pictures."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from qcheck.core.digest import digest_of, digest_of_folder
from qcheck.diagnose import embeddings, lpips
from qcheck.diagnose.lpips import not_measured
from qcheck.measure import embedding, style
from qcheck.measure.sample import Sample
from qcheck.result.measurement import Measurement
from qcheck.result.pictures import Role
from qcheck.spec.arm import Side
from qcheck.spec.judge import Judge, Kind

Arms = Mapping[Role, Callable[[], Iterable[np.ndarray]]]  # each reads the pictures [H, W, 3] in [0, 1] of an arm


def look(judge: Judge, arms: Arms) -> list[Sample | Measurement]:
    """What a judge says of the pictures of f0, f1, q1 and, where there are any, q0.

    Raises:
        UserError: its files do not hold that network, or lack a part of it.
    """
    return _LOOKS[judge.kind](judge, arms)


def absent(judges: Sequence[Judge], sides: Sequence[Side]) -> list[Sample | Measurement]:
    """LPIPS of the quantized arms as not measured, where no judge measures it."""
    if any(one.kind == "lpips" for one in judges):
        return []
    reason = "needs its weights: --judge lpips=FILE (docs/pictures.md)"
    return [not_measured("lpips", side, reason) for side in sides]


def digest(judge: Judge) -> str:
    """The digest of the network's files."""
    path = Path(judge.path)
    return digest_of_folder(path) if path.is_dir() else digest_of(path)


def _embedded(judge: Judge, arms: Arms) -> list[Sample | Measurement]:
    """What is left of the adapter's effect in the embeddings."""
    name = f"{judge.kind}_survival"
    f0, f1, q1 = (embeddings.of(judge, read()) for read in (arms["f0"], arms["f1"], arms["q1"]))
    if len(f0) < style.LEAST:
        return [not_measured(name, "adapted", f"needs at least {style.LEAST} pictures")]
    return [embedding.survival(name, f0, f1, q1)]


def _apart(judge: Judge, arms: Arms) -> list[Sample | Measurement]:
    """How far pictures are from their partners."""
    return lpips.samples(judge, {role: read() for role, read in arms.items()})


_LOOKS: Mapping[Kind, Callable[[Judge, Arms], list[Sample | Measurement]]] = {
    "clip": _embedded,
    "dinov2": _embedded,
    "lpips": _apart,
}
