"""Which adapters' changes a file's weights hold, at which weight, in which order.

With W a base's weight, D_k the changes of adapters at weight 1, F the file's weight, Q its rounding and c the weights:

- none: the file would hold Q(W);
- merge-quantize: Q(W + sum c D), of which F - Q(W) is an unbiased sample, as W dithers the rounding;
- quantize-merge: Q(Q0(W) + sum c D), Q0 the rounding that the scheme chooses for W itself;
- a branch beside a layer: Q(W), and sum c D in the branch.

c is the weighted median over layers of least squares, and is refined by least squares of what the prediction leaves: as
c nears the true weight the same weights round the same way, so that the noise goes with the error. Everything is in
units of the file's own steps, and a prediction is judged by what it leaves of the file's distance from Q(W).
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch

from qcheck.quantize.file_grid import Affine
from qcheck.quantize.plan import Grid

Order = Literal["merge-quantize", "quantize-merge"]
ORDERS: tuple[Order, ...] = ("merge-quantize", "quantize-merge")
AUDIBLE = 8.0  # squared steps of a layer's difference, below which the layer tells nothing
_JITTER = 0.01  # squared steps a weight, as the rounding of a stored factor leaves where the input is scaled by it
FOLLOWS = 0.1  # of a layer's difference that a prediction may leave
EXPLAINED = 0.02  # of the difference that a prediction may leave on average over layers
_ENOUGH = 1e-6  # left, nothing more is looked for
_STEPS, _CLOSE, _PATIENCE = 8, 1e-5, 2
_FINE = 64  # parts of a branch's size that its factors' rounding stays below
_GAIN, _LARGE_GAIN = 0.9, 0.5  # of what is left that another adapter may leave: usually, and where little is left
_LEAST_KEPT = 0.05  # of a change that arrives: below, refining would overshoot
_SAME = 0.9995  # cosine of two changes that cannot be told apart
_PLACEBOS = 10
_CLEARLY = 4.0  # times that an order leaves less than the other
Weights = Mapping[str, float]


@dataclass(frozen=True)
class Layer:
    """Some outputs of one layer: all tensors [n, m].

    ``file`` includes the ``branch`` where there is one. ``first`` is Q0(W). ``changes`` are those of the adapters that
    have the layer. ``own`` chooses the steps [groups] of other weights as the file's scheme does; None where they are
    not known, or depend on outputs that are not here. ``scaled`` is whether its input is scaled by a stored factor.
    """

    name: str
    before: torch.Tensor
    file: torch.Tensor
    grid: Grid | Affine
    first: torch.Tensor
    changes: Mapping[str, torch.Tensor]
    branch: torch.Tensor | None = None
    own: Callable[[torch.Tensor], torch.Tensor] | None = None
    scaled: bool = False

    @property
    def quantized(self) -> bool:
        """Whether steps are chosen for the weights: a bare cast merges alike in every order."""
        return self.grid.granularity != "none"

    @cached_property
    def unit(self) -> torch.Tensor:
        """The file's step, [n, 1]: the root mean square over an output's weights; of a branch, a part of its size."""
        if self.branch is None:
            spacing = self.grid.spacing(self.rounded).square().mean(1, keepdim=True).sqrt()
        else:
            sizes = [change.square().mean().sqrt() for change in (self.branch, *self.changes.values())]
            spacing = torch.stack(sizes).sum().expand(len(self.before), 1) / _FINE
        return spacing.clamp(min=torch.finfo(torch.float32).tiny ** 0.5)

    @cached_property
    def rounded(self) -> torch.Tensor:
        """Q(W)."""
        return self.grid.fake(self.before)

    @cached_property
    def difference(self) -> torch.Tensor:
        """F - Q(W) in steps."""
        return (self.file - self.rounded) / self.unit

    @property
    def least(self) -> float:
        """The squared steps below which the layer's difference tells nothing."""
        return max(AUDIBLE, _JITTER * self.before.numel() if self.scaled else 0.0)

    @cached_property
    def distance(self) -> float:
        """Squared steps between the file and the base."""
        return _energy(self.difference)

    def added(self, weights: Weights) -> torch.Tensor:
        """The sum of the adapters' changes."""
        total = torch.zeros_like(self.before)
        for name, weight in weights.items():
            if name in self.changes:
                total += weight * self.changes[name]
        return total

    def predicted(self, weights: Weights, order: Order) -> torch.Tensor:
        """What the file would hold."""
        added = self.added(weights)
        if self.branch is not None:
            return self.rounded + added
        start = self.first if order == "quantize-merge" and self.quantized else self.before
        return self.grid.fake(start + added)


