"""The sensitivity score beside what it stands for: each layer of the demo's denoiser quantized alone.

``python -m benchmarks.sensitivity`` takes the adapter "flat" merged into the demo's base and quantizes under four
schemes each layer alone, then all, at two probes x eight timesteps (13 400 denoiser calls). Beside it stand our score
with 1, 2 and 4 draws a state and the score of NVIDIA ModelOpt's ``auto_quantize`` (its formula, sum of (g * dy)^2
elementwise, on our draws, which do better in it than a task's loss). Costs are medians of passes interleaved with
forwards of the same state (``--cost``: time it beside nothing else).

``--coverage``: do the stated standard errors hold? It draws 16 z at each of 24 probes x 8 timesteps once, then makes
many checks of 8 probes and a few draws each from them, and counts how often the shares of the six largest layers
are within 1 and 2 of their standard errors of what all draws together say. About seven minutes.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn

from qcheck.api.request import check_spec
from qcheck.core import cache
from qcheck.core.cache import Cache
from qcheck.core.progress import Silent
from qcheck.diagnose import scores, sensitivity
from qcheck.diagnose.hooks import tapped
from qcheck.diagnose.sensitivity import Errors, EvaluationPoint
from qcheck.quantize import contents
from qcheck.spec.check import CheckSpec
from qcheck.tasks import session
from qcheck.tasks.session import Session

SCHEMES = ("int8", "fp8", "int4-g128", "nf4-g64")
DRAWS = (1, 2, 4)


def asked(adapter: str, threads: int, probes: int) -> CheckSpec:
    """A check of one of the demo's adapters."""
    return check_spec(
        "demo",
        adapter,
        scheme=list(SCHEMES),
        target="jetson-thor-t5000",
        max_probes=probes,
        build=False,
        threads=threads,
    )


