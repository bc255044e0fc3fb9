"""Changes of known size to the full-precision arms, beside which the error of quantization is held.

Each is measured once, on the probes of the first look, when it is asked for.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from qcheck.core.progress import Stopwatch
from qcheck.device import arithmetic
from qcheck.measure import effect
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
    _weakened: dict[float, np.ndarray] = field(default_factory=dict, init=False, repr=False)

    def weakened(self, share: float) -> np.ndarray:
        """Survival [n] of the adapter at a share of its weight, at full precision."""
        if share not in self._weakened:
            self._weakened[share] = self._at(share)
        return self._weakened[share]

    def _at(self, share: float) -> np.ndarray:
        weaker = [replace(adapter, weight=share * adapter.weight) for adapter in self.arms.adapters]
        arms = merged.alike(self.arms, weaker)
        ours = self.sampler.setup
        setup = setups.make(arms, self.probe_set, len(ours.strata), ours.batch)  # its text encoders are weakened too
        sampler = replace(self.sampler, setup=setup)
        title, calls = f"control: {share:g} of the weight", forwards(setup, 0, 1, len(sampler.probes))
        with self.watch.stage(title, calls) as advance:
            trace = sampler.forced(subject.full(arms, "adapted"), self.traces["adapted"], advance)
        f0, f1 = self.traces["base"].outputs(), self.traces["adapted"].outputs()
        return effect.survival(effect.energies(f0, f1, f0, trace.outputs()))

    def another_seed(self, side: Side) -> float:
        """Mean distance |x' - x| / |x| of an arm's final latents from those of another seed."""
        if side not in self._seeds:
            setup = self.sampler.setup
            others = tuple(probe.model_copy(update={"seed": probe.seed + _OTHER}) for probe in self.sampler.probes)
            sampler, arm = replace(self.sampler, probes=others), subject.full(self.arms, side)
            with self.watch.stage(f"{arm.name}: other seeds", forwards(setup, 1, 0, len(others))) as advance:
                moved = sampler.reference(arm, advance)
            self._seeds[side] = float(arithmetic.relative(moved.finals(), self.traces[side].finals()).mean())
        return self._seeds[side]
