"""Which layers carry the gap: what rounding each of them alone does to the guided output, from one backward pass.

With y the guided output, J a layer's Jacobian and e what a case changes in that layer's output, the layer's cost is
|J e|^2. For z ~ N(0, I) and g = d<z, y>/d(layer output), <g, e>^2 has that mean (Gauss-Newton; Hutchinson's trick). As
<g, dW x> = <G, dW> with G the gradient of the layer's weight, and <g, W dx> = <W^T g, dx>, one pass serves all layers,
all schemes and both kinds of error.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from qcheck.core import cache
from qcheck.core.digest import digest_of
from qcheck.core.progress import Advance, Stopwatch
from qcheck.diagnose.hooks import tapped
from qcheck.model.arms import Arms
from qcheck.quantize import artifact, plan
from qcheck.quantize.artifact import ArtifactSources, QuantizedWeights
from qcheck.quantize.plan import LayerPlan
from qcheck.runtime.torch_runner import TorchRunner
from qcheck.sampling import solvers
from qcheck.sampling.sampler import Sampler, evaluate
from qcheck.sampling.setup import Setup, fed
from qcheck.sampling.store import Trace
from qcheck.spec.order import Order
from qcheck.spec.probe import Probe

STATES, DRAWS = 16, 4  # what a check spends on a case
_FILE = "scores.npz"
_ARRAYS = ("states", "strata", "weights", "parts")
_KIND = "sensitivity"
_DOMAIN = "sensitivity"  # z drawn from the seeds of the latents would be the noise that the states hold


@dataclass(frozen=True)
class LayerError:
    """What a case changes in one layer: dW [out, in, ...], and its numbers, which say how the input is rounded."""

    weight: torch.Tensor
    numbers: LayerPlan

    @property
    def rounds_input(self) -> bool:
        """Whether the layer's input is quantized."""
        return self.numbers.input is not None

    def input(self, values: torch.Tensor) -> torch.Tensor:
        """What rounding adds to an input, same shape."""
        found = self.numbers.fake_input(values)
        return (found if self.numbers.smooth is None else found / self.numbers.smooth) - values


Errors = Mapping[str, LayerError]


def errors(arms: Arms, content: QuantizedWeights) -> dict[str, LayerError]:
    """What q1 of ``content`` does otherwise than f1 of ``arms``, layer by layer: dW = weight that q1 has - f1's.

    ``content`` may be made of other adapters than ``arms`` has, as where they were calibrated: what the training moved
    is then in dW too. Of an unmerged adapter the branch counts as it is. It also reads the input as it comes, while the
    activation part counts the rounding of that input on W + D: too much, or too little, by about |D| / |W|.
    """
    whole = arms.state("adapted")
    found = {}
    for layer, numbers in content.plan.items():
        weight = numbers.fake(content.state[f"{layer}.weight"])
        if layer in content.branches:
            down, up = content.branches[layer]
            weight = weight + (up @ down.flatten(1)).view(weight.shape)
        found[layer] = LayerError(weight - whole[f"{layer}.weight"], numbers)
    return found


