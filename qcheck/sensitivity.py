"""Which layers carry the gap: what rounding each of them alone does to the guided output, from one backward pass.

With y the guided output, J a layer's Jacobian and e what a case changes in that layer's output, the layer's cost is
|J e|^2. For z ~ N(0, I) and g = d<z, y>/d(layer output), <g, e>^2 has that mean (Gauss-Newton; Hutchinson's trick). As
<g, dW x> = <G, dW> with G the gradient of the layer's weight, and <g, W dx> = <W^T g, dx>, one pass serves all layers,
all schemes and both kinds of error.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from qcheck import files, solvers, trace
from qcheck.artifact import Content
from qcheck.backend.torch import TorchRunner
from qcheck.model.arms import Arms
from qcheck.model.taps import tapped
from qcheck.probe import Probe
from qcheck.quantize import plan
from qcheck.quantize.plan import LayerPlan
from qcheck.trace import Setup, Trace

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
        """dx of an input, same shape."""
        found = self.numbers.fake_input(values)
        return (found if self.numbers.smooth is None else found / self.numbers.smooth) - values


Errors = Mapping[str, LayerError]


def errors(arms: Arms, content: Content) -> dict[str, LayerError]:
    """What a quantized arm changes in f1, layer by layer: the codes and order are the artifact's own.

    An unmerged adapter is exact beside its rounded base weight. Its branch also reads the input as it comes, while the
    activation part counts the rounding of that input on W + D: too much, or too little, by about |D| / |W|.
    """
    base, adapted = arms.state("base"), arms.state("adapted")
    found = {}
    for layer, numbers in content.plan.items():
        name = f"{layer}.weight"
        whole = (base if layer in content.branches else adapted)[name]
        found[layer] = LayerError(numbers.fake(content.state[name]) - whole, numbers)
    return found


@dataclass(frozen=True)
class Scores:
    """<g, dW x> and <g, W dx> of every layer at every sample: ``parts`` [n, L, 2].

    A sample is one z at one state; ``strata`` [n] are the states' timesteps as places in the set-up, ``weights`` [n]
    how much a sample counts: its stratum's squared solver coefficient, all samples together 1.
    """

    layers: tuple[str, ...]
    strata: np.ndarray
    weights: np.ndarray
    parts: np.ndarray

    @cached_property
    def costs(self) -> np.ndarray:
        """Each layer's share of the squared output error, weight and activation together, [L]."""
        found: np.ndarray = self.weights @ self.parts.sum(2) ** 2
        return found

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
        """Of ``costs``, [L], over the samples."""
        apart = self.parts.sum(2) ** 2 - self.costs
        found: np.ndarray = np.sqrt((self.weights**2) @ apart**2)
        return found

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


def block(layer: str) -> str:
    """The part of the denoiser a layer is in: its name up to the first number ("down_blocks.1"), or to the first dot."""
    parts = layer.split(".")
    places = [index for index, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: places[0] + 1 if places and places[0] == 1 else 1])


def kind(layer: str) -> str:
    """What a layer does, the same in every block: the last two names without numbers ("attn1.to_q")."""
    return ".".join([part for part in layer.split(".") if not part.isdigit()][-2:])


@dataclass(frozen=True)
class Spot:
    """A state of f1's way as the denoiser is fed it, a row for each of ``branches``; ``digest`` names it."""

    given: Mapping[str, np.ndarray]
    branches: int
    stratum: int
    digest: str


