"""Judge folders of pictures that something else made: a black box, of which no layer is blamed.

Features of the pictures -> measurements with the intervals of a check -> verdict -> report.
"""

import datetime
import math
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from qcheck import __version__
from qcheck.core import versions
from qcheck.core.digest import digest_of
from qcheck.core.errors import listed
from qcheck.core.progress import Advance, Progress, Stopwatch
from qcheck.diagnose import features, flip_map, judges, ungated
from qcheck.diagnose.flip_map import ErrorMap
from qcheck.diagnose.sheet import AMPLIFY, ROWS, Sheet
from qcheck.measure import style
from qcheck.measure.sample import Sample
from qcheck.measure.style import Features
from qcheck.report import pictures as report_files
from qcheck.result.measurement import Measurement, NotMeasured
from qcheck.result.pictures import Folder, Match, Origin, Pair, PicturesReport, Role
from qcheck.result.verdict import Verdict
from qcheck.spec.arm import SIDES, Side
from qcheck.spec.judge import Judge
from qcheck.spec.picture_limits import PictureLimits
from qcheck.tasks import basis, picture_pairs, picture_verdict, provenance
from qcheck.tasks.picture_pairs import Paired

_FULL: Mapping[Side, Role] = {"base": "f0", "adapted": "f1"}
_QUANTIZED: Mapping[Side, Role] = {"base": "q0", "adapted": "q1"}
_BLACK_BOX = NotMeasured(
    name="layers, timesteps, order", reason="black box: pictures tell what is lost, no layer is blamed"
)
_MANY = 10_000


@dataclass(frozen=True)
class Request:
    """Folders by arm, of which q0 may be missing; how pictures are matched; the limits; networks that look too."""

    folders: Mapping[Role, Path]
    match: Match
    limits: PictureLimits
    judges: Sequence[Judge] = ()


def judge(request: Request, folder: Path, progress: Progress) -> PicturesReport:
    """Judge the pictures and write everything below ``folder``.

    Raises:
        UserError: the extra is missing, or the folders do not belong together.
    """
    start, watch = time.monotonic(), Stopwatch(progress)
    features.require()
    paired = picture_pairs.pair(request.folders, request.match)
    size = picture_pairs.size(paired, request.folders)
    measured = _measured(paired, request.judges, watch)
    decided = picture_verdict.decide(request.limits, measured.others, measured.samples, len(measured.survivals))
    report = PicturesReport(
        folders=[_folder(role, path, paired) for role, path in request.folders.items()],
        match=request.match,
        width=size[0],
        height=size[1],
        pairs=_pairs(paired, measured),
        verdict=decided.outcome,
        deciding=decided.deciding,
        reasons=list(decided.reasons),
        next=_next(decided, request.limits, len(paired.keys)),
        warnings=[*_unmatched(paired), *decided.warnings],
        measurements=list(decided.measurements),
        samples=[basis.as_values(sample) for sample in measured.samples],
        amplify=AMPLIFY,
        shown_pairs=[*measured.shown],
        shown=[],
        limits=request.limits,
        not_measured=[_BLACK_BOX, *_absent(measured)],
        origin=_origin(time.monotonic() - start),
    )
    return report_files.write(report, _sheet(report, paired, measured.flips), folder)


@dataclass(frozen=True)
class Measured:
    """Samples over n pairs, measurements that are no samples, and each pair's own style survival [n].

    ``shown`` are the rows of the pairs that keep least, and ``flips`` their error maps by arm.
    """

    samples: list[Sample]
    others: list[Measurement]
    survivals: np.ndarray
    shown: Sequence[int]
    flips: Mapping[Side, Sequence[ErrorMap]]


def _measured(paired: Paired, given: Sequence[Judge], watch: Stopwatch) -> Measured:
    with watch.stage("features of pictures", len(paired.files)) as advance:
        looks: dict[Role, Features] = {}
        for role in paired.files:
            looks[role] = features.of(paired.read(role))
            advance(1)
    survivals = style.each(looks["f0"], looks["f1"], looks["q1"])
    shown = np.argsort(np.nan_to_num(survivals, nan=-np.inf), kind="stable")[:ROWS].tolist()
    sides = [side for side in SIDES if _QUANTIZED[side] in paired.files]
    kept: dict[Side, dict[int, ErrorMap]] = {side: {} for side in sides}
    with watch.stage("pixels of pictures", len(sides) * len(paired.keys)) as advance:
        pixels = [one for side in sides for one in _pixels(side, paired, shown, kept[side], advance)]
    measurements = list[Sample | Measurement](style.samples(looks["f0"], looks["f1"], _quantized(looks)))
    with watch.stage("judges of pictures", len(given)) as advance:
        for one in given:
            measurements += judges.look(one, {role: partial(paired.read, role) for role in paired.files})
            advance(1)
    measurements += [*pixels, *judges.absent(given, sides)]
    return Measured(
        samples=[one for one in measurements if isinstance(one, Sample)],
        others=[_same(paired), *(one for one in measurements if isinstance(one, Measurement))],
        survivals=survivals,
        shown=shown,
        flips={side: [maps[row] for row in shown] for side, maps in kept.items() if maps},
    )