@dataclass(frozen=True)
class Scores:
    """<g, dW x> and <g, W dx> of every layer at every sample: ``parts`` [n, L, 2].

    A sample is one z at one state; ``states`` [n] number these, ``strata`` [n] are their timesteps as places in the
    set-up, ``weights`` [n] how much a sample counts: its stratum's squared solver coefficient among those there, all
    together 1.
    """

    layers: tuple[str, ...]
    states: np.ndarray
    strata: np.ndarray
    weights: np.ndarray
    parts: np.ndarray

    @cached_property
    def costs(self) -> np.ndarray:
        """Each layer's squared output error, weight and activation together, [L]."""
        found: np.ndarray = self.weights @ self.parts.sum(2) ** 2
        return found

    @property
    def total(self) -> float:
        """The sum of ``costs``; 1 where nothing costs anything."""
        return float(self.costs.sum()) or 1.0

    @property
    def shares(self) -> np.ndarray:
        """``costs`` as parts of their sum, [L]."""
        return self.costs / self.total

    @property
    def weight_costs(self) -> np.ndarray:
        """That of rounding weights alone, [L]. The two parts need not add up: their errors may point alike."""
        found: np.ndarray = self.weights @ self.parts[..., 0] ** 2
        return found

    @property
    def activation_costs(self) -> np.ndarray:
        """That of rounding inputs alone, [L]."""
        found: np.ndarray = self.weights @ self.parts[..., 1] ** 2
        return found

    @property
    def joint(self) -> float:
        """What all layers together cost to first order; beside the sum of ``costs`` it tells whether errors cancel."""
        return float(self.weights @ self.parts.sum((1, 2)) ** 2)

    def standard_errors(self) -> np.ndarray:
        """Of ``shares``, [L], over probes and draws: of many runs about 68 and 95 % are within 1 and 2 of the truth.

        A share is a ratio, so what counts is the spread of its residual, (cost - share * all costs) / total (Cochran,
        Sampling Techniques, section 6.3). Draws at one state are no samples of the states: the variance is that of the
        states' means, stratum by stratum, but not less than the draws say. For how few they are it is taken
        1 + 2 / df times, about the variance of Student's t, at Satterthwaite's degrees of freedom df.
        """
        squares = self.parts.sum(2) ** 2
        left = (squares - self.shares * squares.sum(1, keepdims=True)) / self.total
        within, between, doubt = np.zeros((3, len(self.layers)))
        for stratum in np.unique(self.strata):
            here = self.strata == stratum
            weight, states = self.weights[here].sum() ** 2, np.unique(self.states[here])
            spread = weight * _squared_error(np.stack([left[self.states == state].mean(0) for state in states]))
            within += weight * _squared_error(left[here])
            between += spread
            doubt += spread**2 / max(len(states) - 1, 1)
        scarce = np.divide(2 * doubt, between**2, out=np.zeros_like(doubt), where=between > 0)
        found: np.ndarray = np.sqrt(np.maximum(within, between * (1 + scarce)))
        return found

    def save(self, path: Path) -> None:
        """Write them as numpy's npz."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        np.savez(path, layers=np.array(self.layers), **arrays)

    def by_stratum(self, count: int) -> np.ndarray:
        """Unweighted mean cost of each layer at each of ``count`` strata, [count, L]; NaN where no sample is."""
        squares = self.parts.sum(2) ** 2
        rows = [squares[self.strata == place] for place in range(count)]
        return np.stack([row.mean(0) if len(row) else np.full(len(self.layers), np.nan) for row in rows])

    def grouped(self, name: Callable[[str], str]) -> dict[str, float]:
        """Costs summed over the layers that ``name`` (``block``, ``kind``) calls the same, the largest first."""
        found: dict[str, float] = {}
        for layer, cost in zip(self.layers, self.costs, strict=True):
            found[name(layer)] = found.get(name(layer), 0.0) + float(cost)
        return dict(sorted(found.items(), key=lambda item: -item[1]))


def _squared_error(rows: np.ndarray) -> np.ndarray:
    """Of the mean of ``rows`` [n, L], which spread about 0: of a single row, that has no spread, its square."""
    found: np.ndarray = rows.var(0, ddof=1) / len(rows) if len(rows) > 1 else rows[0] ** 2
    return found


def block(layer: str) -> str:
    """The part of the denoiser a layer is in: "down_blocks.1", or its first name where no number follows."""
    parts = layer.split(".")
    places = [index for index, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: places[0] + 1 if places and places[0] == 1 else 1])


def kind(layer: str) -> str:
    """What a layer does, the same in every block: the last two names without numbers ("attn1.to_q")."""
    return ".".join([part for part in layer.split(".") if not part.isdigit()][-2:])


@dataclass(frozen=True)
class EvaluationPoint:
    """A state of f1's way as the denoiser is fed it, a row for each of ``branches``; ``digest`` names it."""

    given: Mapping[str, np.ndarray]
    branches: int
    stratum: int
    digest: str


def places(weights: np.ndarray, probes: int, count: int) -> list[tuple[int, int]]:
    """About ``count`` pairs (probe, stratum): every stratum once, the rest where ``weights`` [T] make noise count most.

    A stratum's part of the variance is weight^2 / samples (Neyman's allocation); probes take turns.
    """
    counts = np.ones(len(weights), np.int64)
    for _ in range(count - len(weights)):
        gain = np.where(counts < probes, weights**2 / (counts * (counts + 1)), 0)
        if not gain.any():
            break
        counts[gain.argmax()] += 1
    return [((place + turn) % probes, place) for place, many in enumerate(counts) for turn in range(many)]


