"""Which adapters an ONNX file holds: the values that ``qcheck inspect FILE.onnx`` prints."""

from typing import Literal

from qcheck.core.values import Number, Value
from qcheck.spec.fate import Fate

Presence = Literal["in", "in part", "not in", "undecided"]
Merging = Literal["merge-quantize", "quantize-merge", "unmerged", "merged"]
Verdict = Literal["these adapters", "the base alone", "none of these", "undecided"]


class Trace(Value):
    """One adapter: whether the file holds it, and at which weight.

    ``weight`` and its standard ``error`` are the weight it was merged with. ``arrived`` is the share of its change that
    rounding has left, and ``fate`` the word for it; both None where the file does not hold it. ``signal`` is how far
    the file leans to its change, in standard deviations of what changes of the same size reach by chance; None where
    the file is explained without chance. ``alike`` are given adapters whose change is parallel to its own,
    ``elsewhere`` the layers it changes that are not in this file.
    """

    adapter: str
    digest: str
    presence: Presence
    weight: Number
    error: Number
    arrived: Number | None
    fate: Fate | None
    signal: Number | None
    alike: list[str]
    layers: int
    following: int
    elsewhere: int
    reason: str


class Attribution(Value):
    """What ``qcheck inspect FILE.onnx`` prints: the answer in words, the order, and every adapter.

    ``unexplained`` is the share of the file's difference from the quantized base that the adapters leave, the mean over
    the ``told`` layers that differ by more than rounding; ``layers`` are matched to the base's, ``unmatched`` have a
    weight that is none of the base's. ``bound`` layers take an adapter as inputs of the file.
    """

    file: str
    digest: str
    base: str
    asked: float
    answer: Verdict
    order: Merging | None
    reason: str
    unexplained: Number
    told: int
    layers: int
    unmatched: int
    bound: int
    adapters: list[Trace]


Answer = Literal[0, 1, 3]
_NEAR = 0.02  # of a weight


def answer(found: Attribution) -> Answer:
    """The exit code: 0 where all adapters are in at the weight that was asked and have arrived, 3 where undecided."""
    traces = found.adapters
    if any(one.presence in {"in part", "not in"} or not _as_asked(one, found.asked) for one in traces):
        return 1
    return 3 if any(one.presence == "undecided" for one in traces) or found.answer == "undecided" else 0


def _as_asked(trace: Trace, asked: float) -> bool:
    """False where an adapter that is in has another weight, or has not arrived."""
    near = abs(trace.weight - asked) <= max(3 * trace.error, _NEAR * abs(asked))
    return trace.presence != "in" or (near and trace.fate == "arrives")
