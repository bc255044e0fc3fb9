"""The calibration of every layer's input: its range, and factors that smooth it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from qcheck.calibration import histogram, pictures
from qcheck.calibration.histogram import Histogram, LayerInputs
from qcheck.core import cache
from qcheck.core.cache import Cache
from qcheck.core.digest import digest_of, digest_of_value
from qcheck.core.errors import UserError
from qcheck.core.progress import Stopwatch
from qcheck.model import lora
from qcheck.model.arms import Arms
from qcheck.model.inputs import observed
from qcheck.quantize import plan
from qcheck.quantize.contents import Origin, Ranges, calibrated_on
from qcheck.quantize.formats import Format, Integer
from qcheck.quantize.plan import Input
from qcheck.sampling import subject
from qcheck.sampling.sampler import Sampler
from qcheck.sampling.setup import forwards
from qcheck.sampling.store import Arrays
from qcheck.spec import ranges as range_files
from qcheck.spec import recipe
from qcheck.spec.arm import SIDES, Side
from qcheck.spec.check import CheckSpec
from qcheck.spec.order import Order
from qcheck.spec.probe import ProbeSet
from qcheck.spec.ranges import Ranges as RangesFile
from qcheck.spec.recipe import METHODS, Method, PromptSet, Recipe
from qcheck.spec.scheme import Scheme, Smoothing
from qcheck.spec.use import Use

# the arm whose run gives the states, and the arm whose layers are observed at them
_RUNS: Mapping[Origin, tuple[Side, Side]] = {
    "base": ("adapted", "base"),
    "adapted": ("adapted", "adapted"),
    "shared": ("base", "base"),  # independent of the adapter: one engine serves all adapters
}


@dataclass(frozen=True)
class Calibrator:
    """Everything that calibration needs: both arms, the request, and the cache.

    ``prompts`` replace the recipe's; ``pictures`` are the user's own, one for each prompt. Their noised latents then
    replace the latents that the model visits.
    """

    arms: Arms
    spec: CheckSpec
    store: Cache
    watch: Stopwatch
    prompts: PromptSet | None = None
    pictures: tuple[Path, ...] = ()

    def prompts_of(self, origin: Origin) -> ProbeSet:
        """The calibration prompts; all but those of "shared" contain the adapter's trigger words."""
        spec = self.spec
        trigger = None if origin == "shared" else spec.trigger
        return recipe.calibration(spec.recipe, spec.probes, trigger, self.prompts)

    def sampler(self, probes: ProbeSet) -> Sampler:
        """A sampler of the calibration prompts, with the recipe's number of strata."""
        spec = self.spec
        return Sampler.of(self.arms, probes, spec.recipe.strata, spec.execution.batch, self.store)

    def inputs(self, scheme: Scheme) -> Ranges:
        """The ranges and factors of ``scheme``, as ``layer_inputs``."""
        return layer_inputs(self, scheme)

    def contents(self, origin: Origin) -> list[str]:
        """Digests of the weights that the inputs of ``origin`` depend on."""
        return [self.arms.content(side) for side in dict.fromkeys(_RUNS[origin])]


def origins_of(orders: Sequence[Order]) -> tuple[Origin, ...]:
    """The origins of the inputs that the artifacts of these orders need."""
    return tuple(dict.fromkeys(("base", "adapted", *map(calibrated_on, orders))))


def layer_inputs(calibrator: Calibrator, scheme: Scheme) -> Ranges:
    """Ranges and factors of every layer's input, for every origin that the orders of the request need.

    Nothing is run for a scheme that quantizes weights alone.
    """
    origins = origins_of(calibrator.spec.orders)
    layers = dict(plan.linear_layers(calibrator.arms.base.denoiser))
    if not any(rule.activations for rule in scheme.rules):
        plain = dict.fromkeys(layers, Input(0.0))
        return {origin: plain | find_factors(calibrator, scheme, origin) for origin in origins}
    numbers, range_recipe = plan.input_formats(calibrator.arms.base.denoiser, scheme), calibrator.spec.recipe
    if calibrator.spec.ranges is not None:
        from_file = _ranges_from_file(calibrator, scheme, numbers, Path(calibrator.spec.ranges))
        if absent := [origin for origin in origins if origin not in from_file]:
            raise UserError(f"the ranges lack those of {absent[0]}", "Run `qcheck calibrate` with --order refit.")
        return {origin: from_file[origin] | find_factors(calibrator, scheme, origin) for origin in origins}
    return {
        origin: histogram.clips(find_ranges(calibrator, origin), numbers, range_recipe)
        | find_factors(calibrator, scheme, origin)
        for origin in origins
    }