def spots(
    setup: Setup, reached: Trace, probes: Sequence[Probe], chosen: Sequence[tuple[int, int]]
) -> Iterator[EvaluationPoint]:
    """The states at ``chosen`` pairs (probe, stratum) of the reference."""
    solver, known = setup.solver(), reached.matched()
    for row, stratum in chosen:
        index = setup.strata[stratum]
        timestep = solver.timesteps[index]
        x = torch.from_numpy(reached.states()[row][stratum : stratum + 1].copy())
        conditions = setup.inputs("adapted", [probes[row]]).conditions
        given, branches = fed(setup.family, solvers.at(solver, index), x, timestep, conditions)
        yield EvaluationPoint(given, branches, stratum, f"{known[row]} {stratum}")


def score(
    arms: Arms,
    setup: Setup,
    cases: Mapping[str, Errors],
    visited: Sequence[EvaluationPoint],
    draws: int = 1,
    advance: Advance = lambda _: None,
) -> dict[str, Scores]:
    """Scores of every case, from a forward pass of f1 at each spot and a backward pass for each of ``draws`` z."""
    wanted = {name for held in cases.values() for name in held}
    layers = {name: module for name, module in plan.linear_layers(setup.family.module) if name in wanted}
    rounded = {name for held in cases.values() for name, error in held.items() if error.rounds_input}
    tap = _Tap(cases, list(layers))
    with (
        arms.held("adapted") as family,
        tapped(layers, rounded, tap.weight, tap.input),
        torch.enable_grad(),
    ):
        entry = family.entry(family.module)
        for spot in visited:
            output = entry(**{name: torch.from_numpy(value) for name, value in spot.given.items()})
            for draw in range(draws):
                tap.next()
                output.backward(cotangent(spot, output.shape, setup.guidance, draw), retain_graph=draw < draws - 1)
            advance(1)
    states = np.repeat(np.arange(len(visited)), draws)
    strata = np.array([spot.stratum for spot in visited])[states]
    weights = setup.weights[strata] / np.bincount(strata)[strata]
    weights /= weights.sum()
    return {case: Scores(tuple(held), states, strata, weights, tap.parts(case)) for case, held in cases.items()}


def cotangent(spot: EvaluationPoint, shape: Sequence[int], guidance: float, draw: int) -> torch.Tensor:
    """What z on the guided output is on the branches that it is made of, of the raw output's ``shape``."""
    seed = int(digest_of(_DOMAIN, spot.digest, str(draw)), 16) >> 1
    z = torch.randn(shape[1:], generator=torch.Generator().manual_seed(seed))
    return torch.stack([z] if spot.branches == 1 else [(1 - guidance) * z, guidance * z])


class _Tap:
    """Inner products of the gradients of each pass with the errors of every case."""

    def __init__(self, cases: Mapping[str, Errors], layers: Sequence[str]) -> None:
        self.seen: list[dict[tuple[str, str, int], torch.Tensor]] = []
        self._cases = cases
        self._weights = {name: _stacked(cases, name) for name in layers}
        self._shared: tuple[torch.Tensor, list[tuple[LayerPlan, torch.Tensor]]] | None = None

    def next(self) -> None:
        """Begin a sample."""
        self._shared = None
        self.seen.append({})

    def weight(self, layer: str, gradient: torch.Tensor) -> None:
        """As ``taps.OfWeight``."""
        names, weights = self._weights[layer]
        for name, found in zip(names, weights @ gradient.flatten(), strict=True):
            self.seen[-1][name, layer, 0] = found

    def input(self, layer: str, values: torch.Tensor, gradient: torch.Tensor) -> None:
        """As ``taps.OfInput``."""
        flat = gradient.flatten()
        for case, held in self._cases.items():
            if layer in held and held[layer].rounds_input:
                self.seen[-1][case, layer, 1] = torch.dot(flat, self._error(values, held[layer]).flatten())

    def _error(self, values: torch.Tensor, error: LayerError) -> torch.Tensor:
        """dx; layers that read the same tensor in the same numbers share it."""
        if self._shared is None or not _same(self._shared[0], values):
            self._shared = (values, [])
        known = self._shared[1]
        found = next((moved for numbers, moved in known if _alike(numbers, error.numbers)), None)
        if found is None:
            found = error.input(values)
            known.append((error.numbers, found))
        return found

    def parts(self, case: str) -> np.ndarray:
        """[n, L, 2] of a case over its own layers."""
        layers = list(self._cases[case])
        return np.array(
            [[[float(seen.get((case, layer, of), 0.0)) for of in (0, 1)] for layer in layers] for seen in self.seen]
        )