def places(probes: int, strata: int, count: int) -> list[tuple[int, int]]:
    """``count`` different pairs (probe, stratum), as even over both as it goes."""
    lap = math.lcm(probes, strata)
    return [(index % probes, (index + index // lap) % strata) for index in range(min(count, probes * strata))]


def spots(
    setup: Setup, reached: Trace, probes: Sequence[Probe], chosen: Sequence[tuple[int, int]]
) -> Iterator[Spot]:
    """The states at ``chosen`` pairs (probe, stratum) of the reference."""
    solver, known = setup.solver(), reached.matched()
    for row, stratum in chosen:
        index = setup.strata[stratum]
        timestep = solver.timesteps[index]
        x = torch.from_numpy(reached.states()[row][stratum : stratum + 1].copy())
        conditions = setup.inputs("adapted", [probes[row]]).conditions
        given, branches = trace.fed(setup.family, solvers.at(solver, index), x, timestep, conditions)
        yield Spot(given, branches, stratum, f"{known[row]} {stratum}")


def score(
    arms: Arms,
    setup: Setup,
    cases: Mapping[str, Errors],
    visited: Sequence[Spot],
    draws: int = 1,
    advance: trace.Advance = lambda _: None,
) -> dict[str, Scores]:
    """Scores of every case, from one forward and backward pass of f1 for each of ``draws`` z at each spot."""
    entry = arms.entry("adapted")
    layers = {name: module for name, module in plan.linear_layers(setup.family.module) if _any(cases, name)}
    names = tuple(layers)
    found = {case: np.zeros((len(visited) * draws, len(names), 2)) for case in cases}
    tap = _Tap(cases, found, {name: place for place, name in enumerate(names)})
    rounded = {name for held in cases.values() for name, error in held.items() if error.rounds_input}
    with tapped(layers, rounded, tap.weight, tap.input):
        for spot in visited:
            for draw in range(draws):
                _probe(entry, spot, setup.guidance, draw)
                tap.next()
                advance(1)
    strata = np.repeat([spot.stratum for spot in visited], draws)
    weights = setup.weights[strata] / setup.weights[strata].sum()
    return {case: _of(names, cases[case], strata, weights, parts) for case, parts in found.items()}


def _any(cases: Mapping[str, Errors], layer: str) -> bool:
    return any(layer in held for held in cases.values())


def _of(names: Sequence[str], held: Errors, strata: np.ndarray, weights: np.ndarray, parts: np.ndarray) -> Scores:
    """Without the layers that the case does not quantize."""
    kept = [place for place, name in enumerate(names) if name in held]
    return Scores(tuple(names[place] for place in kept), strata, weights, parts[:, kept])


def _probe(entry: nn.Module, spot: Spot, guidance: float, draw: int) -> None:
    """Run one z backward through the guided output."""
    with torch.enable_grad():
        output = entry(**{name: torch.from_numpy(value) for name, value in spot.given.items()})
        seed = int(files.digest(_DOMAIN, spot.digest, str(draw)), 16) >> 1
        z = torch.randn(output.shape[1:], generator=torch.Generator().manual_seed(seed))
        rows = [z] if spot.branches == 1 else [(1 - guidance) * z, guidance * z]  # negative + w (positive - negative)
        output.backward(torch.stack(rows))


class _Tap:
    """Inner products of the gradients of one pass with the errors of every case."""

    def __init__(self, cases: Mapping[str, Errors], found: Mapping[str, np.ndarray], place: Mapping[str, int]) -> None:
        self._cases, self._found, self._place = cases, found, place
        self._sample = 0
        self._shared: tuple[torch.Tensor, list[tuple[LayerPlan, torch.Tensor]]] | None = None

    def next(self) -> None:
        """Go to the next sample."""
        self._sample, self._shared = self._sample + 1, None

    def weight(self, layer: str, gradient: torch.Tensor) -> None:
        """As ``taps.OfWeight``."""
        flat = gradient.flatten()
        for case, held in self._cases.items():
            if layer in held:
                self._found[case][self._sample, self._place[layer], 0] = torch.dot(flat, held[layer].weight.flatten())

    def input(self, layer: str, values: torch.Tensor, gradient: torch.Tensor) -> None:
        """As ``taps.OfInput``."""
        flat = gradient.flatten()
        for case, held in self._cases.items():
            if layer in held and held[layer].rounds_input:
                moved = self._error(values, held[layer])
                self._found[case][self._sample, self._place[layer], 1] = torch.dot(flat, moved.flatten())

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


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape and one.stride() == other.stride()


def _alike(one: LayerPlan, other: LayerPlan) -> bool:
    """Whether two layers round an input alike."""
    return one.smooth is None and other.smooth is None and one.input == other.input


def exact(
    arms: Arms,
    setup: Setup,
    held: Errors,
    reached: Trace,
    probes: Sequence[Probe],
    advance: trace.Advance = lambda _: None,
) -> np.ndarray:
    """Squared change of the guided output when one layer alone is quantized, [L, probes, strata], at f1's states.

    A forward for each layer and state. The last row, L + 1, is the cost of all layers at once.
    """
    conditions, states = setup.inputs("adapted", probes).conditions, np.stack(reached.states()[: len(probes)])
    runner, model = TorchRunner(arms.entry("adapted")), setup.family.module

    def output(chosen: Errors) -> np.ndarray:
        with disturbed(model, chosen):
            found = trace.ask(setup, runner, conditions, states, lambda _: None).astype(np.float64)
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
