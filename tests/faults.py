"""The fault bench: four healthy arms on the demo, and injectors that break one of them in a known way.

The quantized arms are simulated in torch, which ``quantize/test_onnx`` proves equal to the artifact.
"""

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from qcheck.calibration.histogram import Histogram
from qcheck.core.cache import Cache
from qcheck.measure import control, effect
from qcheck.measure.control import Control
from qcheck.model.arms import Arms
from qcheck.model.inputs import observed
from qcheck.quantize import fake, plan
from qcheck.result.verdict import Verdict
from qcheck.runtime.runner import Runner
from qcheck.runtime.torch_runner import TorchRunner
from qcheck.sampling.sampler import Sampler
from qcheck.sampling.setup import Inputs, Setup
from qcheck.sampling.store import Trace
from qcheck.spec import limits, recipe, scheme
from qcheck.spec.arm import Arm, Side
from qcheck.spec.probe import ProbeSet
from qcheck.spec.scheme import Scheme
from qcheck.tasks import check
from qcheck.tasks.decide import Instrument, decide
from tests.test_trace import quiet, subject

CHOSEN = ProbeSet(
    name="faults",
    prompts=("red apple", "panda", "ghost", "fish", "tulip", "cactus", "pig face", "cupcake"),
    seed=40,
    steps=8,
    guidance=3.0,
)
ALIVE = ("panda", "fish", "tulip", "cactus")
GROUPS = tuple("alive" if prompt in ALIVE else "" for prompt in CHOSEN.prompts)
LIMITS = limits.find("default").computing("float16")
STRATA = 4
State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Bench:
    """Four healthy arms and what a fault needs to trace another one."""

    sampler: Sampler
    models: Mapping[str, Any]
    traces: Mapping[str, Trace]
    scheme: Scheme
    ranges: Mapping[str, Mapping[str, plan.Input]] = field(default_factory=dict)

    @property
    def setup(self) -> Setup:
        """What all arms share."""
        return self.sampler.setup

    def trace(self, name: str, runner: Runner, side: Side, setup: Setup | None = None) -> Trace:
        asked = subject(f"{self.scheme.name} {name}", runner, side)
        return replace(self.sampler, setup=setup or self.setup).arm(asked, self.traces["f1"], quiet)

    def verdict(
        self,
        q0: Trace | None = None,
        q1: Trace | None = None,
        exported: Trace | None = None,
        f1: Trace | None = None,
        computed: Trace | None = None,
        half: Trace | None = None,
    ) -> Verdict:
        """Judge as the pipeline does, with some arms replaced.

        ``computed`` is f1 in the compute type, ``half`` the adapter at half of its weight.
        """
        reference = {"base": self.traces["f0"], "adapted": f1 or self.traces["f1"]}
        quantized = {"base": q0 or self.traces["q0"], "adapted": q1 or self.traces["q1"]}
        floor = np.full(len(self.setup.strata), 1e-6)
        if computed is not None:
            floor = control.noise(computed.outputs(), self.traces["f1"].outputs())
        samples, energies = check.measure(self.setup, reference, quantized, floor)
        times, places = self.setup.timesteps(), tuple(range(len(self.setup.strata)))
        through = exported or self.traces["exported"]
        controls = [
            Control("export_control", control.noise(through.outputs(), self.traces["f1"].outputs()), places, times),
            Control("compute_control", floor, places, times),
        ]
        full = (self.traces["f0"].outputs(), self.traces["f1"].outputs())
        halved = effect.survival(effect.energies(*full, full[0], (half or self.traces["half"]).outputs()))
        return decide(LIMITS, Instrument(controls, lambda _: halved, lambda _: None), samples, energies, [], GROUPS)

    def weights(self, of: str) -> State:
        """A copy of the denoiser's weights of an arm at full precision."""
        return {name: value.clone() for name, value in self.models[of].denoiser.state_dict().items()}

    def numbers(self, of: str, state: State) -> plan.Plan:
        """The scheme's scales for such weights, with the ranges of that arm's inputs."""
        return plan.make(self.ranges[of], state, self.scheme, self.ranges[of])

    def quantized(self, state: State) -> Runner:
        """The adapted arm with other weights, quantized."""
        return TorchRunner(simulated(self.models["f1"], state, self.numbers("f1", state)))


