"""Remedies for a case that does not pass, the cheapest first; nothing here is run.

A remedy is a changed request. Each kind of remedy is a generator below; ``KINDS`` lists them in order of cost.
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
    """A change in words, and the request that tries it. ``train`` calibrates the adapter first.

    ``spec`` is None where the remedy cannot be tried here; ``why`` gives the reason, or what the remedy does.
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


def remedies(failing: FailingCase) -> Iterator[Remedy]:
    """All remedies that fit the verdict, in order of cost."""
    if failing.verdict == "FAIL-ADAPTER":
        yield Remedy("retrain", "retrain the adapter", _RETRAIN, None)
        return
    for kind in KINDS:
        yield from kind(failing)


_RETRAIN = (
    "it is broken at full precision: QAT would teach the quantized model to answer as it does, faults included. Lower "
    "the learning rate or the steps, or take an earlier checkpoint"
)


def more_probes(failing: FailingCase) -> Iterator[Remedy]:
    """All looks of the limits, where the verdict is inconclusive."""
    most = failing.spec.limits.looks[-1]
    if failing.verdict == "INCONCLUSIVE" and most > failing.spec.bounds.looks[-1]:
        changed = failing.spec.changed(max_probes=None)
        yield Remedy("probes", f"up to {most} probes", "the verdict is open for want of them", changed)


def other_orders(failing: FailingCase) -> Iterator[Remedy]:
    """The adapter merged at full precision, or unmerged. No order changes a failure of the quantized base itself."""
    if failing.verdict == "FAIL-RECIPE":
        return
    for order in MERGES:
        merge = orders.merge(order)
        if order not in failing.spec.orders and not merge.rounds_change_alone:
            yield Remedy("order", f"order {order}", _WHY[merge.merged], failing.spec.changed(orders=(order,)))


_WHY = {
    "before": "merged at full precision, weights act as dither and nothing falls into the dead zone",
    "beside": "beside the quantized weights the adapter is not rounded; two small products a layer more",
}


def better_ranges(failing: FailingCase) -> Iterator[Remedy]:
    """Input ranges by another method, where inputs have fixed ranges."""
    static = [rule.activations for rule in failing.scheme.rules if rule.activations and rule.activations.scales is None]
    if not static or failing.scheme.smoothing:
        return
    for method in _METHODS:
        if method == failing.spec.recipe.method or (method == "entropy" and any("int" not in n.format for n in static)):
            continue
        changed = failing.spec.recipe.model_copy(
            update={"name": f"{failing.spec.recipe.name}-{method}", "method": method}
        )
        spec = failing.spec.changed(recipe=changed, ranges=None)
        yield Remedy("ranges", f"ranges by {method}", "other input ranges cost nothing", spec)


_METHODS = tuple(sorted(METHODS, key=("mse", "percentile", "entropy", "max").index))


def _other_schemes(failing: FailingCase) -> list[Scheme]:
    return [
        scheme
        for scheme in failing.spec.target.deployable()
        if scheme.name != failing.scheme.name
        and failing.installed(scheme)
        and failing.spec.target.refuses(scheme) is None
    ]


def finer_steps(failing: FailingCase) -> Iterator[Remedy]:
    """Schemes of the same formats whose steps are shared by fewer weights."""
    alike = [s for s in _other_schemes(failing) if _formats(s) == _formats(failing.scheme) and s.smoothing is None]
    finer = [s for s in alike if _sharing(s) < _sharing(failing.scheme)]
    for scheme in sorted(finer, key=_sharing, reverse=True):
        yield _scheme_remedy("group", failing, scheme, "a step for fewer weights: more scales, smaller errors")


def smoothing(failing: FailingCase) -> Iterator[Remedy]:
    """SmoothQuant or AWQ, by ModelOpt."""
    for scheme in _other_schemes(failing):
        if scheme.smoothing and failing.scheme.smoothing is None and _formats(scheme) == _formats(failing.scheme):
            yield _scheme_remedy(
                "smoothing", failing, scheme, "what is hard to quantize moves between weights and inputs"
            )


def kept_layers(failing: FailingCase) -> Iterator[Remedy]:
    """Mixed precision: the layers with the largest errors stay in the compute type."""
    for layers in failing.keeps(failing.spec):
        recipe = failing.spec.recipe
        changed = recipe.model_copy(
            update={"name": f"{recipe.name}-keep{len(layers)}", "keep": (*recipe.keep, *layers)}
        )
        title = f"{len(layers)} layers in {failing.scheme.compute}"
        yield Remedy("mixed precision", title, ", ".join(layers[:3]), failing.spec.changed(recipe=changed))


def wider_schemes(failing: FailingCase) -> Iterator[Remedy]:
    """Schemes of more bits that the target runs, the smallest first."""
    wider = [s for s in _other_schemes(failing) if bits(s) > bits(failing.scheme) and s.smoothing is None]
    for scheme in sorted(wider, key=bits):
        yield _scheme_remedy("scheme", failing, scheme, "more bits: larger, and it may be slower")


def training(failing: FailingCase) -> Iterator[Remedy]:
    """QAT of the adapter. It cannot change a failure of the quantized base itself."""
    if failing.verdict != "FAIL-RECIPE" and len(failing.spec.adapters) == 1 and not failing.spec.references:
        why = "the adapter learns through the rounding: minutes on a small model, hours on a large one"
        yield Remedy("qat", "QAT of the adapter", why, failing.spec, train=True)


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


def _scheme_remedy(kind: str, failing: FailingCase, scheme: Scheme, why: str) -> Remedy:
    """The request with another scheme; a file of ranges is of the scheme that it was made for."""
    return Remedy(kind, f"scheme {scheme.name}", why, failing.spec.changed(schemes=(scheme,), ranges=None))


def _formats(scheme: Scheme) -> tuple[tuple[tuple[str, ...], str, str | None], ...]:
    """Number formats of weights and inputs, by kind of layer."""
    return tuple((r.operators, r.weights.format, r.activations.format if r.activations else None) for r in scheme.rules)


_WEIGHTS_OF_STEP = {"none": 0.0, "tensor": 1e9, "channel": 1e6}


def _sharing(scheme: Scheme) -> float:
    """The most weights that share a step; an order of magnitude where the number varies by layer."""
    return max(float(n.block or _WEIGHTS_OF_STEP[n.granularity]) for n in (rule.weights for rule in scheme.rules))


def bits(scheme: Scheme) -> float:
    """Bits of the narrowest quantized weights plus a hundredth of their inputs' bits, to rank schemes."""
    return min(_bits(rule, scheme.compute) for rule in scheme.rules)


def _bits(rule: Rule, compute: str) -> float:
    def of(numbers: Numbers | None) -> int:
        return targets.number_format(numbers.format if numbers else compute).bits

    return of(rule.weights) + of(rule.activations) / 100  # inputs decide between schemes of equal weights


def no_keeps(_: CheckSpec) -> Iterator[tuple[str, ...]]:
    """No choice of layers is known."""
    yield from ()
