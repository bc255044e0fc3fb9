"""How well an adapter's change of a weight is aligned with what its layer reads.

With D the change [out, in, ...] and x the inputs of f1, the alignment is the energy of D x over what a change of the
same size in random directions would make of the same inputs: |D x|^2 n / (|D|^2 |x|^2) for a linear layer of n inputs.
Rounding noise is close to random, so at a layer's output the change stands over that noise by its delta_snr plus the
alignment in dB: training aims at what is there, and weights alone make a faint adapter look fainter than it is.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from qcheck.core import cache
from qcheck.core.progress import Stopwatch
from qcheck.measure.sample import decibels
from qcheck.model.arms import Arms
from qcheck.sampling import subject
from qcheck.sampling.sampler import Sampler
from qcheck.sampling.setup import forwards
from qcheck.sampling.store import Trace

PROBES = 2  # at all their strata
_FILE = "alignment.json"


def energies(layer: nn.Module, change: torch.Tensor, inputs: torch.Tensor) -> tuple[float, float]:
    """Energy of what ``change`` [out, in, ...] makes of a layer's ``inputs``, and what a random one of its size would.

    The second is exact in the mean over changes with independent entries of one variance.
    """
    variance, out = float(change.square().mean()), len(change)
    if isinstance(layer, nn.Conv2d):
        alike = torch.ones_like(change[: layer.groups])  # one output a group stands for all: they see the same inputs
        made, met = (
            F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
            for x, weight in ((inputs, change), (inputs.square(), alike))
        )
        return float(made.square().sum()), variance * float(met.sum()) * out / layer.groups
    return float(F.linear(inputs, change).square().sum()), variance * float(inputs.square().sum()) * out


@contextmanager
def watched(layers: Mapping[str, nn.Module], changes: Mapping[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    """While open, every forward adds to the two energies [2] of each layer."""
    sums = {name: torch.zeros(2, dtype=torch.float64) for name in changes}

    def hook(name: str) -> "object":
        def see(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            sums[name] += torch.tensor(energies(layer, changes[name], inputs[0]), dtype=torch.float64)

        return see

    handles = [layers[name].register_forward_pre_hook(hook(name)) for name in changes]  # type: ignore[arg-type]
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()


def find(arms: Arms, sampler: Sampler, reached: Trace, watch: Stopwatch) -> dict[str, float]:
    """The alignment in dB of every layer of the denoiser that the adapter changes, at states of f1; kept in the cache.

    Not finite where a layer's inputs are.
    """
    sampler = sampler.take(min(PROBES, len(reached.paths)))
    at = Trace(reached.name, reached.paths[: len(sampler.probes)])
    key = cache.key(__name__, arms.content("base"), arms.content("adapted"), *at.matched())

    def make(folder: Path) -> None:
        before, after = arms.state("base"), arms.state("adapted")
        changes = {name: after[f"{name}.weight"] - before[f"{name}.weight"] for name in arms.denoiser_layers()}
        layers = dict(arms.base.denoiser.named_modules())
        calls = forwards(sampler.setup, 0, 1, len(sampler.probes))
        with (
            subject.full(arms, "adapted").open() as runner,
            watch.stage("alignment by layer", calls) as advance,
            watched(layers, changes) as sums,
        ):
            sampler.run(runner, "adapted", at.states(), advance)
        found = {name: float(decibels(*pair.numpy())) for name, pair in sums.items()}
        (folder / _FILE).write_text(json.dumps(found))

    folder = sampler.store.obtain("alignment", key, f"{arms.base.source}", make)
    found: dict[str, float] = json.loads((folder / _FILE).read_text())
    return found