def modelopt(started: Session, held: Errors, spots: list[EvaluationPoint], draws: int) -> np.ndarray:
    """ModelOpt's gradient score of every layer, [samples, L]: sum over the layer's output of (g * dy)^2."""
    family = started.sampler.setup.family
    entry, model = family.entry(family.module), family.module
    found, seen = np.zeros((len(spots) * draws, len(held))), dict[str, float]()

    def watch(layer: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        def after(module: nn.Module, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            inputs = given[0].detach()

            def back(gradient: torch.Tensor) -> None:
                with torch.no_grad(), sensitivity.disturbed(model, {layer: held[layer]}):
                    moved = type(module).forward(module, inputs + _rounded(held[layer], inputs))
                seen[layer] = float((gradient * (moved - output.detach())).square().sum())

            output.register_hook(back)

        return after

    handles = [model.get_submodule(layer).register_forward_hook(watch(layer)) for layer in held]
    layers = {layer: model.get_submodule(layer) for layer in held}
    with tapped(layers, _Nothing()), torch.enable_grad():
        for place, (spot, draw) in enumerate(itertools.product(spots, range(draws))):
            given = {name: torch.from_numpy(value) for name, value in spot.given.items()}
            output = entry(**given)
            output.backward(sensitivity.cotangent(spot, output.shape, started.sampler.setup.guidance, draw))
            found[place] = [seen.get(layer, 0.0) for layer in held]
    for handle in handles:
        handle.remove()
    return found


class _Nothing:
    """Taps that make every layer's output need a gradient, and read none."""

    def enter(self, layer: str, inputs: torch.Tensor) -> None:
        """As ``hooks.Taps``."""

    def leave(self, layer: str, kept: None, gradient: torch.Tensor, *_: torch.Tensor) -> None:
        """As ``hooks.Taps``."""


def _rounded(error: sensitivity.LayerError, inputs: torch.Tensor) -> torch.Tensor:
    return error.input(inputs) if error.rounds_input else torch.zeros(())


def cost(
    started: Session, cases: Mapping[str, Errors], spots: list[EvaluationPoint], draws: int, rounds: int
) -> tuple[float, float]:
    """Forward-equivalents of a draw, of a pass for all ``cases``, and of one with hooks of a single case."""
    entry = started.sampler.setup.family.entry(started.sampler.setup.family.module)

    def forward() -> float:
        start = time.perf_counter()
        with torch.no_grad():
            entry(**{name: torch.from_numpy(value) for name, value in spots[0].given.items()})
        return time.perf_counter() - start

    def passes(chosen: Mapping[str, Errors]) -> float:
        start = time.perf_counter()
        sensitivity.score(started.arms, started.sampler.setup, chosen, spots[:4], draws)
        return (time.perf_counter() - start) / 4 / draws

    first = dict(list(cases.items())[:1])
    bare, every, one = [], [], []
    forward()
    for _ in range(rounds):
        bare += [forward() for _ in range(8)]
        every.append(passes(cases))
        bare += [forward() for _ in range(8)]
        one.append(passes(first))
    return statistics.median(every) / statistics.median(bare), statistics.median(one) / statistics.median(bare)


def coverage(started: Session, cases: Mapping[str, Errors], spots: list[EvaluationPoint], runs: int) -> None:
    """Print how shares vary from run to run beside the standard errors that they state; ``spots`` are all there are."""
    strata, probes, pool = len(started.sampler.setup.strata), started.spec.limits.looks[0], 16
    known = sensitivity.score(started.arms, started.sampler.setup, cases, spots, pool, Bar(len(spots)))
    solver, rng = started.sampler.setup.weights / started.sampler.setup.weights.sum(), np.random.default_rng(0)
    chosen = sensitivity.places(started.sampler.setup.weights, probes, sensitivity.STATES)
    for (name, known_scores), draws in itertools.product(known.items(), (2, sensitivity.DRAWS, 8)):
        every = known_scores.parts.reshape(-1, strata, pool, len(known_scores.layers), 2)
        costs = solver @ (every.sum(4) ** 2).mean((0, 2))
        top = np.argsort(-costs)[:6]
        truth, found, stated = (costs / costs.sum())[top], [], []
        for _ in range(runs):
            asked = rng.integers(0, len(every), probes)
            parts = [every[asked[row], stratum][rng.choice(pool, draws, False)] for row, stratum in chosen]
            made = _scores(
                known_scores.layers, np.concatenate(parts), [stratum for _, stratum in chosen], draws, solver
            )
            found.append(made.shares[top])
            stated.append(made.standard_errors()[top])
        off = np.abs(np.array(found) - truth) / np.array(stated)
        print(
            f"{name}, {len(chosen)} states x {draws} draws: within 1 stated standard error {(off < 1).mean():.0%}, "
            f"within 2 {(off < 2).mean():.0%}; the largest share is {truth[0]:.1%}, from run to run "
            f"+-{np.std(found, axis=0)[0]:.1%}, stated +-{np.mean(stated, axis=0)[0]:.1%}",
            flush=True,
        )


def _scores(
    layers: tuple[str, ...], parts: np.ndarray, places: list[int], draws: int, solver: np.ndarray
) -> scores.Scores:
    """Those of one run, ``parts`` [states * draws, L, 2] at strata ``places``."""
    states, strata = np.repeat(np.arange(len(places)), draws), np.repeat(places, draws)
    return scores.Scores(layers, states, strata, (solver / np.bincount(strata))[strata], parts)


class Bar:
    """Tells how far a long stage is."""

    def __init__(self, total: int) -> None:
        self._done, self._total = 0, total

    def __call__(self, step: int) -> None:
        """Another ``step`` of them are done."""
        self._done += step
        if self._done % 16 == 0:
            print(f"{self._done} of {self._total} states", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapter", default="flat")
    parser.add_argument("--probes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cost", action="store_true", help="time it, and nothing else")
    parser.add_argument("--coverage", action="store_true", help="whether standard errors hold, and nothing else")
    parser.add_argument("--runs", type=int, default=600, help="of --coverage")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    probes = 24 if options.coverage else 8
    with session.opened(asked(options.adapter, options.threads, probes), Cache(cache.location()), Silent()) as started:
        _measure(started, options, probes)


def _measure(started: Session, options: argparse.Namespace, probes: int) -> None:
    reached, setup = started.reference.take(probes)["adapted"], started.sampler.setup
    cases = {}
    for chosen in started.spec.schemes:
        inputs = started.calibrator.inputs(chosen)
        content = contents.of_adapted(started.arms, chosen, started.spec.recipe, "merge-quantize", inputs)
        cases[chosen.name] = sensitivity.errors(started.arms, content)
    pairs = list(itertools.product(range(probes if options.coverage else options.probes), range(len(setup.strata))))
    spots = list(sensitivity.spots(setup, reached, started.sampler.probes, pairs))
    if options.coverage:
        coverage(started, {name: cases[name] for name in ("int8", "int4-g128")}, spots, options.runs)
        return
    for draws in DRAWS if options.cost else ():
        with started.arms.held("adapted"):
            every, one = cost(started, cases, spots, draws, 7)
        print(f"{draws} draws a state: {every:.2f} forwards a draw for all of {', '.join(cases)}; {one:.2f} for one")
    if options.cost:
        return
    scores = {draws: sensitivity.score(started.arms, setup, cases, spots, draws) for draws in DRAWS}
    solver = setup.weights / setup.weights.sum()
    even = np.full(len(solver), 1 / len(solver))
    for name, held in cases.items():
        exact = sensitivity.exact(started.arms, setup, held, reached, started.sampler.probes[: options.probes]).mean(1)
        with started.arms.held("adapted"):
            rival = modelopt(started, held, spots, 1)
        for kind, weights in (("even", even), ("solver", solver)):
            alone, whole = exact[:-1] @ weights, float(exact[-1] @ weights)
            ranks = [_rank(scores[draws][name], weights, alone) for draws in DRAWS]
            strata = np.array([stratum for _, stratum in pairs])
            theirs = spearmanr(weights[strata] @ rival, alone).statistic
            best = scores[DRAWS[-1]][name]
            print(
                f"{name} ({len(held)} layers), {kind} weights: Spearman "
                + " / ".join(f"{rank:.3f}" for rank in ranks)
                + f" with {' / '.join(map(str, DRAWS))} draws, ModelOpt's {theirs:.3f} with 1; "
                f"sum of single costs / whole {alone.sum() / whole:.2f}, "
                f"of scores {_costs(best, weights).sum() / whole:.2f}",
                flush=True,
            )


def _costs(scores: scores.Scores, weights: np.ndarray) -> np.ndarray:
    return (weights[scores.strata] / np.bincount(scores.strata)[scores.strata]) @ scores.parts.sum(2) ** 2


def _rank(scores: scores.Scores, weights: np.ndarray, alone: np.ndarray) -> float:
    found: float = spearmanr(_costs(scores, weights), alone).statistic
    return found


if __name__ == "__main__":
    main()
