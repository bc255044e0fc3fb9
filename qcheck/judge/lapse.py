"""Whether a verdict is still about what is there: the checkpoint, the file, the board and its TensorRT."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qcheck.result.report import Case, Report
from qcheck.result.verified import Asked, Verified

_BOARD = {"model": "board", "release": "release of Linux", "power_mode": "power mode"}
_BUILD = {"tensorrt": "TensorRT", "board": "board", "mode": "power mode"}


def request(report: Report, asked: Asked) -> Iterator[tuple[str, Any, Any]]:
    """What a board was asked for beside what the report is about, where they differ: name, report's, board's."""
    ours = [one for one in report.adapters if one.arms == "adapted"]
    pairs = (
        ("base", report.base.digest, asked.base_digest),
        ("adapter", [one.digest for one in ours], asked.adapter_digests),
        ("weight", [one.weight for one in ours], asked.weights),
        ("target", report.target, asked.target),
        ("guidance", report.probes.guidance, asked.guidance),
        ("number of steps", report.probes.steps, asked.steps),
        ("set of limits", report.provenance.limits_digest, asked.limits_digest),
    )
    return (pair for pair in pairs if pair[1] != pair[2])


def verification(report: Report, case: Case, later: Verified) -> list[str]:
    """What a ``later`` verification of a case was of that its verdict is not about, in sentences."""
    pairs = list(request(report, later.asked))
    if case.artifact and case.artifact[0].digest != later.asked.file_digest:
        pairs.append(("file", case.artifact[0].digest, later.asked.file_digest))
    earlier = case.board
    answer = case.verdict if earlier is None else earlier.verdict
    if later.verdict != answer and (earlier is not None or case.verdict == "PASS"):
        pairs.append(("answer of the board", answer, later.verdict))
    if earlier is not None:
        pairs += _differing(_BOARD, earlier.board, later.board)
        pairs += _differing(_BUILD, earlier.denoiser.build or {}, later.denoiser.build or {})
        if earlier.runner != later.runner:
            pairs.append(("runner", earlier.runner.name, later.runner.name))
    return _sentences(pairs)


def engine(case: Case, record: Mapping[str, Any]) -> list[str]:
    """What an engine was built with, by its ``record``, that the board's verdict is not about, in sentences."""
    build = {} if case.board is None else case.board.denoiser.build or {}
    return _sentences(_differing(_BUILD, build, record)) if build else []


def source(case: Case) -> str | None:
    """The digest by which an engine's record names the file of a case; None where it has none."""
    if not case.artifact or not case.artifact[0].sha256:
        return None
    file = case.artifact[0]
    parts = [digest for name, digest in sorted(file.sha256.items()) if name.startswith(file.path)]
    return hashlib.sha256("".join(parts).encode("ascii")).hexdigest()


Pair = tuple[str, Any, Any]


def _differing(names: Mapping[str, str], before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Pair]:
    return [(word, before.get(key), after.get(key)) for key, word in names.items() if before.get(key) != after.get(key)]


def _sentences(pairs: Sequence[Pair]) -> list[str]:
    sentences = (f"another {name}: the verdict is of {before}, and this is {after}" for name, before, after in pairs)
    return list(dict.fromkeys(sentences))