def _energy(values: torch.Tensor) -> float:
    return float(values.double().square().sum())


class Leaves(NamedTuple):
    """What a prediction leaves of one layer's difference, both in squared steps; ``least`` of these tell something."""

    rest: float
    difference: float
    least: float = AUDIBLE

    @property
    def share(self) -> float:
        """0 where it explains everything, 1 where it is no better than the base."""
        return min(self.rest / self.difference, 1.0)

    @property
    def audible(self) -> bool:
        """Whether the layer tells anything."""
        return self.difference >= self.least


@dataclass(frozen=True)
class Fit:
    """A prediction: the adapters at their ``weights`` in an ``order``, and what it leaves of every layer."""

    order: Order
    weights: dict[str, float]
    layers: Mapping[str, Leaves]

    @property
    def unexplained(self) -> float:
        """The mean share that is left over the layers that tell something; 0 where none does."""
        return self.left_in(self.told)

    def following(self, layers: Iterable[str]) -> list[str]:
        """Those of ``layers`` that it explains."""
        return [name for name in layers if self.layers[name].share <= FOLLOWS]

    def left_in(self, layers: Collection[str]) -> float:
        """The mean share that is left over ``layers``; 0 of none."""
        return sum(self.layers[name].share for name in layers) / max(1, len(layers))

    @property
    def told(self) -> list[str]:
        """The layers that tell something."""
        return [name for name, leaves in self.layers.items() if leaves.audible]


def judged(layers: Sequence[Layer], weights: Weights, order: Order) -> Fit:
    """The prediction of ``weights`` in ``order``, held against the file."""
    leaves = {}
    for layer in layers:
        predicted = layer.predicted(weights, order)
        own = _energy((predicted - layer.rounded) / layer.unit)
        rest, difference = _energy((layer.file - predicted) / layer.unit), max(own, layer.distance, 1e-30)
        leaves[layer.name] = Leaves(rest, difference, layer.least)
    return Fit(order, dict(weights), leaves)


class Estimate(NamedTuple):
    """A number and its standard error."""

    value: float
    error: float


def _median(values: torch.Tensor, sizes: torch.Tensor) -> Estimate:
    """The weighted median of values [n], and its standard error from their spread."""
    ranked = torch.argsort(values)
    shares = sizes[ranked].cumsum(0) / sizes.sum()
    middle = float(values[ranked][int(torch.searchsorted(shares, 0.5).clamp(max=len(values) - 1))])
    spread = (sizes.square() * (values - middle).square()).sum().sqrt() / sizes.sum()
    return Estimate(middle, 1.2533 * float(spread))


def _solved(layers: Sequence[Layer], rest: Mapping[str, torch.Tensor], names: Sequence[str]) -> dict[str, Estimate]:
    """The weights of ``names`` in the ``rest`` [n, m] of every layer, in steps: the median of the layers' own."""
    values: dict[str, list[float]] = {name: [] for name in names}
    sizes: dict[str, list[float]] = {name: [] for name in names}
    for layer in layers:
        here = [name for name in names if name in layer.changes]
        columns = [(layer.changes[name] / layer.unit).flatten().double() for name in here]
        if not columns:
            continue
        matrix = torch.stack(columns)
        gram = matrix @ matrix.t()
        solution = torch.linalg.pinv(gram, hermitian=True, rtol=1e-6) @ (matrix @ rest[layer.name].flatten().double())
        for name, value, size in zip(here, solution.tolist(), gram.diagonal().sqrt().tolist(), strict=True):
            if size > 0:
                values[name].append(value)
                sizes[name].append(size)
    return {
        name: _median(torch.tensor(values[name]), torch.tensor(sizes[name])) if values[name] else Estimate(0.0, 0.0)
        for name in names
    }


def regression(layers: Sequence[Layer], names: Sequence[str]) -> dict[str, Estimate]:
    """The weights of adapters in F - Q(W), whatever the order: in quantize-merge what is rounded away lowers them."""
    return _solved(layers, {layer.name: layer.difference for layer in layers}, names)