def simulated(model: Any, state: State, numbers: plan.Plan) -> Any:
    """A copy of a full-precision model that computes with the quantized weights for good."""
    made = copy.deepcopy(model)
    made.denoiser.load_state_dict(state)
    made.held = ExitStack()  # a context manager that nobody holds is closed at once, and the model is as it was
    made.held.enter_context(fake.simulated(made.denoiser, numbers))
    return made


def make(both: Arms, name: str, store: Cache, asked: ProbeSet = CHOSEN) -> Bench:
    """The bench of an adapter under a scheme."""
    chosen = scheme.find(name)
    sampling = Sampler.of(both, asked, STRATA, 8, store)
    models: dict[str, Any] = {}
    sides: tuple[tuple[Side, str], ...] = (("base", "0"), ("adapted", "1"))
    for side, digit in sides:
        with both.held(side) as family:
            models[f"f{digit}"] = copy.deepcopy(family.entry(family.module))
    reached = subject(f"{name} f1", TorchRunner(models["f1"]))
    f1 = sampling.reference(reached, quiet)
    bench = Bench(sampling, models, {"f1": f1}, chosen)
    ranges = {}
    for side, digit in sides:
        layers = plan.chosen_layers(models[f"f{digit}"].denoiser, chosen, recipe.find("emoji"))
        seen = Histogram()
        with observed(models[f"f{digit}"].denoiser, layers, seen):
            sampling.run(TorchRunner(models[f"f{digit}"]), side, f1.states(), quiet)
        ranges[f"f{digit}"] = {layer: plan.Input(inputs.absmax) for layer, inputs in seen.seen().items()}
        bench = replace(bench, ranges=ranges)
        state = bench.weights(f"f{digit}")
        models[f"q{digit}"] = simulated(models[f"f{digit}"], state, bench.numbers(f"f{digit}", state))
    healthy: tuple[tuple[str, str, Side], ...] = (
        ("f0", "f0", "base"),
        ("q0", "q0", "base"),
        ("q1", "q1", "adapted"),
        ("exported", "f1", "adapted"),
    )
    traces = {"f1": f1}
    for arm, source, of in healthy:
        traces[arm] = bench.trace(arm, TorchRunner(models[source]), of)
    halved = copy.deepcopy(models["f1"])
    base, adapted = bench.weights("f0"), bench.weights("f1")
    halved.denoiser.load_state_dict({name: (base[name] + value) / 2 for name, value in adapted.items()})
    traces["half"] = bench.trace("half", TorchRunner(halved), "adapted")
    return replace(bench, traces=traces)


@dataclass(frozen=True)
class Altered:
    """A runner with a fault around it; ``output`` gets the timestep and both branches' outputs."""

    inner: Runner
    time: Callable[[float], float] = lambda t: t
    output: Callable[[float, np.ndarray], np.ndarray] = lambda _, x: x
    name: str = "altered"

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        asked = float(inputs["timestep"][0])
        moved = {"timestep": np.array([self.time(asked)], np.float32)}
        return np.float32(self.output(asked, self.inner({**inputs, **moved})))


def _altered(bench: Bench, arm: str, name: str, output: Callable[[float, np.ndarray], np.ndarray]) -> Trace:
    side: Side = "base" if arm.endswith("0") else "adapted"
    return bench.trace(f"{arm} {name}", Altered(TorchRunner(bench.models[arm]), output=output), side)


def ends(source: Trace, name: str, change: Callable[[np.ndarray], np.ndarray]) -> Trace:
    """A trace whose final latents [C, h, w] are changed, moments with them: what a decoder's own fault would do."""
    paths = []
    for path in source.free:
        tensors = load_file(path)
        final = np.float32(change(np.float64(tensors["final"])))
        tensors["final"] = final
        tensors["moments"][-1] = final.mean((1, 2)), final.var((1, 2))
        kept = path.with_name(f"{name.replace(' ', '-')}.safetensors")
        save_file(tensors, kept, metadata={"matched": source.matched()[source.free.index(path)]})
        paths.append(kept)
    return replace(source, name=name, runs=tuple(paths))


