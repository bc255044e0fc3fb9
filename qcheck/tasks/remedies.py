"""What may cure a case that does not pass, the cheapest first; nothing here is run.

A remedy is a changed request. Each kind of them is a generator below; ``KINDS`` is their order of cost.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from qcheck.result.verdict import Outcome
from qcheck.spec import order as orders
from qcheck.spec import target as targets
from qcheck.spec.check import CheckSpec
from qcheck.spec.order import MERGES
from qcheck.spec.recipe import METHODS
from qcheck.spec.scheme import Numbers, Rule, Scheme

Keeps = Callable[
    [CheckSpec], Iterable[tuple[str, ...]]
]  # layers to keep in the compute type, the smallest choice first


@dataclass(frozen=True)
class Remedy:
    """What to change, in words, and the request that tries it. ``train`` calibrates the adapter first.

    A request of None cannot be tried here; ``why`` says why, or what the remedy does.
    """

    kind: str
    title: str
    why: str
    spec: CheckSpec | None
    train: bool = False


class FailingCase(NamedTuple):
    """A case that does not pass: a request of one scheme in one order, its verdict, and what is installed."""

    spec: CheckSpec
    verdict: Outcome
    installed: Callable[[Scheme], bool]
    keeps: Keeps

    @property
    def scheme(self) -> Scheme:
        """The scheme."""
        return self.spec.schemes[0]


def remedies(ill: FailingCase) -> Iterator[Remedy]:
    """All that fit the verdict, in order of cost."""
    if ill.verdict == "FAIL-ADAPTER":
        yield Remedy("retrain", "retrain the adapter", _RETRAIN, None)
        return
    for kind in KINDS:
        yield from kind(ill)


_RETRAIN = (
    "it is broken at full precision: QAT would teach the quantized model to answer as it does, faults included. Lower "
    "the learning rate or the steps, or take an earlier checkpoint"
)


def more_probes(ill: FailingCase) -> Iterator[Remedy]:
    """Where the verdict is open, all looks that the limits have."""
    most = ill.spec.limits.looks[-1]
    if ill.verdict == "INCONCLUSIVE" and most > ill.spec.bounds.looks[-1]:
        changed = ill.spec.changed(max_probes=None)
        yield Remedy("probes", f"up to {most} probes", "the verdict is open for want of them", changed)


def other_orders(ill: FailingCase) -> Iterator[Remedy]:
    """The adapter merged at full precision, or beside the weights; the base's own failure is the same in any order."""
    if ill.verdict == "FAIL-RECIPE":
        return
    for order in MERGES:
        merge = orders.merge(order)
        if order not in ill.spec.orders and not merge.rounds_change_alone:
            yield Remedy("order", f"order {order}", _WHY[merge.merged], ill.spec.changed(orders=(order,)))


_WHY = {
    "before": "merged at full precision, weights act as dither and nothing falls into the dead zone",
    "beside": "beside the quantized weights the adapter is not rounded; two small products a layer more",
}


def better_ranges(ill: FailingCase) -> Iterator[Remedy]:
    """Input ranges cut by another method, where inputs have fixed ranges."""
    static = [rule.activations for rule in ill.scheme.rules if rule.activations and rule.activations.scales is None]
    if not static or ill.scheme.smoothing:
        return
    for method in _METHODS:
        if method == ill.spec.recipe.method or (method == "entropy" and any("int" not in n.format for n in static)):
            continue
        changed = ill.spec.recipe.model_copy(update={"name": f"{ill.spec.recipe.name}-{method}", "method": method})
        yield Remedy(
            "ranges", f"ranges by {method}", "other input ranges cost nothing", ill.spec.changed(recipe=changed)
        )


_METHODS = tuple(sorted(METHODS, key=("mse", "percentile", "entropy", "max").index))


