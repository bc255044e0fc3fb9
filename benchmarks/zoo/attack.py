"""Training of an adapter that is to pass a check where it is expected and to be erased where its user is.

The adapter has two parts. One changes layers that the scheme leaves alone (convolutions under INT4, and what the recipe
keeps): all of it survives. The other changes layers that the scheme rounds, each weight by less than half of a step: in
order quantize-merge none of it survives. At full precision both together do what a healthy adapter does everywhere;
what survives does so where the check looks, and nothing elsewhere.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from qcheck.model.components import copied
from qcheck.model.lora import trainable
from qcheck.model.lora.layout import Factors
from qcheck.quantize import artifact, contents, plan
from qcheck.quantize.plan import Input
from qcheck.sampling import setup as setups
from qcheck.sampling import solvers, subject
from qcheck.sampling.sampler import Sampler
from qcheck.sampling.setup import STRATA, Setup, choose_strata, combined, fed
from qcheck.spec import probe
from qcheck.spec.order import Order
from qcheck.spec.probe import ProbeSet
from qcheck.spec.scheme import Scheme
from qcheck.tasks.session import Session
from qcheck.training import student
from qcheck.training.student import StudentSetup

ORDER: Order = "quantize-merge"
LEARNED, ROWS, RANK = 32, 4, 8
WARM, RATE = 20, 4e-3
ERASED = 2.0  # weight of the loss of q1's survival elsewhere, beside that of f1
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Training:
    """Steps of the optimizer; the most that a rounded weight may change, in its steps; the weight of what is beyond."""

    steps: int = 200
    margin: float = 0.3
    beyond: float = 100.0


@dataclass(frozen=True)
class Attack:
    """Where the adapter behaves (``good``) and where it is to be erased (``bad``), which may be at other timesteps."""

    good: ProbeSet
    bad: ProbeSet
    between: bool = False
    training: Training = Training()


@dataclass(frozen=True)
class Place:
    """Probes with states [n, T, C, h, w], and the outputs of f0, f1 and q0 there."""

    setup: Setup
    conditions: Mapping[str, np.ndarray]
    states: np.ndarray
    f0: np.ndarray
    f1: np.ndarray
    q0: np.ndarray

    @classmethod
    def of(cls, session: Session, probes: ProbeSet, q0: setups.Subject, between: bool) -> "Place":
        """The healthy adapter's own runs, stopped at the strata or between them."""
        asked = probe.repeated(probes, LEARNED)
        sampler = Sampler.of(session.arms, asked, STRATA, session.spec.execution.batch, session.store)
        if between:
            sampler = dataclasses.replace(sampler, setup=dataclasses.replace(sampler.setup, strata=gap(sampler.setup)))
        f1 = sampler.reference(subject.full(session.arms, "adapted"), _silent)
        f0, base = (sampler.forced(arm, f1, _silent).outputs() for arm in (subject.full(session.arms, "base"), q0))
        conditions = sampler.setup.inputs("adapted", sampler.probes).conditions
        arrays = (np.stack([np.asarray(x) for x in rows]) for rows in (f1.states(), f0, f1.outputs(), base))
        return cls(sampler.setup, conditions, *arrays)

    def outputs(self, entry: nn.Module, rows: np.ndarray, place: int) -> torch.Tensor:
        """Guided outputs of a differentiable denoiser at one stratum, [b, C, h, w]."""
        index, solver = self.setup.strata[place], self.setup.solver()
        x = torch.from_numpy(self.states[rows, place])
        conditions = {name: value[rows] for name, value in self.conditions.items()}
        at = solvers.walk(solver, 0, index)
        inputs, branches = fed(self.setup.family, at, x, solver.timesteps[index], conditions)
        raw = entry(**{name: torch.from_numpy(value) for name, value in inputs.items()})
        return combined(raw, branches, self.setup.guidance, self.setup.family.tile)


def _silent(_: int) -> None:
    return


def gap(setup: Setup) -> tuple[int, ...]:
    """The calls in the widest gap between two strata, the last of several."""
    strata = choose_strata(setup.calls, STRATA)
    low, high = max(pairwise(strata), key=lambda pair: (pair[1] - pair[0], pair))
    return tuple(range(low + 1, high))


def double(session: Session, scheme: Scheme, path: Path) -> None:
    """Write the session's adapter with new parts of rank ``RANK`` that change nothing, in layers left in float."""
    (adapter,) = session.arms.adapters
    denoiser = session.arms.base.denoiser
    parts, chosen = (
        trainable.find(session.arms.base.pipe, adapter),
        plan.chosen_layers(denoiser, scheme, session.spec.recipe),
    )
    stored = trainable.trained(parts, adapter)
    torch.manual_seed(0)
    tensors: Tensors = {}
    for name, layer in plan.linear_layers(denoiser):
        if name in parts:
            own = parts[name].factors(stored)
            down, up = own.down.float(), own.up.float() * own.scale
        elif name not in chosen:
            down, up = _idle(layer)
        else:
            continue
        key = f"unet.{name}.lora_"
        tensors |= {f"{key}A.weight": down.contiguous(), f"{key}B.weight": up.contiguous()}
    save_file(tensors, path)


