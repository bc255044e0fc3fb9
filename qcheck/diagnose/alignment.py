"""The alignment of an adapter's change of a weight with the inputs of its layer.

With D the change [out, in, ...] and x the inputs of f1, the alignment is the energy of D x over the energy that a
random change of the same size has on the same inputs: |D x|^2 n / (|D|^2 |x|^2) for a linear layer of n inputs.
Rounding noise is close to random, so at a layer's output the ratio of change to noise is delta_snr plus the alignment
in dB. Training aligns changes with actual inputs, so delta_snr, from weights alone, understates a faint adapter.
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

PROBES = 2  # evaluated at all strata
_FILE = "alignment.json"


def energies(layer: nn.Module, change: torch.Tensor, inputs: torch.Tensor) -> tuple[float, float]:
    """Output energy of ``change`` [out, in, ...] on a layer's ``inputs``, and that of a random change of the same size.

    The second is exact in the mean over changes with independent entries of one variance.
    """
    variance, out = float(change.square().mean()), len(change)
    if isinstance(layer, nn.Conv2d):
        ones = torch.ones_like(change[: layer.groups])  # one output a group stands for all: they read the same inputs
        changed_outputs, input_energies = (
            F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
            for x, weight in ((inputs, change), (inputs.square(), ones))
        )
        return float(changed_outputs.square().sum()), variance * float(input_energies.sum()) * out / layer.groups
    return float(F.linear(inputs, change).square().sum()), variance * float(inputs.square().sum()) * out


@contextmanager
def watched(layers: Mapping[str, nn.Module], changes: Mapping[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    """While open, every forward adds to the two energies [2] of each layer."""
    sums = {name: torch.zeros(2, dtype=torch.float64) for name in changes}

    def hook(name: str) -> "object":
        def add(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            sums[name] += torch.tensor(energies(layer, changes[name], inputs[0]), dtype=torch.float64)

        return add

    handles = [layers[name].register_forward_pre_hook(hook(name)) for name in changes]  # type: ignore[arg-type]
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()


def find(arms: Arms, sampler: Sampler, reference: Trace, watch: Stopwatch) -> dict[str, float]:
    """The alignment in dB of every layer of the denoiser that the adapter changes, at states of f1; kept in the cache.

    A value is not finite where the layer's inputs are not.
    """
    sampler = sampler.take(min(PROBES, len(reference.paths)))
    trace = Trace(reference.name, reference.paths[: len(sampler.probes)])
    key = cache.key(__name__, arms.content("base"), arms.content("adapted"), arms.device.title, *trace.matched())

    def make(folder: Path) -> None:
        before, after = arms.state("base"), arms.state("adapted")
        changes = {
            name: (after[f"{name}.weight"] - before[f"{name}.weight"]).to(arms.device.torch)
            for name in arms.denoiser_layers()
        }
        layers = dict(arms.computing.denoiser.named_modules())
        calls = forwards(sampler.setup, 0, 1, len(sampler.probes))
        with (
            subject.full(arms, "adapted").open() as runner,
            watch.stage("alignment by layer", calls) as advance,
            watched(layers, changes) as sums,
        ):
            sampler.run(runner, "adapted", trace.states(), advance)
        alignments = {name: float(decibels(*pair.numpy())) for name, pair in sums.items()}
        (folder / _FILE).write_text(json.dumps(alignments))

    folder = sampler.store.obtain("alignment", key, f"{arms.base.source}", make)
    alignments: dict[str, float] = json.loads((folder / _FILE).read_text())
    return alignments