def _stacked(cases: Mapping[str, Errors], layer: str) -> tuple[list[str], torch.Tensor]:
    """The cases that have the layer, and their dW, [cases, out * in ...]."""
    names = [case for case, held in cases.items() if layer in held]
    return names, torch.stack([cases[case][layer].weight.flatten() for case in names])


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape and one.stride() == other.stride()


def _alike(one: LayerPlan, other: LayerPlan) -> bool:
    """Whether two layers round an input alike."""
    return one.smooth is None and other.smooth is None and one.input == other.input


def find(
    arms: Arms, sources: ArtifactSources, sampler: Sampler, reached: Trace, orders: Sequence[Order], watch: Stopwatch
) -> dict[Order, Scores]:
    """Scores of a scheme in ``orders``, at states of the reference ``reached``; kept in the cache.

    They are of the artifact that ships, ``making``'s, against f1. None where nothing is rounded to codes, or where
    PyTorch quantizes while it loads, by rules of its own.
    """
    if sources.scheme.control or not sources.scheme.exported:
        return {}
    pairs = places(sampler.setup.weights, len(reached.paths), STATES)
    known = reached.matched()
    at = [f"{known[row]} {stratum}" for row, stratum in pairs]
    spent = (arms.content("adapted"), *at, str(DRAWS))
    keys = {o: cache.key(__name__, sources.key(o), *spent) for o in orders}
    with sampler.store.locked(_KIND, *keys.values()):
        missing = [order for order in keys if sampler.store.find(_KIND, keys[order]) is None]
        if missing:
            cases: dict[str, Errors] = {}
            for order in missing:
                content = artifact.adapted_content(sources.arms, sources.scheme, sources.recipe, order, sources.ranges)
                cases[order] = errors(arms, content)
            with watch.stage(f"{sources.scheme.name}: sensitivity", len(pairs)) as advance:
                visited = list(spots(sampler.setup, reached, sampler.probes, pairs))
                scored = score(arms, sampler.setup, cases, visited, DRAWS, advance)
            for order in missing:
                with sampler.store.put(_KIND, keys[order], f"{sources.scheme.name} {order}") as folder:
                    scored[order].save(folder / _FILE)
    return {order: load(sampler.store.obtain(_KIND, key, "", _absent) / _FILE) for order, key in keys.items()}


def _absent(folder: Path) -> None:
    raise FileNotFoundError(f"{folder} vanished while it was being used")


def load(path: Path) -> Scores:
    """What ``Scores.save`` wrote."""
    with np.load(path) as stored:
        return Scores(tuple(map(str, stored["layers"])), *(stored[name] for name in _ARRAYS))


def exact(
    arms: Arms,
    setup: Setup,
    held: Errors,
    reached: Trace,
    probes: Sequence[Probe],
    advance: Advance = lambda _: None,
) -> np.ndarray:
    """Squared change of the guided output when one layer alone is quantized, [L, probes, strata], at f1's states.

    A forward for each layer and state. The last row, L + 1, is the cost of all layers at once.
    """
    conditions, states = setup.inputs("adapted", probes).conditions, np.stack(reached.states()[: len(probes)])
    model = setup.family.module

    def output(chosen: Errors) -> np.ndarray:
        with arms.held("adapted") as family, disturbed(model, chosen):
            runner = TorchRunner(family.entry(model))
            found = evaluate(setup, runner, conditions, states, lambda _: None).astype(np.float64)
        advance(1)
        return found

    whole = output({})
    rows = [*({layer: error} for layer, error in held.items()), held]
    return np.stack([((output(chosen) - whole) ** 2).sum((2, 3, 4)) for chosen in rows])


@contextmanager
def disturbed(model: nn.Module, held: Errors) -> Iterator[None]:
    """``model`` with the errors of ``held`` in its layers; then as it was."""
    handles: list[Any] = []
    weights: dict[str, torch.Tensor] = {}
    try:
        for layer, error in held.items():
            module = model.get_submodule(layer)
            weights[layer] = module.get_parameter("weight").data
            module.get_parameter("weight").data = weights[layer] + error.weight
            if error.rounds_input:
                handles.append(module.register_forward_pre_hook(_move(error)))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for layer, weight in weights.items():
            model.get_submodule(layer).get_parameter("weight").data = weight


def _move(error: LayerError) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]:
    def move(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (inputs[0] + error.input(inputs[0]), *inputs[1:])

    return move