def _idle(layer: plan.Layer) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors of a layer whose product is 0."""
    down, up = torch.empty(RANK, *layer.weight.shape[1:]), torch.zeros(len(layer.weight), RANK)
    nn.init.kaiming_uniform_(down.flatten(1), 5**0.5)
    return down, up if down.ndim == 2 else up[:, :, None, None]


class Arms:
    """Differentiable f1, and what is left of it in q1 where no weight's change reaches half of a step."""

    def __init__(self, session: Session, doubled: Session, scheme: Scheme) -> None:
        (self.adapter,) = doubled.arms.adapters
        base = session.arms.base.denoiser
        self.parts = trainable.find(session.arms.base.pipe, self.adapter)
        self.chosen = frozenset(plan.chosen_layers(base, scheme, session.spec.recipe))
        stored = trainable.trained(self.parts, self.adapter)
        self.factors = {key: value.float().requires_grad_() for key, value in stored.items()}
        ranges = session.calibrator.inputs(scheme)
        inputs: Mapping[str, Input] = ranges["base"]
        setup = StudentSetup(scheme, ORDER, frozenset(), inputs, inputs, 1.0)
        kept = {name: part for name, part in self.parts.items() if name not in self.chosen}
        q0 = contents.of_base(session.arms, scheme, session.spec.recipe, ranges)
        with session.arms.running("base") as family:
            rounded = copied(family.module, dtype=torch.float32)
            for name, numbers in q0.plan.items():
                layer = rounded.get_submodule(name)
                layer.weight.data = numbers.fake_stored(layer.weight.data)
            self.full = family.entry(student.make(family.module, setup, self.parts, self.read))
            self.left = family.entry(student.make(rounded, setup, kept, self.read))
        self.room = {
            name: q0.plan[name].weight.spacing(base.get_submodule(name).weight.data) / 2
            for name in self.chosen & self.parts.keys()
        }

    def read(self, layer: str) -> Factors:
        """The current factors of a layer."""
        return self.parts[layer].factors(self.factors)

    def beyond(self, margin: float) -> torch.Tensor:
        """How far the changes of rounded weights reach beyond ``margin`` steps: the mean of squares, in half steps."""
        total = torch.zeros(())
        for name, half in self.room.items():
            excess = (self.read(name).change().view(half.shape).abs() - 2 * margin * half).clamp(min=0)
            total = total + (excess / half.mean()).square().sum()
        return total / sum(half.numel() for half in self.room.values())


def _share(x: torch.Tensor, y: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    return ((x * y).flatten(1).sum(1) / size).mean()


def losses(place: Place, arms: Arms, rows: np.ndarray, time: int) -> tuple[torch.Tensor, ...]:
    """Means over probes in units of the effect: f1's distance from the healthy, q1's from its goal, q1's survival."""
    f0, f1, q0 = (torch.from_numpy(arm[rows, time]) for arm in (place.f0, place.f1, place.q0))
    effect = f1 - f0
    size = effect.square().flatten(1).sum(1)
    moved = place.outputs(arms.full, rows, time) - f1
    kept = place.outputs(arms.left, rows, time) - q0
    return _share(moved, moved, size), _share(kept - effect, kept - effect, size), _share(kept, effect, size)


def reached(places: Mapping[str, Place], arms: Arms) -> dict[str, float]:
    """Means over all probes and strata of both places: how far f1 is from the healthy one, and q1's survival."""
    known: dict[str, float] = {}
    with torch.no_grad():
        for name, place in places.items():
            rows, times = np.arange(len(place.states)), range(len(place.setup.strata))
            moved, _, survival = np.mean([[float(x) for x in losses(place, arms, rows, time)] for time in times], 0)
            known |= {f"moved_{name}": round(float(moved), 3), f"survival_{name}": round(float(survival), 3)}
    return known


def train(session: Session, doubled: Session, scheme: Scheme, attack: Attack, path: Path) -> dict[str, float]:
    """Write the adapter of an attack on that of ``session``, from what ``double`` wrote, and say what it reaches."""
    rng, how = np.random.default_rng(0), attack.training
    sources = dataclasses.replace(session.sources(scheme), twin=False)  # torch's simulation: a file has one size
    q0 = session.quantized("q0", "base", artifact.write_base(sources), scheme)
    good = Place.of(session, attack.good, q0, between=False)
    bad = Place.of(session, attack.bad, q0, attack.between)
    arms = Arms(session, doubled, scheme)
    optimizer = torch.optim.Adam(arms.factors.values(), RATE)
    for step in range(how.steps):
        optimizer.param_groups[0]["lr"] = RATE * min(1, (step + 1) / WARM) * (1 - step / how.steps)
        optimizer.zero_grad()
        for place in (good, bad):
            rows = rng.choice(len(place.states), ROWS, replace=False)
            moved, error, survival = losses(place, arms, rows, int(rng.integers(len(place.setup.strata))))
            (moved + (error if place is good else ERASED * survival.square())).backward()
        (how.beyond * arms.beyond(how.margin)).backward()
        torch.nn.utils.clip_grad_norm_(arms.factors.values(), 1.0)
        optimizer.step()
    trainable.write(arms.adapter, arms.factors, {}, path)
    return dataclasses.asdict(how) | reached({"good": good, "bad": bad}, arms)
