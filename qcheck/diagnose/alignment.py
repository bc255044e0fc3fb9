"""The alignment of an adapter's change of a weight with the inputs of its layer.

With D the change [out, in, ...] and x the inputs of f1, the alignment is the energy of D x over the energy that a
random change of the same size has on the same inputs: |D x|^2 n / (|D|^2 |x|^2) for a linear layer of n inputs.
Rounding noise is close to random, so at a layer's output the ratio of change to noise is delta_snr plus the alignment
in dB. Training aligns changes with actual inputs, so delta_snr, from weights alone, understates a faint adapter.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from qcheck.core import cache
from qcheck.core.progress import Stopwatch
from qcheck.device.arithmetic import decibels
from qcheck.diagnose.kept import Kept
from qcheck.model.arms import Arms
from qcheck.model.inputs import observed
from qcheck.sampling import subject
from qcheck.sampling.sampler import Sampler
from qcheck.sampling.setup import forwards
from qcheck.sampling.store import Trace

PROBES = 2  # evaluated at all strata
Changes = Mapping[str, torch.Tensor] | Kept
_FILE = "alignment.json"


def energies(layer: nn.Module, change: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Output energy of ``change`` [out, in, ...] on a layer's ``inputs``, and that of a random change of the same size.

    [2] in float64. The second is exact in the mean over changes with independent entries of one variance.
    """
    variance, out = change.square().mean(), len(change)
    if isinstance(layer, nn.Conv2d):
        ones = torch.ones_like(change[: layer.groups])  # one output a group stands for all: they read the same inputs
        changed_outputs, input_energies = (
            F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
            for x, weight in ((inputs, change), (inputs.square(), ones))
        )
        out //= layer.groups
    else:
        changed_outputs, input_energies = F.linear(inputs, change), inputs.square()
    made, read = (values.sum().double() for values in (changed_outputs.square(), input_energies))
    return torch.stack([made, variance.double() * read * out])


class Energies:
    """The two energies [2] of each layer, summed over all forwards: an observer of inputs (``model.inputs``)."""

    def __init__(self, layers: Mapping[str, nn.Module], changes: Changes) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self._layers, self._changes, self._seen = layers, changes, dict[str, torch.Tensor]()

    def begin(self) -> None:
        """As ``Observer``."""
        self._seen = {}

    def see(self, layer: str, inputs: torch.Tensor) -> None:
        """As ``Observer``."""
        self._seen[layer] = energies(self._layers[layer], self._changes[layer], inputs) + self._seen.get(layer, 0)

    def commit(self) -> None:
        """As ``Observer``."""
        for layer, seen in self._seen.items():
            self.sums[layer] = seen + self.sums.get(layer, 0)


def find(arms: Arms, sampler: Sampler, reference: Trace, watch: Stopwatch) -> dict[str, float]:
    """The alignment in dB of every layer of the denoiser that the adapter changes, at states of f1; kept in the cache.

    Idle layers are left out. A value is not finite where the layer's inputs are not.
    """
    sampler = sampler.take(min(PROBES, len(reference.paths)))
    trace = Trace(reference.name, reference.paths[: len(sampler.probes)])
    key = cache.key(__name__, arms.content("base"), arms.content("adapted"), arms.device.title, *trace.matched())

    def make(folder: Path) -> None:
        before, after = arms.state("base"), arms.state("adapted")

        def change(name: str) -> torch.Tensor:
            return (after[f"{name}.weight"] - before[f"{name}.weight"]).to(arms.device.torch)

        changes = Kept(change, arms.device)
        layers = {name: arms.computing.denoiser.get_submodule(name) for name in arms.active_layers()}
        observer = Energies(layers, changes)
        calls = forwards(sampler.setup, 0, 1, len(sampler.probes))
        with (
            subject.full(arms, "adapted").open() as runner,
            watch.stage("alignment by layer", calls) as advance,
            observed(arms.computing.denoiser, layers, observer),
        ):
            sampler.run(runner, "adapted", trace.states(), advance)
        alignments = {name: float(decibels(*pair.cpu().numpy())) for name, pair in observer.sums.items()}
        (folder / _FILE).write_text(json.dumps(alignments))

    folder = sampler.store.obtain("alignment", key, f"{arms.base.source}", make)
    alignments: dict[str, float] = json.loads((folder / _FILE).read_text())
    return alignments
