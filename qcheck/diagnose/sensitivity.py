"""The sensitivity of layers: the change of the guided output when one layer alone is rounded, by one backward pass.

With y the guided output, J a layer's Jacobian and e the error of that layer's output in a case, the layer's cost is
|J e|^2. For z ~ N(0, I) and g = d<z, y>/d(layer output), <g, e>^2 has that mean (Gauss-Newton; Hutchinson's trick). As
<g, dW x> = <G, dW> with G the gradient of the layer's weight, and <g, W dx> = <W^T g, dx>, one pass serves all layers,
all schemes and both kinds of error.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from qcheck.core import cache
from qcheck.core.digest import digest_of
from qcheck.core.progress import Advance, Stopwatch
from qcheck.diagnose import scores
from qcheck.diagnose.hooks import tapped
from qcheck.diagnose.kept import Kept
from qcheck.diagnose.layer_errors import Errors, LayerError, errors
from qcheck.diagnose.scores import Scores
from qcheck.model.arms import Arms
from qcheck.model.device import Device
from qcheck.model.family import Family
from qcheck.model.stored import Weight, place, product, weight_of, whole
from qcheck.quantize import plan
from qcheck.quantize.artifact import ArtifactSources
from qcheck.quantize.plan import LayerPlan
from qcheck.runtime.rows import ran_out, too_large
from qcheck.sampling import solvers, subject
from qcheck.sampling.sampler import Sampler, evaluate
from qcheck.sampling.setup import Setup, combined, fed
from qcheck.sampling.store import Trace
from qcheck.spec.order import Order
from qcheck.spec.probe import Probe

STATES, DRAWS = 16, 4  # the states, and draws of z at each, for one case of a check
_FILE = "scores.npz"
_KIND = "sensitivity"
_DOMAIN = "sensitivity"  # z must not repeat the noise of the latents, which have seeds of their own


@dataclass(frozen=True)
class EvaluationPoint:
    """A state of f1 as the denoiser's inputs, ``given``, a row for each of ``branches``; ``digest`` identifies it."""

    given: Mapping[str, np.ndarray]
    branches: int
    stratum: int
    digest: str


def places(weights: np.ndarray, probes: int, count: int) -> list[tuple[int, int]]:
    """About ``count`` pairs (probe, stratum): each stratum once, the rest where they reduce the variance most.

    A stratum of ``weights`` [T] adds weight^2 / samples to the variance (Neyman's allocation); probes take turns.
    """
    counts = np.ones(len(weights), np.int64)
    for _ in range(count - len(weights)):
        gain = np.where(counts < probes, weights**2 / (counts * (counts + 1)), 0)
        if not gain.any():
            break
        counts[gain.argmax()] += 1
    return [((place + turn) % probes, place) for place, many in enumerate(counts) for turn in range(many)]


def spots(
    setup: Setup, reference: Trace, probes: Sequence[Probe], pairs: Sequence[tuple[int, int]]
) -> Iterator[EvaluationPoint]:
    """The states of the reference at ``pairs`` of probe and stratum."""
    digests = reference.matched()
    for row, stratum in pairs:
        index = setup.strata[stratum]
        solver = solvers.walk(setup.solver(), 0, index)
        timestep = solver.timesteps[index]
        x = torch.from_numpy(reference.states()[row][stratum : stratum + 1].copy())
        conditions = setup.inputs("adapted", [probes[row]]).conditions
        inputs, branches = fed(setup.family, solver, x, timestep, conditions)
        yield EvaluationPoint(inputs, branches, stratum, f"{digests[row]} {stratum}")


