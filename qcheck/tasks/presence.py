"""The words for what a file's weights say of adapters: which of them are in, and what remains undecided."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from qcheck.diagnose import attribution
from qcheck.diagnose.attribution import EXPLAINED, FOLLOWS, Estimate, Fit, Layer, Signal
from qcheck.model.lora import Adapter, Contents
from qcheck.result.attribution import Attribution, Merging, Presence, Trace, Verdict
from qcheck.spec.fate import fates

_CLEAR, _QUIET = 5.0, 4.0  # standard deviations that an adapter would reach, and of none
_KEPT = 0.98  # of an adapter's layers that follow where all of it is there


@dataclass(frozen=True)
class Candidate:
    """An adapter that may be in the file: the name it was given by, its file, and its contents in this base."""

    name: str
    adapter: Adapter
    contents: Contents


@dataclass(frozen=True)
class Facts:
    """What is known of the file before its weights are compared: fields of ``Attribution``."""

    file: str
    digest: str
    base: str
    asked: float
    layers: int
    unmatched: int
    bound: int


@dataclass(frozen=True)
class _Evidence:
    """The layers, the best prediction of them, and what it leaves."""

    layers: Sequence[Layer]
    best: Fit
    asked: float
    left: Mapping[str, Estimate]
    arrived: Mapping[str, float]

    @property
    def exact(self) -> bool:
        """Whether the prediction explains the file."""
        return self.best.unexplained <= EXPLAINED

    def at_base(self) -> int:
        """How many of the layers that tell something hold the base's weight."""
        by_name = {layer.name: layer for layer in self.layers}
        told = self.best.told
        return sum(by_name[name].distance <= FOLLOWS * self.best.layers[name].difference for name in told)


def answer(facts: Facts, candidates: Sequence[Candidate], layers: Sequence[Layer]) -> Attribution:
    """Which of the adapters ``candidates`` the ``layers`` of a file hold."""
    names = [one.name for one in candidates if any(one.name in layer.changes for layer in layers)]
    groups = attribution.alike(layers, names)
    best = _best(layers, [*groups], facts.asked)
    evidence = _Evidence(
        layers,
        best,
        facts.asked,
        attribution.left(layers, best, [*groups]),
        attribution.arrived(layers, [*best.weights]) if best.weights else {},
    )
    traces = []
    for one in candidates:
        first = next((name for name, members in groups.items() if one.name in members), None)
        others = [] if first is None else [name for name in groups[first] if name != one.name]
        traces.append(_trace(one, first, others, evidence))
    verdict, reason = _verdict(evidence, traces)
    return Attribution(
        **vars(facts),
        answer=verdict,
        order=_order(evidence) if verdict != "the base alone" else None,
        reason=reason,
        unexplained=best.unexplained,
        told=len(best.told),
        adapters=traces,
    )


def _best(layers: Sequence[Layer], names: Sequence[str], asked: float) -> Fit:
    """The best prediction; of a file with the base's codes, the adapter that steps alone tell of."""
    best = attribution.chosen(layers, names, dict.fromkeys(names, asked))
    trace = None if best.weights or best.unexplained > EXPLAINED else attribution.erased(layers, names, asked)
    return best if trace is None else attribution.judged(layers, {trace: asked}, "quantize-merge")


def _order(evidence: _Evidence) -> Merging | None:
    """The order that the file shows; None where it does not show any."""
    weights, layers = evidence.best.weights, evidence.layers
    if not weights:
        return None
    told = {layer.name: layer for layer in layers if evidence.best.layers[layer.name].audible}
    if any(layer.branch is not None for layer in told.values()):
        return "unmerged"
    if not any(layer.quantized for layer in told.values()):
        return "merged"
    return attribution.decided_order(layers, weights)