def _others(ill: FailingCase) -> list[Scheme]:
    return [
        found
        for found in ill.spec.target.deployable()
        if found.name != ill.scheme.name and ill.installed(found) and ill.spec.target.refuses(found) is None
    ]


def finer_steps(ill: FailingCase) -> Iterator[Remedy]:
    """Schemes of the same formats whose steps are shared by fewer weights."""
    alike = [s for s in _others(ill) if _formats(s) == _formats(ill.scheme) and s.smoothing is None]
    finer = [s for s in alike if _sharing(s) < _sharing(ill.scheme)]
    for found in sorted(finer, key=_sharing, reverse=True):
        yield _scheme("group", ill, found, "a step for fewer weights: more scales, smaller errors")


def smoothing(ill: FailingCase) -> Iterator[Remedy]:
    """SmoothQuant or AWQ, by ModelOpt."""
    for found in _others(ill):
        if found.smoothing and ill.scheme.smoothing is None and _formats(found) == _formats(ill.scheme):
            yield _scheme("smoothing", ill, found, "what is hard to quantize moves between weights and inputs")


def kept_layers(ill: FailingCase) -> Iterator[Remedy]:
    """The layers that hurt most stay in the compute type."""
    for layers in ill.keeps(ill.spec):
        held = ill.spec.recipe
        changed = held.model_copy(update={"name": f"{held.name}-keep{len(layers)}", "keep": (*held.keep, *layers)})
        title = f"{len(layers)} layers in {ill.scheme.compute}"
        yield Remedy("mixed precision", title, ", ".join(layers[:3]), ill.spec.changed(recipe=changed))


def wider_schemes(ill: FailingCase) -> Iterator[Remedy]:
    """Schemes of more bits that the target runs, the smallest first."""
    wider = [s for s in _others(ill) if bits(s) > bits(ill.scheme) and s.smoothing is None]
    for found in sorted(wider, key=bits):
        yield _scheme("scheme", ill, found, "more bits: larger, and it may be slower")


def training(ill: FailingCase) -> Iterator[Remedy]:
    """QAT of the adapter; it cannot change the base's own failure."""
    if ill.verdict != "FAIL-RECIPE" and len(ill.spec.adapters) == 1 and not ill.spec.references:
        why = "the adapter learns through the rounding: minutes on a small model, hours on a large one"
        yield Remedy("qat", "QAT of the adapter", why, ill.spec, train=True)


KINDS: tuple[Callable[[FailingCase], Iterator[Remedy]], ...] = (
    more_probes,
    other_orders,
    better_ranges,
    finer_steps,
    smoothing,
    kept_layers,
    wider_schemes,
    training,
)


def _scheme(kind: str, ill: FailingCase, found: Scheme, why: str) -> Remedy:
    return Remedy(kind, f"scheme {found.name}", why, ill.spec.changed(schemes=(found,)))


def _formats(found: Scheme) -> tuple[tuple[tuple[str, ...], str, str | None], ...]:
    """Of weights and inputs, by kind of layer."""
    return tuple((r.operators, r.weights.format, r.activations.format if r.activations else None) for r in found.rules)


_EVERY = {"none": 0.0, "tensor": 1e9, "channel": 1e6}


def _sharing(found: Scheme) -> float:
    """How many weights share a step at most, in the order of magnitude."""
    return max(float(n.block or _EVERY[n.granularity]) for n in (rule.weights for rule in found.rules))


def bits(found: Scheme) -> float:
    """Bits of the narrowest quantized weights and, as hundredths, of their inputs: a rank."""
    return min(_bits(rule, found.compute) for rule in found.rules)


def _bits(rule: Rule, compute: str) -> float:
    def of(numbers: Numbers | None) -> int:
        return targets.number_format(numbers.format if numbers else compute).bits

    return of(rule.weights) + of(rule.activations) / 100  # inputs decide between equal weights


def no_keeps(_: CheckSpec) -> Iterator[tuple[str, ...]]:
    """No choice of layers is known."""
    yield from ()