def score(
    arms: Arms,
    setup: Setup,
    cases: Mapping[str, Errors],
    points: Sequence[EvaluationPoint],
    draws: int = 1,
    advance: Advance = lambda _: None,
) -> dict[str, Scores]:
    """Scores of every case, by a forward pass of f1 at each point and a backward pass for each of ``draws`` z."""
    names = {name for case_errors in cases.values() for name in case_errors}
    layers = {name: module for name, module in plan.linear_layers(arms.computing.denoiser) if name in names}
    products = _InnerProducts(cases, layers, arms.device)
    size = max((point.branches for point in points), default=1)
    with arms.running("adapted") as family:
        raw = [_raw(arms, family, point) for point in points]
        with tapped(layers, products), torch.enable_grad():
            passes = _Passes(family.entry(family.module), setup, draws, products, arms.device)
            for point, output in zip(points, raw, strict=True):
                size = passes.run(point, size, output)
                advance(1)
    states = np.repeat(np.arange(len(points)), draws)
    strata = np.array([point.stratum for point in points])[states]
    weights = setup.weights[strata] / np.bincount(strata)[strata]
    weights /= weights.sum()
    return {
        case: Scores(tuple(case_errors), states, strata, weights, products.parts(case))
        for case, case_errors in cases.items()
    }


def _raw(arms: Arms, family: Family, point: EvaluationPoint) -> torch.Tensor | None:
    """The raw output of a point, where the direction of its gradient depends on it; else None."""
    if not family.tile or point.branches == 1:
        return None
    return torch.from_numpy(subject.runner(arms, family.module)(point.given))


@dataclass(frozen=True)
class _Passes:
    """Forward and backward passes of a denoiser's ``entry`` on ``device``, whose gradients go to ``products``."""

    entry: nn.Module
    setup: Setup
    draws: int
    products: "_InnerProducts"
    device: Device

    def run(self, point: EvaluationPoint, size: int, raw: torch.Tensor | None) -> int:
        """All passes of a point, ``size`` rows at a time or, where memory runs out, fewer; returns how many it took.

        Raises:
            UserError: the gradient of one row does not fit.
        """
        while True:
            self.products.begin(self.draws)
            try:
                for start in range(0, point.branches, size):
                    self._rows(point, slice(start, start + size), raw)
            except (RuntimeError, MemoryError) as error:
                if not ran_out(error):
                    raise
                if size == 1:
                    raise too_large("the gradient of one row", self.device.name, error) from error
            else:
                return size
            self.products.undo(self.draws)
            self.device.release()
            size //= 2

    def _rows(self, point: EvaluationPoint, rows: slice, raw: torch.Tensor | None) -> None:
        """One forward of some rows of a point, and a backward for each draw."""
        setup, device = self.setup, self.device.torch
        inputs = {name: value if name in setup.family.fixed else value[rows] for name, value in point.given.items()}
        output = self.entry(**{name: torch.from_numpy(value).to(device) for name, value in inputs.items()})
        for draw in range(self.draws):
            self.products.take(draw - self.draws)
            direction = cotangent(point, (point.branches, *output.shape[1:]), setup.guidance, draw)
            if raw is not None:
                direction = through_rescaling(direction, raw, setup.guidance, setup.family.tile)
            output.backward(direction[rows].to(device), retain_graph=draw < self.draws - 1)


def cotangent(point: EvaluationPoint, shape: Sequence[int], guidance: float, draw: int) -> torch.Tensor:
    """The cotangent of the raw output, of ``shape``: that of <z, guided output> on the branches of guidance."""
    seed = int(digest_of(_DOMAIN, point.digest, str(draw)), 16) >> 1
    z = torch.randn(shape[1:], generator=torch.Generator().manual_seed(seed))
    return torch.stack([z] if point.branches == 1 else [(1 - guidance) * z, guidance * z])


def through_rescaling(direction: torch.Tensor, raw: torch.Tensor, guidance: float, tile: int) -> torch.Tensor:
    """The cotangent of raw outputs [2, C, h, w] of <z, rescaled guided output>, from that without rescaling."""
    z = direction.sum(0, keepdim=True)  # the weights of the branches add up to 1
    given = raw.detach().requires_grad_()
    (through,) = torch.autograd.grad(combined(given, 2, guidance, tile), given, z)
    return through


