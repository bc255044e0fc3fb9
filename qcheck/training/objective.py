"""The objective of QAT: the student, q1 as it is deployed, is trained to give the outputs of the teacher, f1.

The loss is the squared difference of guided outputs on calibration prompts. Most states come from the teacher's runs,
a share from the student's own. Some prompts are held out, to measure progress.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import nn

from qcheck.core import cache
from qcheck.core.digest import digest_of_value
from qcheck.core.errors import UserError
from qcheck.core.progress import Stopwatch
from qcheck.core.values import Number, Value
from qcheck.measure import effect
from qcheck.model.lora import trainable
from qcheck.model.lora.layout import Factors
from qcheck.quantize import plan
from qcheck.quantize.artifact import ArtifactSources
from qcheck.quantize.contents import calibrated_on
from qcheck.runtime.torch_runner import TorchRunner
from qcheck.sampling import solvers, subject
from qcheck.sampling.sampler import Sampler
from qcheck.sampling.setup import STRATA, Subject, combined, fed, forwards
from qcheck.sampling.store import Arrays, Rows, Trace
from qcheck.spec import order, probe, recipe
from qcheck.spec.check import CheckSpec
from qcheck.spec.probe import Probe, ProbeSet
from qcheck.training import student
from qcheck.training.student import StudentSetup

_HELD_OUT = 8
_LOOP = "qcheck.training.trainer"  # this module and its imports decide the result of a run
_RATE = 1e-3
_STEP = 1 / 16  # of the mean step of a layer

Tensors = dict[str, torch.Tensor]


class Settings(Value):
    """The settings of a QAT run.

    A step takes ``rows`` probes at each of ``strata`` timesteps; a ``share`` of them at the student's own states. Every
    ``every`` steps the held-out probes are evaluated and a checkpoint is written; after ``patience`` evaluations in a
    row without progress the run ends. ``rate`` is AdamW's at the start, falling to 0; None takes that of the order.
    ``probes`` is the number of training probes, ``times`` the number of timesteps they are trained at.
    """

    steps: Annotated[int, Field(ge=1)] = 120
    every: Annotated[int, Field(ge=1)] = 20
    strata: Annotated[int, Field(ge=1)] = 4
    rows: Annotated[int, Field(ge=1)] = 2
    times: Annotated[int, Field(ge=2)] = 10
    probes: Annotated[int, Field(ge=1)] = 24
    share: Annotated[float, Field(ge=0, le=1)] = 0.25
    patience: Annotated[int, Field(ge=1)] = 4
    rate: float | None = None
    seed: Annotated[int, Field(ge=0)] = 0


class HeldOut(Value):
    """The held-out probes after ``step`` steps: means of effect_survival, effect_to_error and excess_error.

    ``gradient_norm`` is that of the loss by all factors in the last step, before clipping; None before the first. For
    the teacher itself it would be 0: there is no loss.
    """

    step: int
    survival: Number
    effect_to_error: Number
    excess_error: Number
    gradient_norm: Number | None = None

    @property
    def score(self) -> float:
        """Nearness to the teacher in dB: effect_to_error minus the distance |20 log10 survival| from full survival."""
        off = 20 * abs(math.log10(self.survival)) if self.survival > 0 else math.inf
        return self.effect_to_error - off


@dataclass(frozen=True)
class Pool:
    """Probes with the states [T, C, h, w] of each, the teacher's outputs there, and conditions [n, ...] by name."""

    probes: Sequence[Probe]
    conditions: Mapping[str, np.ndarray]
    states: Arrays
    answers: Arrays