def dead_zone(bench: Bench) -> Verdict:
    """Q(Q(W) + D): the adapter merged into a quantized base."""
    base, state = bench.weights("f0"), bench.weights("f1")
    for layer, numbers in bench.numbers("f0", base).items():
        name = f"{layer}.weight"
        state[name] = numbers.fake(base[name]) + (state[name] - base[name])
    return bench.verdict(q1=bench.trace("dead zone", bench.quantized(state), "adapted"))


def double_rounding(bench: Bench) -> Verdict:
    """Q(Q'(W + D)), the inner grid 31 % finer: rounded twice, on grids that share nothing but 0."""
    state = bench.weights("f1")
    for layer, numbers in bench.numbers("f1", state).items():
        weight = state[f"{layer}.weight"]
        state[f"{layer}.weight"] = numbers.fake(1.31 * weight) / 1.31
    return bench.verdict(q1=bench.trace("double", bench.quantized(state), "adapted"))


def dropped(bench: Bench) -> Verdict:
    """The adapter never arrived in the artifact."""
    return bench.verdict(q1=bench.trace("dropped", TorchRunner(bench.models["q0"]), "adapted"))


def alpha(bench: Bench) -> Verdict:
    """Merged four times as strongly as at full precision."""
    base, state = bench.weights("f0"), bench.weights("f1")
    state = {name: base[name] + 4 * (value - base[name]) for name, value in state.items()}
    return bench.verdict(q1=bench.trace("alpha", bench.quantized(state), "adapted"))


def hot_column(bench: Bench) -> Verdict:
    """One input column of every layer of 80 standard deviations sets the scales of the whole layer."""
    plain, state = bench.weights("f1"), bench.weights("f1")
    for layer in bench.ranges["f1"]:
        weight = state[f"{layer}.weight"]
        weight[:, 0] += 80 * weight.std()
    numbers = bench.numbers("f1", state)
    runner = TorchRunner(simulated(bench.models["f1"], plain, numbers))
    return bench.verdict(q1=bench.trace("hot column", runner, "adapted"))


def blur(bench: Bench) -> Verdict:
    """Half of the final latent is its mean over three pixels each way."""

    def change(x: np.ndarray) -> np.ndarray:
        return 0.5 * x + 0.5 * sum(np.roll(x, (i, j), (1, 2)) for i in (-1, 0, 1) for j in (-1, 0, 1)) / 9

    return bench.verdict(q1=ends(bench.traces["q1"], "blur", change))


def _deviation(bench: Bench) -> np.ndarray:
    """Of each channel of f1's final latents over pixels and probes, [C, 1, 1]."""
    return np.sqrt(np.stack(bench.traces["f1"].finals()).var((2, 3)).mean(0))[:, None, None]


def _checkered(bench: Bench, amount: float) -> Callable[[np.ndarray], np.ndarray]:
    deviation = _deviation(bench)
    return lambda x: x + amount * deviation * (-1.0) ** np.add.outer(np.arange(x.shape[1]), np.arange(x.shape[2]))


def drift(bench: Bench) -> Verdict:
    """Final latents are 1.35 times as large."""
    return bench.verdict(q1=ends(bench.traces["q1"], "drift", lambda x: 1.35 * x))


def checkerboard(bench: Bench) -> Verdict:
    """A checkerboard of .2 standard deviations on the final latents."""
    return bench.verdict(q1=ends(bench.traces["q1"], "checkerboard", _checkered(bench, 0.2)))


def patch_bias(bench: Bench) -> Verdict:
    """One pixel of every 2 x 2 patch is off by .3 in every output, as a bias of the output layer would be."""

    def biased(_: float, x: np.ndarray) -> np.ndarray:
        found = x.copy()
        found[..., ::2, ::2] += 0.3
        return found

    return bench.verdict(q1=_altered(bench, "q1", "patch bias", biased))


