"""How far a checkpoint has moved the sampler on a few probes, at full precision: the KL divergence of two chains.

Both denoisers are taken as chains of K steps over the solver's noise levels, as DDPM samples: given a state, a step's
result is Gaussian with the same variance for both, so its divergence is half the squared distance of the two means in
units of that variance (Ho et al. 2020, https://arxiv.org/abs/2006.11239, section 3.2). By the estimates of the clean
latents it is (SNR(next) - SNR(now)) / 2 |x0_1 - x0_0|^2 (Kingma et al. 2021, https://arxiv.org/abs/2107.00630, equation
13), the same for outputs eps, v and flow. The last step, to latents without noise, has no variance and is left out.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from qcheck.core.cache import Cache
from qcheck.measure.distribution import chain_kl
from qcheck.model import arms, load, lora
from qcheck.model import device as devices
from qcheck.model.arms import Arms
from qcheck.model.lora import Adapter
from qcheck.sampling import solvers, subject
from qcheck.sampling.sampler import Sampler
from qcheck.sampling.setup import Setup
from qcheck.spec.probe import ProbeSet
from qcheck.spec.use import Use
from qcheck.tasks.exam import output_kind, target

STEPS = 8
_BATCH = 8


class Shift:
    """The divergence of checkpoints from one base, which stays loaded; its states and outputs are computed once.

    Raises:
        UserError: the base does not load, or as ``exam.output_kind``: no checkpoint is to blame.
    """

    def __init__(self, base: str, weight: float, probes: ProbeSet, store: Cache) -> None:
        self._weight, self._probes, self._store = weight, probes, store
        self._device = devices.find("auto", "float32")
        with devices.exact(self._device):
            self._base = load.load(base, store.file_digest, self._device)
        output_kind(self._base.pipe.scheduler)
        self._arms: Arms | None = None

    def of(self, path: Path) -> float:
        """KL of the chains of a checkpoint and the base, in nat a picture: the mean over probes.

        It is taken at the states of the base's own runs.

        Raises:
            UserError: the adapter does not fit the base.
        """
        with devices.exact(self._device):
            self._arms = self._merged([lora.read(Use(source=str(path), weight=self._weight))])
            sampler = Sampler.of(self._arms, self._probes, STEPS, _BATCH, self._store)
            base = sampler.reference(subject.full(self._arms, "base"), _ignore)
            adapted = sampler.forced(subject.full(self._arms, "adapted"), base, _ignore)
        rates = nats(sampler.setup)
        pairs = zip(adapted.outputs(), base.outputs(), strict=True)
        return float(np.mean([chain_kl(first, second, rates) for first, second in pairs]))

    def _merged(self, adapters: Sequence[Adapter]) -> Arms:
        if self._arms is not None:
            return arms.swapped(self._arms, adapters, allow_unmatched=True)
        return arms.apply(self._base, adapters, allow_unmatched=True).on(self._device)


def nats(setup: Setup) -> np.ndarray:
    """The divergence of a step, to the next stratum, by a squared distance 1 of its two outputs, [T]; 0 at the last.

    Raises:
        UserError: as ``exam.target``.
    """
    one, none = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    ratios, rates = [], []
    for index in setup.strata:
        signal, spread = (float(solvers.noised(setup.solver(), index, *pair)) for pair in ((one, none), (none, one)))
        of_signal, of_noise = (float(target(setup, index, *pair)) for pair in ((one, none), (none, one)))
        ratio = signal / spread
        ratios.append(ratio**2)
        # at a given state the estimates of signal and noise move together; where the output tells nothing of the
        # signal, as epsilon without any signal left, the step is left out
        moved = of_signal - of_noise * ratio
        rates.append(moved**-2 if moved else 0.0)
    gaps = np.maximum(np.diff(ratios, append=ratios[-1]), 0)
    divergences: np.ndarray = gaps * np.array(rates) / 2
    return divergences


def _ignore(_: int) -> None:
    """A progress that nobody sees."""
