"""The training loop of QAT, with checkpoints and early stopping; a resumed run gives the same result."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qcheck.core import cache
from qcheck.core.errors import UserError
from qcheck.core.values import Value
from qcheck.training.objective import HeldOut, Pool, QatObjective, Tensors

_CLIP = 1.0
_FREE_RUNS = 4  # free runs of the student an interval
_KIND, _FILE = "qat", "checkpoint.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's


class Training(Value):
    """Every evaluation of the held-out probes, the step whose factors are kept, and the checkpoint that was resumed."""

    history: list[HeldOut]
    kept: int
    resumed: int | None

    @property
    def before(self) -> HeldOut:
        """The held-out probes with the original adapter."""
        return self.history[0]

    @property
    def after(self) -> HeldOut:
        """The held-out probes with the factors that are kept."""
        return next(held_out for held_out in self.history if held_out.step == self.kept)


def train(objective: QatObjective) -> tuple[Tensors, Training]:
    """Train, from the last checkpoint where there is one; returns the best factors by the file's keys, and the history.

    Raises:
        UserError: the loss is not finite.
    """
    with objective.store.locked(_KIND, objective.key):  # two processes would write over each other's checkpoints
        run = Run(objective)
        resumed = run.restore()
        while not run.ended:
            run.advance()
    return run.best, Training(history=run.history, kept=run.kept, resumed=resumed)


class Run:
    """A run in progress. A checkpoint holds everything that the next step depends on except the objective."""

    def __init__(self, objective: QatObjective) -> None:
        self.objective, self.settings = objective, objective.settings
        rates = objective.rates()
        self.rates = list(rates.values())
        groups = [{"params": [value], "lr": rates[key]} for key, value in objective.factors.items()]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        self.scales = objective.scales()
        self.best = self._now()
        self.history = [objective.look(0)]
        self.step = self.kept = 0
        self.norm: float | None = None

    def _now(self) -> Tensors:
        return {key: value.detach().cpu().clone() for key, value in self.objective.factors.items()}

    @property
    def ended(self) -> bool:
        """Whether all steps are done, or too many evaluations in a row were no better than the best."""
        idle = sum(held_out.step > self.kept for held_out in self.history)
        return self.step >= self.settings.steps or idle >= self.settings.patience

    def advance(self) -> None:
        """Train for one interval, evaluate the held-out probes, and replace the last checkpoint."""
        first, last = self.step, min(self.step + self.settings.every, self.settings.steps)
        title = f"QAT, excess error {self.history[-1].excess_error:+.1f} dB"
        with self.objective.watch.stage(title, last - first) as advance:
            own = self.objective.own(self._draw(1, self.step, len(self.objective.probes), _FREE_RUNS))
            while self.step < last:
                self._learn(own)
                advance(1)
        held_out = self.objective.look(self.step).model_copy(update={"gradient_norm": self.norm})
        best = next(earlier for earlier in self.history if earlier.step == self.kept)
        if held_out.score > best.score:
            self.best, self.kept = self._now(), self.step
        self.history.append(held_out)
        self._write(first)

    def _draw(self, domain: int, number: int, most: int, count: int) -> np.ndarray:
        """``count`` different indices below ``most``, determined by the seed, ``domain`` and ``number``."""
        indices: np.ndarray = np.random.default_rng([self.settings.seed, domain, number]).permutation(most)[:count]
        return indices

    def _learn(self, own: Pool) -> None:
        settings, objective = self.settings, self.objective
        remaining = 1 - self.step / settings.steps
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * remaining
        self.optimizer.zero_grad()
        for part in range(settings.strata):
            number = self.step * settings.strata + part
            cycle, place = divmod(number, len(objective.setup.strata))  # every stratum once before any comes again
            stratum = self._draw(2, cycle, len(objective.setup.strata), place + 1)[-1]
            pool = own if self._draw(3, number, 1000, 1)[0] < 1000 * settings.share else objective.taught
            rows = self._draw(4, number, len(pool.probes), settings.rows)
            loss = objective.losses(pool, rows, stratum).mean() / (self.scales[stratum] * settings.strata)
            if not torch.isfinite(loss):
                raise UserError(
                    f"the loss is not finite after {self.step} steps of QAT", "Give a lower --rate, such as 1e-4."
                )
            loss.backward()
        self.norm = float(torch.nn.utils.clip_grad_norm_(objective.factors.values(), _CLIP))
        self.optimizer.step()
        self.step += 1

    def _key(self, step: int) -> str:
        return cache.key(__name__, self.objective.key, str(step))

    def _write(self, previous: int) -> None:
        tensors = {f"best {key}": value for key, value in self.best.items()}
        for key, value in self.objective.factors.items():
            tensors[f"now {key}"] = value.detach()
            tensors |= {f"{moment} {key}": self.optimizer.state[value][moment] for moment in _MOMENTS}
        notes = {"kept": str(self.kept), "history": json.dumps([held_out.model_dump() for held_out in self.history])}
        store, about = self.objective.store, f"checkpoint at step {self.step}"
        with store.put(_KIND, self._key(self.step), about) as folder:
            save_file(tensors, folder / _FILE, metadata=notes)
        store.drop(_KIND, self._key(previous))

    def restore(self) -> int | None:
        """Resume the last checkpoint, where there is one; returns its step."""
        settings = self.settings
        steps: set[int] = {settings.steps, *range(settings.every, settings.steps, settings.every)}
        for step in sorted(steps, reverse=True):
            folder = self.objective.store.find(_KIND, self._key(step))
            if folder is not None:
                self._read(folder / _FILE, step)
                return step
        return None

    @torch.no_grad()
    def _read(self, path: Path, step: int) -> None:
        tensors = load_file(path)
        with safe_open(path, "pt") as stream:
            notes = stream.metadata()
        for key, value in self.objective.factors.items():
            value.copy_(tensors[f"now {key}"])
            self.best[key] = tensors[f"best {key}"]
            moments = {moment: tensors[f"{moment} {key}"].to(value.device) for moment in _MOMENTS}
            self.optimizer.state[value] = {"step": torch.tensor(float(step)), **moments}
        self.step, self.kept = step, int(notes["kept"])
        self.history = [HeldOut.model_validate(held_out) for held_out in json.loads(notes["history"])]