def _noisy(amount: float) -> Callable[[float, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(11)

    def change(_: float, x: np.ndarray) -> np.ndarray:
        half = len(x) // 2
        noise = rng.standard_normal((half, *x.shape[1:]))
        return x + amount * x.std() * np.concatenate([noise, noise])  # both branches alike: guidance leaves it as it is

    return change


def step_noise(bench: Bench) -> Verdict:
    """Fresh noise of .3 of the output at every step."""
    return bench.verdict(q1=_altered(bench, "q1", "noise", _noisy(0.3)))


def _late(bench: Bench, most: float) -> Callable[[float, np.ndarray], np.ndarray]:
    last = bench.setup.timesteps()[-1]
    return lambda t, x: np.clip(x, -most, most) if t <= last else x


def late_clip(bench: Bench) -> Verdict:
    """The output is clipped to .6 at the last timestep."""
    return bench.verdict(q1=_altered(bench, "q1", "clipped late", _late(bench, 0.6)))


def forgotten(bench: Bench) -> Verdict:
    """At the last timestep the artifact answers as the quantized base does."""
    adapted, base, last = TorchRunner(bench.models["q1"]), TorchRunner(bench.models["q0"]), bench.setup.timesteps()[-1]

    class Forgetful:
        name = "forgetful"

        def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
            return (base if float(inputs["timestep"][0]) <= last else adapted)(inputs)

    return bench.verdict(q1=bench.trace("forgetful", Forgetful(), "adapted"))


def forgotten_group(bench: Bench) -> Verdict:
    """For the prompts of one group the artifact answers as the quantized base does."""
    base, adapted = bench.traces["q0"], bench.traces["q1"]
    paths = tuple((base if group else adapted).paths[i] for i, group in enumerate(GROUPS))
    return bench.verdict(q1=replace(adapted, paths=paths))


def coarse(bench: Bench) -> Verdict:
    """The compute type keeps three bits of mantissa of every output."""

    def rounded(_: float, x: np.ndarray) -> np.ndarray:
        mantissa, exponent = np.frexp(x)
        return np.ldexp(np.round(8 * mantissa) / 8, exponent)

    return bench.verdict(computed=_altered(bench, "f1", "coarse", rounded))


def saturated(bench: Bench) -> Verdict:
    """The adapter's final latents are four times as large at full precision: 12 dB."""
    return bench.verdict(f1=ends(bench.traces["f1"], "saturated", lambda x: 4 * x))


def both_clipped(bench: Bench) -> Verdict:
    """Base and adapted are clipped to .5 at the last timestep: no difference between arms shows it."""
    return bench.verdict(
        q0=_altered(bench, "q0", "both clip", _late(bench, 0.5)),
        q1=_altered(bench, "q1", "both clip", _late(bench, 0.5)),
    )


def swapped_prompt(bench: Bench) -> Verdict:
    """Every probe of the artifact gets the next one's prompt."""

    def inputs(side: Side, asked: Any) -> Inputs:
        found = bench.setup.inputs(side, asked)
        return replace(found, conditions={k: np.roll(v, 1, 0) for k, v in found.conditions.items()})

    other = replace(bench.setup, inputs=inputs)
    return bench.verdict(q1=bench.trace("prompt", TorchRunner(bench.models["q1"]), "adapted", other))


def wrong_seed(bench: Bench) -> Verdict:
    """The artifact starts from other noise; traces like that are refused."""
    other = tuple(probe.model_copy(update={"seed": probe.seed + 1}) for probe in bench.sampler.probes)
    asked = subject(f"{bench.scheme.name} seed", TorchRunner(bench.models["q1"]))
    return bench.verdict(q1=replace(bench.sampler, probes=other).reference(asked, quiet))


def late_timestep(bench: Bench) -> Verdict:
    """The artifact is asked one step of the solver later than it should be."""
    times = bench.setup.all_timesteps()
    late = Altered(TorchRunner(bench.models["q1"]), time=lambda t: max(t - (times[0] - times[1]), 0))
    return bench.verdict(q1=bench.trace("late", late, "adapted"))


def off_by_one(bench: Bench) -> Verdict:
    """The exporter's timestep is one too small: .1 % of the schedule."""
    late = Altered(TorchRunner(bench.models["f1"]), time=lambda t: max(t - 1, 0))
    return bench.verdict(exported=bench.trace("shift", late, "adapted"))


def one_nan(bench: Bench) -> Verdict:
    """One bias of the artifact's last layer is not a number."""
    return _without_number(bench, "conv_out")


def inner_nan(bench: Bench) -> Verdict:
    """The same before a quantizer, which turns what is not a number into a code: outputs may not show it."""
    return _without_number(bench, "mid_block.resnets.0.conv1")


def _without_number(bench: Bench, layer: str) -> Verdict:
    state = bench.weights("f1")
    state[f"{layer}.bias"][0] = float("nan")
    return bench.verdict(q1=bench.trace(f"nan {layer}", bench.quantized(state), "adapted"))


def no_quantizer(bench: Bench) -> Verdict:
    """The quantizer did nothing: the outputs are perfect."""
    return bench.verdict(
        q0=bench.trace("noop0", TorchRunner(bench.models["f0"]), "base"),
        q1=bench.trace("noop1", TorchRunner(bench.models["f1"]), "adapted"),
    )


def blunt(bench: Bench) -> Verdict:
    """A part of the adapter's weight does as much as all of it: its survival cannot show a loss."""
    return bench.verdict(half=bench.traces["exported"])


def hidden_flicker(bench: Bench) -> Verdict:
    """The adapter flickers at full precision and no longer once quantized."""
    return bench.verdict(f1=_altered(bench, "f1", "flicker", _noisy(0.3)))


def hidden_grid(bench: Bench) -> Verdict:
    """The adapter draws a checkerboard at full precision and no longer once quantized."""
    return bench.verdict(f1=ends(bench.traces["f1"], "hidden grid", _checkered(bench, 1.0)))


FAULTS: dict[str, Callable[[Bench], Verdict]] = {
    "dead-zone merge": dead_zone,
    "dropped adapter": dropped,
    "alpha x 4": alpha,
    "hot column": hot_column,
    "double rounding": double_rounding,
    "blur": blur,
    "checkerboard": checkerboard,
    "patch bias": patch_bias,
    "contrast drift": drift,
    "step noise": step_noise,
    "late-timestep clip": late_clip,
    "swapped prompt": swapped_prompt,
    "wrong seed": wrong_seed,
    "a step late": late_timestep,
    "export off by one timestep": off_by_one,
    "forgotten at the end": forgotten,
    "forgotten group": forgotten_group,
    "coarse arithmetic": coarse,
    "saturated adapter": saturated,
    "both arms clipped": both_clipped,
    "one NaN": one_nan,
    "one NaN before a quantizer": inner_nan,
    "quantizer does nothing": no_quantizer,
    "blunt instrument": blunt,
    "hidden flicker": hidden_flicker,
    "hidden grid": hidden_grid,
}
DIAGONAL: list[tuple[str, Arm, str]] = [
    ("export_control", "adapted", "export off by one timestep"),
    ("compute_control", "adapted", "coarse arithmetic"),
    ("noop_control", "adapted", "quantizer does nothing"),
    ("noop_control", "base", "quantizer does nothing"),
    ("effect_survival", "adapted", "dead-zone merge"),
    ("effect_survival", "adapted", "dropped adapter"),
    ("effect_survival", "adapted", "alpha x 4"),
    ("weakened_survival", "adapted", "blunt instrument"),
    ("group_survival", "adapted", "forgotten group"),
    ("stratum_survival", "adapted", "forgotten at the end"),
    ("stratum_survival", "adapted", "both arms clipped"),
    ("effect_to_error", "adapted", "double rounding"),
    ("worst_stratum", "adapted", "late-timestep clip"),
    ("endpoint_error", "adapted", "swapped prompt"),
    ("over_smoothing", "adapted", "blur"),
    ("lattice_amplitude", "adapted", "checkerboard"),
    ("latent_kl_excess", "adapted", "contrast drift"),
    ("hidden_jitter", "both", "hidden flicker"),
    ("hidden_lattice", "both", "hidden grid"),
    ("reference_deviation", "adapted", "saturated adapter"),
]
FAINT = {"dead-zone merge", "double rounding", "alpha x 4"}  # seen on "faint" under int4-g128, not on "flat" under int8