def fit(layers: Sequence[Layer], names: Sequence[str], order: Order, starts: Sequence[Weights]) -> Fit:
    """The best prediction of the adapters ``names`` in ``order``, from the best of some weights to start at."""
    tried = [judged(layers, {name: start[name] for name in names}, order) for start in starts]
    best = min(tried, key=_unexplained)
    latest, waiting = best, 0
    for _ in range(_STEPS):
        moves = _moves(layers, latest)
        latest = judged(layers, {name: latest.weights[name] + moves[name] for name in names}, order)
        waiting = 0 if latest.unexplained < _GAIN * best.unexplained else waiting + 1
        best = min(best, latest, key=_unexplained)
        if waiting >= _PATIENCE or max(map(abs, moves.values())) < _CLOSE:
            break
    return best


def _unexplained(one: Fit) -> float:
    return one.unexplained


def _moves(layers: Sequence[Layer], latest: Fit) -> dict[str, float]:
    """By how much each weight has to move, from what the prediction leaves and the share of changes that arrives."""
    rest, kept, whole = {}, 0.0, 0.0
    for layer in layers:
        predicted = layer.predicted(latest.weights, latest.order)
        rest[layer.name] = (layer.file - predicted) / layer.unit
        if latest.order == "quantize-merge" and layer.quantized and layer.branch is None:
            added = layer.added(latest.weights) / layer.unit
            kept += float(((predicted - layer.first) / layer.unit * added).double().sum())
            whole += _energy(added)
    response = max(kept / whole, _LEAST_KEPT) if whole else 1.0
    return {name: one.value / response for name, one in _solved(layers, rest, [*latest.weights]).items()}


def chosen(layers: Sequence[Layer], names: Sequence[str], asked: Weights) -> Fit:
    """The best prediction in any order: adapters are taken in while they explain more."""
    regressed = {name: one.value for name, one in regression(layers, names).items()}
    starts: dict[Order, list[Weights]] = {"merge-quantize": [regressed, asked], "quantize-merge": [asked]}
    fits: list[Fit] = []
    for order in ORDERS:
        best = judged(layers, {}, order)
        while best.unexplained > _ENOUGH and len(best.weights) < len(names):
            others = [name for name in names if name not in best.weights]
            known = [{**start, **best.weights} for start in starts[order]]
            better = min((fit(layers, [*best.weights, name], order, known) for name in others), key=_unexplained)
            if better.unexplained > (_GAIN if best.unexplained > EXPLAINED else _LARGE_GAIN) * best.unexplained:
                break
            best = better
        fits.append(best)
        if best.unexplained <= EXPLAINED / 4:
            break
    return min(fits, key=_unexplained)


def erased(layers: Sequence[Layer], names: Sequence[str], asked: float) -> str | None:
    """The adapter whose merge into quantized weights has left its trace in the steps alone; None where none has.

    A change below half a step leaves the codes as they are, and moves the largest weight of a group, which sets the
    step.
    """
    shares = {}
    for name in names:
        here = [layer for layer in layers if layer.own is not None and layer.branch is None and name in layer.changes]
        moved = followed = 0
        for layer in here:
            if layer.own is not None and isinstance(layer.grid, Grid):
                before, after = layer.own(layer.first), layer.own(layer.first + asked * layer.changes[name])
                moved += int((before != after).sum())
                followed += int(((before != after) & (after == layer.grid.step)).sum())
        if moved >= AUDIBLE:
            shares[name] = followed / moved
    best = max(shares, key=lambda name: shares[name], default=None)
    return best if best is not None and shares[best] >= 1 - FOLLOWS else None


def decided_order(layers: Sequence[Layer], weights: Weights) -> Order | None:
    """The order in which quantized layers without a branch were merged; None where both predict them as well."""
    told = [layer for layer in layers if layer.quantized and layer.branch is None and set(layer.changes) & set(weights)]
    if not told:
        return None
    rests = {order: sum(one.rest for one in judged(told, weights, order).layers.values()) for order in ORDERS}
    better, worse = sorted(ORDERS, key=lambda order: rests[order])
    return better if rests[worse] >= max(AUDIBLE, _CLEARLY * rests[better]) else None