def _quantized(looks: Mapping[Role, Features]) -> dict[Side, Features]:
    return {side: looks[role] for side, role in _QUANTIZED.items() if role in looks}


def _pixels(
    side: Side, paired: Paired, shown: Sequence[int], kept: dict[int, ErrorMap], advance: Advance
) -> list[Sample | Measurement]:
    """What pixels say of a quantized arm, pair by pair: no more than a pair is in memory.

    The error maps of the rows that are ``shown`` are ``kept``.
    """
    rows = []
    for row, (q, f) in enumerate(zip(paired.read(_QUANTIZED[side]), paired.read(_FULL[side]), strict=True)):
        maps = flip_map.maps(q[None], f[None])
        rows.append(ungated.pixels(side, q[None], f[None], maps))
        if maps and row in shown:
            kept[row] = maps[0]
        advance(1)
    return [_joined(column) for column in zip(*rows, strict=True)]


def _joined(column: Sequence[Sample | Measurement]) -> Sample | Measurement:
    """One sample of many pairs from a sample of each; the reason where there is none."""
    first, samples = column[0], [one for one in column if isinstance(one, Sample)]
    return replace(samples[0], values=np.concatenate([one.values for one in samples])) if samples else first


def _same(paired: Paired) -> Measurement:
    """The share of pairs whose quantized picture is the full-precision one to the last bit."""
    pairs = zip(paired.pictures["q1"], paired.pictures["f1"], strict=True)
    share = float(np.mean([q.digest == f.digest for q, f in pairs]))
    return Measurement(name="noop_control", arm="adapted", unit="ratio", value=share, low=share, high=share)


def _next(decided: Verdict, limits: PictureLimits, count: int) -> str:
    if decided.outcome == "PASS":
        return "The style is kept in these pictures: ship it."
    if decided.outcome == "INVALID":
        return "The folders cannot be judged as they are: see the reasons."
    if decided.outcome == "INCONCLUSIVE":
        more = _needed(decided, limits, count)
        about = f"about {more} pairs would decide" if more is not None else "make more, with other prompts and seeds"
        return f"The pictures are too few to say: {about}."
    return (
        "The style is lost. Pictures do not tell where: `qcheck check` on the same base and LoRA names the scheme, the "
        "order and the layers, and `qcheck advise` tries cures."
    )


def _needed(decided: Verdict, limits: PictureLimits, count: int) -> int | None:
    """How many pairs would bring the interval of what is open off its limit, if the value stays; None if nothing is."""
    counts = [limits.least]
    for one in decided.measurements:
        if one.status != "undecided" or one.limit is None or one.value is None or one.low is None or one.high is None:
            continue
        ends = [end for end in (one.limit.low, one.limit.high) if end is not None]
        room, half = min(abs(one.value - end) for end in ends), max(one.high - one.value, one.value - one.low)
        counts.append(math.ceil(count * (half / room) ** 2) if room > 0 else 0)
    return max(counts) if 0 < max(counts) < _MANY and max(counts) > count else None


def _pairs(paired: Paired, measured: Measured) -> list[Pair]:
    return [
        Pair(
            name=path.stem,
            prompt=None if generation is None else generation.prompt,
            seed=None if generation is None else generation.seed,
            survival=survival,
        )
        for path, generation, survival in zip(
            paired.files["f1"], paired.generations, measured.survivals.tolist(), strict=True
        )
    ]


def _folder(role: Role, path: Path, paired: Paired) -> Folder:
    digest = digest_of(*paired.files[role])
    return Folder(role=role, path=str(path), digest=digest, unmatched=list(paired.unmatched[role]))


def _unmatched(paired: Paired) -> list[str]:
    return [
        f"{len(names)} pictures of {role.upper()} have no partner in every folder and were left out: {listed(names)}"
        for role, names in paired.unmatched.items()
        if names
    ]


def _absent(measured: Measured) -> list[NotMeasured]:
    absent = {one.name: one.where for one in measured.others if not one.measured}
    return [NotMeasured(name=name, reason=reason) for name, reason in absent.items()]


def _sheet(report: PicturesReport, paired: Paired, flips: Mapping[Side, Sequence[ErrorMap]]) -> Sheet:
    """The pictures that keep least."""

    def chosen(role: Role) -> np.ndarray:
        return np.stack([picture_pairs.read(paired.files[role][row]) for row in report.shown_pairs])

    return Sheet(
        scheme=report.verdict,
        prompts=tuple(report.pairs[row].prompt or report.pairs[row].name for row in report.shown_pairs),
        reference={side: chosen(role) for side, role in _FULL.items()},
        quantized={side: chosen(role) for side, role in _QUANTIZED.items() if role in paired.files},
        flips=flips,
    )


def _origin(seconds: float) -> Origin:
    return Origin(
        qcheck=__version__,
        commit=provenance.commit(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        versions=versions.versions(),
        machine=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        seconds=round(seconds, 2),
    )