class _InnerProducts:
    """Inner products of the gradients of each backward pass with the errors of every case.

    That of dL/dW with dW is one of dL/dy with dW x. One forward pass gives dW x and dx for all cotangents of a point. A
    sample is one tensor with a place for each product: a tensor for each, kept between gradients that are freed, would
    leave holes that no gradient fits in.
    """

    def __init__(self, cases: Mapping[str, Errors], layers: Mapping[str, nn.Module], device: Device) -> None:
        keys = [(case, layer, kind) for case, by_layer in cases.items() for layer in by_layer for kind in (0, 1)]
        self._places = {key: place for place, key in enumerate(keys)}
        self.samples: list[torch.Tensor] = []
        self._cases, self._layers, self._device = cases, layers, device.torch
        self._errors = Kept(self._weight_errors, device)
        self._sample = torch.empty(0)
        self._shared: tuple[torch.Tensor, list[tuple[LayerPlan, torch.Tensor]]] | None = None

    def begin(self, draws: int) -> None:
        """Begin a sample for each draw of a point."""
        self._shared = None
        self.samples += [torch.zeros(len(self._places), device=self._device) for _ in range(draws)]

    def undo(self, draws: int) -> None:
        """Forget the samples of the last point."""
        del self.samples[-draws:]
        self._shared = None

    def take(self, place: int) -> None:
        """What follows is of the sample at that index; samples of several passes are sums."""
        self._sample = self.samples[place]

    def _add(self, key: tuple[str, str, int], product: torch.Tensor) -> None:
        self._sample[self._places[key]] += product

    def enter(self, layer: str, inputs: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """As ``hooks.Taps``: dW x and, where the input is rounded, dx, of every case that quantizes the layer."""
        of_layer = [self._cases[case][layer] for case in self._cases_of(layer)]
        return [
            (product(self._layers[layer], inputs, change, None), self._error(inputs, e) if e.rounds_input else None)
            for change, e in zip(self._errors[layer], of_layer, strict=True)
        ]

    def leave(
        self,
        layer: str,
        kept: list[tuple[torch.Tensor, torch.Tensor | None]],
        gradient: torch.Tensor,
        of_inputs: torch.Tensor,
    ) -> None:
        """As ``hooks.Taps``: adds <dL/dy, dW x> and <W^T dL/dy, dx> of every case."""
        for case, (changed, rounded) in zip(self._cases_of(layer), kept, strict=True):
            self._add((case, layer, 0), torch.dot(gradient.flatten(), changed.flatten()))
            if rounded is not None:
                self._add((case, layer, 1), torch.dot(of_inputs.flatten(), rounded.flatten()))

    def _cases_of(self, layer: str) -> list[str]:
        """The cases that quantize the layer."""
        return [case for case, by_layer in self._cases.items() if layer in by_layer]

    def _weight_errors(self, layer: str) -> torch.Tensor:
        """The dW of those cases, [cases, out, in, ...]."""
        rows = [self._cases[case][layer].weight() for case in self._cases_of(layer)]
        return torch.stack(rows) if len(rows) > 1 else rows[0][None]  # of one case without another copy

    def _error(self, values: torch.Tensor, error: LayerError) -> torch.Tensor:
        """dx, computed once for layers that round the same tensor alike."""
        if self._shared is None or not _same_view(self._shared[0], values):
            self._shared = (values, [])
        cached = self._shared[1]
        change = next((change for numbers, change in cached if _rounds_alike(numbers, error.numbers)), None)
        if change is None:
            change = error.input(values)
            cached.append((error.numbers, change))
        return change

    def parts(self, case: str) -> np.ndarray:
        """The ``parts`` [n, L, 2] of ``Scores`` of a case, over its own layers."""
        layers = list(self._cases[case])
        places = [self._places[case, layer, kind] for layer in layers for kind in (0, 1)]
        rows = torch.stack(self.samples)[:, places].double().cpu().numpy()
        return rows.reshape(len(rows), len(layers), 2)


def _same_view(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()


def _rounds_alike(a: LayerPlan, b: LayerPlan) -> bool:
    """Whether two layers round an input alike."""
    return a.smooth is None and b.smooth is None and a.input == b.input


def find(
    arms: Arms, sources: ArtifactSources, sampler: Sampler, reference: Trace, orders: Sequence[Order], watch: Stopwatch
) -> dict[Order, Scores]:
    """Scores of a scheme in ``orders``, at states of the ``reference`` f1; cached.

    They compare the artifact that ``sources`` give with f1. Empty where nothing is rounded to codes, or where PyTorch
    quantizes while it loads the model, by rules of its own.
    """
    if sources.scheme.control or not sources.scheme.exported:
        return {}
    pairs = places(sampler.setup.weights, len(reference.paths), STATES)
    digests = reference.matched()
    state_digests = [f"{digests[row]} {stratum}" for row, stratum in pairs]
    identity = (arms.content("adapted"), arms.device.title, *state_digests, str(DRAWS))
    keys = {o: cache.key(__name__, sources.key(o), *identity) for o in orders}
    with sampler.store.locked(_KIND, *keys.values()):
        missing = [order for order in keys if sampler.store.find(_KIND, keys[order]) is None]
        if missing:
            cases: dict[str, Errors] = {}
            for order in missing:
                cases[order] = errors(arms, sources.content(order))
            with watch.stage(f"{sources.scheme.name}: sensitivity", len(pairs)) as advance:
                points = list(spots(sampler.setup, reference, sampler.probes, pairs))
                results = score(arms, sampler.setup, cases, points, DRAWS, advance)
            arms.device.release()
            for order in missing:
                with sampler.store.put(_KIND, keys[order], f"{sources.scheme.name} {order}") as folder:
                    results[order].save(folder / _FILE)
    return {order: scores.load(sampler.store.obtain(_KIND, key, "", _absent) / _FILE) for order, key in keys.items()}


def _absent(folder: Path) -> None:
    raise FileNotFoundError(f"{folder} vanished while it was being used")


def exact(
    arms: Arms,
    setup: Setup,
    layer_errors: Errors,
    reference: Trace,
    probes: Sequence[Probe],
    advance: Advance = lambda _: None,
) -> np.ndarray:
    """Squared change of the guided output when one layer alone is quantized, [L + 1, probes, strata], at f1's states.

    It takes a forward for each layer and state. The last row is the cost of all layers at once.
    """
    conditions, states = setup.inputs("adapted", probes).conditions, np.stack(reference.states()[: len(probes)])

    def output(subset: Errors) -> np.ndarray:
        with arms.running("adapted") as family, disturbed(family.module, subset):
            runner = subject.runner(arms, family.module)
            outputs = evaluate(setup, runner, conditions, states, lambda _: None).astype(np.float64)
        advance(1)
        return outputs

    undisturbed = output({})
    rows = [*({layer: error} for layer, error in layer_errors.items()), layer_errors]
    return np.stack([((output(subset) - undisturbed) ** 2).sum((2, 3, 4)) for subset in rows])


@contextmanager
def disturbed(model: nn.Module, layer_errors: Errors) -> Iterator[None]:
    """While open, ``model`` computes with ``layer_errors`` in its layers."""
    handles: list[Any] = []
    weights: dict[str, Weight] = {}
    try:
        for layer, error in layer_errors.items():
            module = model.get_submodule(layer)
            weights[layer] = weight_of(module)
            place(module, Weight(whole(module).detach() + error.weight()))
            if error.rounds_input:
                handles.append(module.register_forward_pre_hook(_input_error_hook(error)))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for layer, weight in weights.items():
            place(model.get_submodule(layer), weight)


def _input_error_hook(error: LayerError) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]:
    def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (inputs[0] + error.input(inputs[0]), *inputs[1:])

    return hook