def prompts(spec: CheckSpec, count: int) -> tuple[ProbeSet, ProbeSet]:
    """``count`` training probes from the recipe's prompts, and held-out probes from the last quarter of the prompts.

    Each probe has a seed of its own, beyond the seeds of range calibration; none is a probe of the check.

    Raises:
        UserError: fewer than two prompts, or as ``recipe.calibration``.
    """
    total = len(spec.recipe.prompts.prompts)
    if total < 2:
        name = spec.recipe.prompts.name
        raise UserError(f"prompt set {name!r} has one prompt", "Give two or more: some are held out.")
    seeded = spec.recipe.model_copy(update={"samples": total, "seed": spec.recipe.seed + spec.recipe.samples})
    every = recipe.calibration(seeded, spec.probes, spec.trigger)
    held_out = max(1, total // 4)
    learned = every.model_copy(update={"prompts": every.prompts[:-held_out]})
    later = every.model_copy(update={"prompts": every.prompts[-held_out:], "seed": every.seed + count})
    return probe.repeated(learned, count), probe.repeated(later, _HELD_OUT)


class QatObjective:
    """The student of one adapter, scheme and order, its training probes and its held-out probes.

    ``sources`` are those that artifacts are made from, ``q0`` is the quantized base.
    """

    def __init__(
        self, spec: CheckSpec, sources: ArtifactSources, q0: Subject, watch: Stopwatch, settings: Settings
    ) -> None:
        self.sources, self.watch, self.settings, self._q0 = sources, watch, settings, q0
        self.arms, self.store = sources.arms, sources.store
        scheme, deployed_order, (adapter,) = sources.scheme, spec.orders[0], self.arms.adapters
        self.ground = StudentSetup(
            scheme,
            deployed_order,
            frozenset(plan.chosen_layers(self.arms.base.denoiser, scheme, spec.recipe)),
            sources.ranges["base"],
            sources.ranges[calibrated_on(deployed_order)],
            adapter.weight,
        )
        self.learned, self.held = prompts(spec, settings.probes)
        batch = spec.execution.batch
        self.sampler = Sampler.of(self.arms, self.learned, settings.times, batch, self.store)
        self.setup, self.probes = self.sampler.setup, self.sampler.probes
        self._held_out = Sampler.of(self.arms, self.held, STRATA, batch, self.store)
        arms = self.arms
        self.parts = trainable.find(arms.base.pipe, adapter)
        stored = trainable.trained(self.parts, adapter)
        self.types = {key: value.dtype for key, value in stored.items()}
        device = arms.device.torch
        self.factors = {key: value.float().to(device).requires_grad_() for key, value in stored.items()}

    @property
    def key(self) -> str:
        """The cache key: a digest of everything that a run depends on."""
        values = map(digest_of_value, (self.learned, self.held, self.settings))
        return cache.key(_LOOP, "qat", self.sources.key(self.ground.order), self.arms.device.title, *values)

    @cached_property
    def student(self) -> nn.Module:
        """The denoiser as it is deployed."""
        with self.arms.running("base") as base:
            return student.make(base.module, self.ground, self.parts, self._read)

    @cached_property
    def _runner(self) -> TorchRunner:
        return subject.runner(self.arms, self.student, "student")

    def _read(self, layer: str) -> Factors:
        part = self.parts[layer]
        return part.factors(
            {key: student.as_stored(self.factors[key], self.types[key]) for key in (part.down, part.up)}
        )

    def rates(self) -> dict[str, float]:
        """AdamW's initial learning rate of each factor, by key.

        Where the adapter is merged into a quantized base it has to cross half a step of the layer, so the rate is in
        proportion to it (EfficientDM, arXiv 2310.03270, with a smaller factor for runs of thousands of steps).
        """
        rate = self.settings.rate
        if rate is not None or not order.merge(self.ground.order).rounds_change_alone:
            return dict.fromkeys(self.factors, _RATE if rate is None else rate)
        steps: dict[str, list[float]] = defaultdict(list)
        state = self.arms.state("base")
        for layer, part in self.parts.items():
            if layer in self.ground.chosen:
                weight = state[f"{layer}.weight"]
                grid = plan.make_layer(weight, self.ground.scheme, self.ground.before[layer]).weight
                for key in (part.down, part.up):
                    steps[key].append(_STEP * float(grid.spacing(weight).mean()))
        return {key: float(np.mean(steps[key])) if key in steps else _RATE for key in self.factors}

    def _teacher(self, sampler: Sampler, title: str) -> Trace:
        """The teacher's own runs."""
        with self.watch.stage(title, forwards(sampler.setup, 1, 0, len(sampler.probes))) as advance:
            return sampler.reference(subject.full(self.arms, "adapted"), advance)

    @cached_property
    def taught(self) -> Pool:
        """The teacher's runs on the training probes."""
        trace = self._teacher(self.sampler, "teacher")
        conditions = self.setup.inputs("adapted", self.probes).conditions
        return Pool(self.probes, conditions, trace.states(), trace.outputs())

    def own(self, rows: np.ndarray) -> Pool:
        """The student's own runs on the training probes ``rows``, with the teacher's outputs at their states."""
        sampler = replace(self.sampler, probes=tuple(self.probes[row] for row in rows))
        states = sampler.states(self._runner, "adapted")
        with subject.full(self.arms, "adapted").open() as teacher:
            answers = sampler.outputs(teacher, "adapted", states)
        conditions = {name: value[rows] for name, value in self.taught.conditions.items()}
        return Pool(sampler.probes, conditions, states, answers)

    @cached_property
    def exam(self) -> tuple[Rows, ...]:
        """On the held-out probes: f1's states, and the outputs of f0, f1 and q0 there."""
        sampler = self._held_out
        f1 = self._teacher(sampler, "teacher, held out")
        arms = (subject.full(self.arms, "base"), self._q0)
        with self.watch.stage("base, held out", forwards(sampler.setup, 0, 2, len(sampler.probes))) as advance:
            f0, q0 = (sampler.forced(arm, f1, advance).outputs() for arm in arms)
        return f1.states(), f0, f1.outputs(), q0

    def look(self, step: int) -> HeldOut:
        """Evaluate the student on the held-out probes after ``step`` steps."""
        states, f0, f1, q0 = self.exam
        q1 = self._held_out.outputs(self._runner, "adapted", states)
        energies = effect.energies(f0, f1, q0, q1, calibrated=True)
        return HeldOut(
            step=step,
            survival=float(effect.survival(energies).mean()),
            effect_to_error=float(effect.effect_to_error(energies).mean()),
            excess_error=float(effect.excess_error(energies, np.zeros(energies.f1.shape[1])).mean()),
        )

    def losses(self, pool: Pool, rows: np.ndarray, place: int) -> torch.Tensor:
        """Squared difference of guided outputs from the teacher's at one stratum, [b]."""
        setup, family, solver, device = self.setup, self.setup.family, self.setup.solver(), self.arms.device.torch
        index = setup.strata[place]
        x, targets = (
            torch.from_numpy(np.stack([arrays[row][place] for row in rows])) for arrays in (pool.states, pool.answers)
        )
        conditions = {name: value[rows] for name, value in pool.conditions.items()}
        inputs, branches = fed(family, solvers.walk(solver, 0, index), x, solver.timesteps[index], conditions)
        raw = self._runner.entry(**{name: torch.from_numpy(value).to(device) for name, value in inputs.items()})
        shape = (branches * len(x), *x.shape[1:])
        places = family.read(np.arange(raw.numel()).reshape(raw.shape), shape)  # of each latent in the raw output
        output = combined(raw.flatten()[torch.from_numpy(places).to(device)], branches, setup.guidance, family.tile)
        return (output - targets.to(device)).square().flatten(1).mean(1)

    @torch.no_grad()
    def scales(self) -> np.ndarray:
        """The student's present loss at each stratum, [T]. Losses are divided by it, so that all timesteps count alike.

        Early and late timesteps differ widely in the power of their errors and in the solver's coefficients.
        """
        rows = np.arange(min(len(self.probes), self.setup.batch))
        losses = [float(self.losses(self.taught, rows, place).mean()) for place in range(len(self.setup.strata))]
        return np.maximum(losses, np.finfo(np.float32).tiny)