def _ranges_from_file(
    calibrator: Calibrator, scheme: Scheme, numbers: Mapping[str, Format], path: Path
) -> dict[str, dict[str, Input]]:
    """Input ranges from the user's file, by origin."""
    file = range_files.read(path)
    contents: dict[str, str] = {side: calibrator.arms.content(side) for side in SIDES}
    formats = {layer: number.name for layer, number in numbers.items()}
    range_files.require_fit(file, contents, scheme.name, formats, calibrator.spec.probes)
    return {
        origin: {layer: Input(cuts[file.method] if layer in numbers else cuts["max"]) for layer, cuts in layers.items()}
        for origin, layers in file.cuts.items()
    }


def ranges_file(calibrator: Calibrator, scheme: Scheme, left_out: Mapping[str, str]) -> RangesFile:
    """Ranges of a scheme by every method from one pass, as a file.

    Raises:
        UserError: the scheme has no inputs with fixed ranges.
    """
    numbers, range_recipe = plan.input_formats(calibrator.arms.base.denoiser, scheme), calibrator.spec.recipe
    if not numbers:
        raise UserError(
            f"scheme {scheme.name!r} needs no ranges: its inputs stay in float or get their steps while it runs",
            "Calibrate for a scheme with quantized activations, such as int8 or fp8.",
        )
    origins = origins_of(calibrator.spec.orders)
    prompts = calibrator.prompts_of("adapted")
    cuts = {
        origin: {
            layer: _cuts(inputs, numbers.get(layer), range_recipe)
            for layer, inputs in find_ranges(calibrator, origin).items()
        }
        for origin in origins
    }
    return RangesFile(
        contents={side: calibrator.arms.content(side) for side in SIDES},
        scheme=scheme.name,
        formats={layer: number.name for layer, number in numbers.items()},
        method=range_recipe.method,
        percentile=range_recipe.percentile,
        merge=range_recipe.merge,
        settings=range_files.settings(prompts),
        prompts=list(prompts.prompts),
        prompts_digest=digest_of_value(prompts),
        pictures={path.name: digest_of(path) for path in calibrator.pictures},
        left_out=dict(left_out),
        cuts={str(origin): layers for origin, layers in cuts.items()},
    )


def _cuts(inputs: LayerInputs, number: Format | None, range_recipe: Recipe) -> dict[Method, float]:
    """The cut by every method that the format has; the maximum alone where the input stays in float."""
    usable = [m for m in METHODS if m == range_recipe.method or m != "entropy" or isinstance(number, Integer)]
    if not number:
        return {"max": inputs.absmax}
    return {m: inputs.clip(m, number, range_recipe.percentile, range_recipe.merge) for m in usable}


def own_prompts(source: str) -> list[str]:
    """Prompts from an adapter's metadata: the trigger phrase, then it with each tag, by descending frequency."""
    adapter = lora.read(Use(source=source, weight=1.0))
    tags = list(lora.tag_counts(adapter))
    phrases = [word for word in lora.trigger_words(adapter)[:1] if word not in tags] or tags[:1]
    return [*phrases, *(f"{phrases[0]}, {tag}" for tag in tags if tag not in phrases)]