def arrived(layers: Sequence[Layer], names: Sequence[str]) -> dict[str, float]:
    """The weights of the adapters in F - Q0(W) by least squares over all weights: their arrived share times weight."""
    gram, right = torch.zeros(len(names), len(names), dtype=torch.float64), torch.zeros(len(names), dtype=torch.float64)
    for layer in layers:
        start = layer.first if layer.quantized else layer.before
        zeros = torch.zeros_like(start)
        matrix = torch.stack([layer.changes.get(name, zeros).flatten() for name in names]).double()
        gram += matrix @ matrix.t()
        right += matrix @ (layer.file - start).flatten().double()
    solution = torch.linalg.pinv(gram, hermitian=True, rtol=1e-9) @ right
    return dict(zip(names, solution.tolist(), strict=True))


def alike(layers: Sequence[Layer], names: Sequence[str]) -> dict[str, list[str]]:
    """The groups of adapters whose changes are parallel, so that no file tells them apart, by their first."""
    groups: dict[str, list[str]] = {}
    for name in names:
        first = next((one for one in groups if abs(_cosine(layers, one, name)) >= _SAME), name)
        groups.setdefault(first, []).append(name)
    return groups


def _cosine(layers: Sequence[Layer], one: str, other: str) -> float:
    product = first = second = 0.0
    for layer in layers:
        zeros = torch.zeros_like(layer.before)
        ours, theirs = (layer.changes.get(name, zeros) / layer.unit for name in (one, other))
        product += float((ours * theirs).double().sum())
        first += _energy(ours)
        second += _energy(theirs)
    return product / (first * second) ** 0.5 if first and second else 0.0


def left(layers: Sequence[Layer], best: Fit, names: Sequence[str]) -> dict[str, Estimate]:
    """The weights of ``names`` in what a prediction leaves."""
    return _solved(layers, rests(layers, best), names)


def rests(layers: Sequence[Layer], best: Fit) -> dict[str, torch.Tensor]:
    """What a prediction leaves of every layer, in steps."""
    return {one.name: (one.file - one.predicted(best.weights, best.order)) / one.unit for one in layers}


def visible(layers: Sequence[Layer], best: Fit, name: str, weight: float) -> bool:
    """Whether a file with this adapter too, merged before quantization, would differ from the prediction by enough.

    By more than nothing, and by more than the prediction leaves.
    """
    change = rest = 0.0
    for layer in layers:
        if name in layer.changes:
            both = (
                layer.predicted({**best.weights, name: weight}, ORDERS[0]),
                layer.predicted(best.weights, ORDERS[0]),
            )
            change += _energy((both[0] - both[1]) / layer.unit)
            rest += best.layers[layer.name].rest
    return change >= max(AUDIBLE, 2 * rest if best.unexplained <= EXPLAINED else 0.0)


class Signal(NamedTuple):
    """How far a difference leans to an adapter's change, in standard deviations of what its placebos reach.

    A placebo is the same change with its outputs and inputs in another order: as large, of the same rank, in the same
    layers. ``expected`` is what the adapter would reach at the weight that was asked.
    """

    score: float
    expected: float


def signal(layers: Sequence[Layer], rest: Mapping[str, torch.Tensor], name: str, weight: float) -> Signal:
    """The signal of an adapter in the ``rest`` of every layer, in steps."""
    generator = torch.Generator().manual_seed(0)
    scores, noise, power = torch.zeros(_PLACEBOS + 1), torch.zeros(_PLACEBOS + 1), 0.0
    for layer in layers:
        if name not in layer.changes:
            continue
        change, seen = layer.changes[name] / layer.unit, rest[layer.name]
        power += abs(weight) * _energy(change)
        for place in range(_PLACEBOS + 1):
            product = (change if place == 0 else _shuffled(change, generator)) * seen
            scores[place] += product.sum()
            noise[place] += product.square().sum()
    ratios = scores / noise.sqrt().clamp(min=1e-15)
    spread = max(1.0, float(ratios[1:].square().mean().sqrt()))
    quiet = float(noise[1:].mean().sqrt())
    return Signal(float(ratios[0]) / spread, power / quiet / spread if quiet else float("inf"))


def _shuffled(change: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    rows, columns = (torch.randperm(side, generator=generator) for side in change.shape)
    return change[rows][:, columns]
