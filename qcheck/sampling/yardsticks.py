"""Changes of known size to the full-precision arms, beside which the error of quantization is held.

Each is measured once, on the probes of the first look, when it is asked for.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from qcheck.core.progress import Stopwatch
from qcheck.measure import effect, endpoint
from qcheck.model import arms as merged
from qcheck.model.arms import Arms
from qcheck.sampling import setup as setups
from qcheck.sampling import subject
from qcheck.sampling.sampler import Sampler
from qcheck.sampling.setup import forwards
from qcheck.sampling.store import Trace
from qcheck.spec.arm import Side
from qcheck.spec.probe import ProbeSet

_OTHER = 1_000_000  # no probe set counts its seeds up that far


@dataclass(frozen=True)
class Yardsticks:
    """Both arms, the probes of the first look in ``sampler``, and the traces of f0 and f1 on them."""

    arms: Arms
    probe_set: ProbeSet
    sampler: Sampler
    traces: Mapping[Side, Trace]
    watch: Stopwatch
    _seeds: dict[Side, float] = field(default_factory=dict, init=False, repr=False)

    def half_weight(self) -> np.ndarray:
        """Survival [n] of the adapter at half of its weight, which is a loss of known size."""
        return self._half

    @functools.cached_property
    def _half(self) -> np.ndarray:
        halves = [replace(adapter, weight=adapter.weight / 2) for adapter in self.arms.adapters]
        arms = merged.alike(self.arms, halves)
        setup, sampler = self.sampler.setup, self.sampler
        if not arms.encode_alike:
            sampler = replace(sampler, setup=setups.make(arms, self.probe_set, len(setup.strata), setup.batch))
        with self.watch.stage("control: half weight", forwards(setup, 0, 1, len(sampler.probes))) as advance:
            half = sampler.forced(subject.full(arms, "adapted"), self.traces["adapted"], advance)
        f0, f1 = self.traces["base"].outputs(), self.traces["adapted"].outputs()
        return effect.survival(effect.energies(f0, f1, f0, half.outputs()))

    def another_seed(self, side: Side) -> float:
        """Mean distance |x' - x| / |x| of an arm's final latents from those of another seed."""
        if side not in self._seeds:
            setup = self.sampler.setup
            others = tuple(probe.model_copy(update={"seed": probe.seed + _OTHER}) for probe in self.sampler.probes)
            sampler, arm = replace(self.sampler, probes=others), subject.full(self.arms, side)
            with self.watch.stage(f"{arm.name}: other seeds", forwards(setup, 1, 0, len(others))) as advance:
                moved = sampler.reference(arm, advance)
            self._seeds[side] = float(endpoint.relative(moved.finals(), self.traces[side].finals()).mean())
        return self._seeds[side]