def find_ranges(calibrator: Calibrator, origin: Origin) -> Mapping[str, LayerInputs]:
    """Statistics of every layer's inputs at the latents visited on the calibration prompts, or at noised pictures.

    One pass serves every method that reads ranges from the statistics.
    """
    prompts = calibrator.prompts_of(origin)
    values = (repr(calibrator.spec.recipe.strata), digest_of_value(prompts))
    contents = (*calibrator.contents(origin), calibrator.arms.device.title)
    key = cache.key(__name__, "ranges", origin, *contents, *values, *calibrator.pictures)
    about = f"{calibrator.arms.base.source}, prompts {prompts.name}, {origin}"

    def make(place: Path) -> None:
        histogram.save({origin: _observe(calibrator, origin, prompts)}, place)

    return histogram.load(calibrator.store.obtain("ranges", key, about, make), origin)


def _observe(calibrator: Calibrator, origin: Origin, prompts: ProbeSet) -> dict[str, LayerInputs]:
    run_side, observed_side = _RUNS[origin]
    sampler = calibrator.sampler(prompts)
    model = calibrator.arms.computing.denoiser
    layers = dict(plan.linear_layers(model))
    observer = Histogram(len(sampler.setup.strata))
    free_runs = 0 if calibrator.pictures else 1
    calls = forwards(sampler.setup, free_runs, 1, len(sampler.probes))
    with calibrator.watch.stage(f"calibration, {origin}", calls) as advance:
        states: Arrays
        if calibrator.pictures:
            encoder = calibrator.arms.computing.family
            states = pictures.states(sampler.setup, encoder, sampler.probes, calibrator.pictures)
        else:
            states = sampler.reference(subject.full(calibrator.arms, run_side), advance).states()
        with subject.full(calibrator.arms, observed_side).open() as runner, observed(model, layers, observer):
            sampler.run(runner, observed_side, states, advance, observer.enter)
    statistics = observer.seen()
    if broken := [layer for layer, inputs in statistics.items() if not np.isfinite(inputs.absmax)]:
        raise UserError(
            f"layer {broken[0]} receives values that are not finite on the calibration prompts, at full precision",
            "The adapter or the base breaks on them: lower --weight or --guidance, or take another --recipe.",
        )
    return statistics


def find_factors(calibrator: Calibrator, scheme: Scheme, origin: Origin) -> dict[str, Input]:
    """Factors of SmoothQuant or AWQ, from the same states as the ranges; empty where the scheme has none."""
    smoothing = scheme.smoothing
    if smoothing is None:
        return {}
    prompts = calibrator.prompts_of(origin)
    values = (digest_of_value(scheme), digest_of_value(calibrator.spec.recipe), digest_of_value(prompts))
    key = cache.key(__name__, "factors", origin, *calibrator.contents(origin), calibrator.arms.device.title, *values)
    about = f"{calibrator.arms.base.source}, {scheme.name}, {origin}"
    folder = calibrator.store.obtain(
        "factors",
        key,
        about,
        lambda place: histogram.save_inputs(_smooth(calibrator, scheme, smoothing, origin, prompts), place),
    )
    return histogram.load_inputs(folder)


_SEARCHED = 4  # AWQ's search costs some seventeen forwards a state, so it gets a fourth of the prompts


def _smooth(
    calibrator: Calibrator, scheme: Scheme, smoothing: Smoothing, origin: Origin, prompts: ProbeSet
) -> dict[str, Input]:
    from qcheck.calibration import smoothing as factors  # an extra that only its schemes need

    run_side, side = _RUNS[origin]
    sampler = calibrator.sampler(prompts)
    if not any(rule.activations for rule in scheme.rules):  # else the factors come with input ranges, from all prompts
        sampler = sampler.take(max(1, len(sampler.probes) // _SEARCHED))
    reference = sampler.reference(subject.full(calibrator.arms, run_side), lambda _: None)
    calls = forwards(sampler.setup, 0, 1, len(sampler.probes))
    with (
        calibrator.watch.stage(f"{scheme.name}: {smoothing.method} of {origin}", calls) as advance,
        calibrator.arms.running(side) as family,
    ):

        def run(model: nn.Module) -> None:
            sampler.run(subject.runner(calibrator.arms, model), side, reference.states(), advance)

        layers = plan.chosen_layers(family.module, scheme, calibrator.spec.recipe)
        return factors.smoothed(family.module, layers, smoothing, run)