def _trace(one: Candidate, first: str | None, others: list[str], evidence: _Evidence) -> Trace:
    """One adapter; ``first`` stands for it and ``others`` in the prediction, None where no layer of it is there."""
    best, elsewhere = evidence.best, len(one.contents.layers)
    mine = [layer.name for layer in evidence.layers if one.name in layer.changes]
    told = [name for name in mine if best.layers[name].audible]
    presence: Presence = "undecided"
    reason, signal, value, error, arrived = "none of its layers is a weight of this file", None, 0.0, 0.0, None
    if first is not None:
        value = best.weights.get(first, 0.0) + evidence.left[first].value
        error = evidence.left[first].error
        presence, reason, signal = _presence(first, told, evidence)
        if first in best.weights and presence in {"in", "in part"}:
            value = best.weights[first]
            arrived = evidence.arrived[first] / value if value else 0.0
    if others and presence != "not in":
        presence, reason = "undecided", f"its change is parallel to that of {', '.join(others)}: {reason}"
    return Trace(
        adapter=one.name,
        digest=one.adapter.digest,
        presence=presence,
        weight=value,
        error=error,
        arrived=arrived,
        fate=None if arrived is None else fates().of(arrived),
        signal=signal,
        alike=others,
        layers=len(mine),
        following=len(best.following(told)) if first in best.weights else 0,
        elsewhere=elsewhere - len(mine),
        reason=reason,
    )


def _presence(name: str, told: Sequence[str], evidence: _Evidence) -> tuple[Presence, str, float | None]:
    """Whether an adapter with layers in the file is in it, why, and its signal."""
    best, layers, asked = evidence.best, evidence.layers, evidence.asked
    if name in best.weights and evidence.exact:
        return "in", f"{len(best.following(told))} of {len(told)} layers that tell follow it", None
    if name not in best.weights and not attribution.visible(layers, best, name, asked):
        return "undecided", "rounding is larger than its change: the file would be the same with it", None
    if evidence.exact:
        return "not in", "the file is what it is without it", None
    rest = {one.name: one.difference for one in layers} if name in best.weights else attribution.rests(layers, best)
    signal = attribution.signal(layers, rest, name, asked)
    return *_leaning(name, signal, evidence), signal.score


def _leaning(name: str, signal: Signal, evidence: _Evidence) -> tuple[Presence, str]:
    """Whether an adapter is in a file that no prediction explains, and why."""
    best, asked, left = evidence.best, evidence.asked, evidence.left[name]
    following, base = best.following(best.told), evidence.at_base()
    split = following and base and len(following) + base >= _KEPT * len(best.told)
    if name in best.weights and split and best.left_in(following) <= EXPLAINED:
        return "in part", f"{len(following)} layers hold it, and {base} hold the base's weight"
    weight = best.weights.get(name, 0.0) + left.value
    text = f"{weight:.2f} ± {left.error:.2f}"
    if signal.expected < 2 * _CLEAR:
        return "undecided", f"rounding hides it: at {asked:g} it would reach {signal.expected:.1f} standard deviations"
    if abs(signal.score) < _QUIET or abs(weight) + 3 * left.error < abs(asked) / 2:
        return "not in", f"the file leans to it by {text}, no more than to an adapter akin to it"
    return "undecided", f"the file leans to it by {text}, and something else is in it"


def _verdict(evidence: _Evidence, traces: Sequence[Trace]) -> tuple[Verdict, str]:
    """The answer, and the reason in a sentence."""
    best, states = evidence.best, {one.presence for one in traces}
    if evidence.exact and not best.weights:
        return _of_base(len(best.told), states)
    left = f"{best.unexplained:.1%} of the difference from the base in {len(best.told)} layers is none of theirs"
    if evidence.exact:
        known = f"{1 - best.unexplained:.1%} of the difference from the base in {len(best.told)} layers is theirs"
        return ("undecided" if "undecided" in states else "these adapters"), known
    if "in part" in states:
        return "these adapters", f"not in every layer; {left}"
    if "undecided" in states:
        return "undecided", f"{left}: another adapter, another version of one, or weights not rounded to the nearest"
    return "none of these", f"{left}: another adapter, or another base"


def _of_base(moved: int, states: Collection[Presence]) -> tuple[Verdict, str]:
    """The answer of a file whose codes are the base's, with other steps in ``moved`` layers."""
    if "undecided" in states:
        return "undecided", "its weights are the quantized base's, as they would be with what is undecided"
    if not moved:
        return "the base alone", "every weight is what the base's rounds to"
    steps = f"every code is the base's, but steps of {moved} layers are not"
    return "the base alone", f"{steps}: an adapter that is not given was erased, or the base rounded twice"
