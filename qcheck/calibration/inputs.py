"""What calibration finds for the inputs of every layer: where they are cut, and factors that smooth them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from qcheck.calibration import histogram, pictures
from qcheck.calibration.histogram import Histogram, LayerInputs, observed
from qcheck.core import cache
from qcheck.core.cache import Cache
from qcheck.core.digest import digest_of, digest_of_value
from qcheck.core.errors import UserError
from qcheck.core.progress import Stopwatch
from qcheck.model import lora
from qcheck.model.arms import Arms
from qcheck.quantize import plan
from qcheck.quantize.artifact import Origin, Ranges, calibrated_on
from qcheck.quantize.formats import Format, Integer
from qcheck.quantize.plan import Input
from qcheck.runtime.torch_runner import TorchRunner
from qcheck.sampling import subject
from qcheck.sampling.sampler import Sampler
from qcheck.sampling.setup import forwards
from qcheck.sampling.store import Arrays
from qcheck.spec import ranges as range_files
from qcheck.spec import recipe
from qcheck.spec.arm import SIDES, Side
from qcheck.spec.check import CheckSpec, Use
from qcheck.spec.order import Order
from qcheck.spec.probe import ProbeSet
from qcheck.spec.ranges import Ranges as RangesFile
from qcheck.spec.recipe import METHODS, Method, PromptSet, Recipe
from qcheck.spec.scheme import Scheme, Smoothing

# whose run the states are of, and which arm's layers are observed there
_RUNS: Mapping[Origin, tuple[Side, Side]] = {
    "base": ("adapted", "base"),
    "adapted": ("adapted", "adapted"),
    "shared": ("base", "base"),  # knows no adapter: one engine serves them all
}


@dataclass(frozen=True)
class Calibrator:
    """What ranges and factors are found with: both arms, the request, where results are kept.

    ``prompts`` replace the recipe's; ``pictures`` are the user's own, one of each prompt, whose latents under noise are
    met in place of the model's own.
    """

    arms: Arms
    spec: CheckSpec
    store: Cache
    watch: Stopwatch
    prompts: PromptSet | None = None
    pictures: tuple[Path, ...] = ()

    def prompts_of(self, origin: Origin) -> ProbeSet:
        """Calibration prompts; the adapter's trigger words are in all but the shared ones."""
        spec = self.spec
        trigger = None if origin == "shared" else spec.trigger
        return recipe.calibration(spec.recipe, spec.probes, trigger, self.prompts)

    def sampler(self, chosen: ProbeSet) -> Sampler:
        """Runs of the calibration prompts, compared at the recipe's strata."""
        spec = self.spec
        return Sampler.of(self.arms, chosen, spec.recipe.strata, spec.execution.batch, self.store)

    def inputs(self, scheme: Scheme) -> Ranges:
        """As ``layer_inputs``."""
        return layer_inputs(self, scheme)

    def contents(self, origin: Origin) -> list[str]:
        """Digests of the arms' weights that an origin's inputs depend on."""
        return [self.arms.content(side) for side in dict.fromkeys(_RUNS[origin])]


def origins_of(orders: Sequence[Order]) -> tuple[Origin, ...]:
    """Whose inputs the artifacts of these orders need."""
    return tuple(dict.fromkeys(("base", "adapted", *map(calibrated_on, orders))))


def layer_inputs(by: Calibrator, scheme: Scheme) -> Ranges:
    """What the scheme needs to know of every layer's input, for every origin that an order of the request asks for.

    Nothing is run for weights alone.
    """
    origins = origins_of(by.spec.orders)
    layers = dict(plan.linear_layers(by.arms.base.denoiser))
    if not any(rule.activations for rule in scheme.rules):
        plain = dict.fromkeys(layers, Input(0.0))
        return {origin: plain | find_factors(by, scheme, origin) for origin in origins}
    numbers, how = plan.input_formats(by.arms.base.denoiser, scheme), by.spec.recipe
    if by.spec.ranges is not None:
        given = _given(by, scheme, numbers, Path(by.spec.ranges))
        if absent := [origin for origin in origins if origin not in given]:
            raise UserError(f"the ranges lack those of {absent[0]}", "Run `qcheck calibrate` with --order refit.")
        return {origin: given[origin] | find_factors(by, scheme, origin) for origin in origins}
    return {
        origin: histogram.clips(find_ranges(by, origin), numbers, how) | find_factors(by, scheme, origin)
        for origin in origins
    }


def _given(by: Calibrator, scheme: Scheme, numbers: Mapping[str, Format], path: Path) -> dict[str, dict[str, Input]]:
    """What the user's file says."""
    found = range_files.read(path)
    contents: dict[str, str] = {side: by.arms.content(side) for side in SIDES}
    formats = {layer: number.name for layer, number in numbers.items()}
    range_files.require_fit(found, contents, scheme.name, formats, by.spec.probes)
    return {
        origin: {
            layer: Input(cuts[found.method] if layer in numbers else cuts["max"]) for layer, cuts in layers.items()
        }
        for origin, layers in found.cuts.items()
    }


def ranges_file(by: Calibrator, scheme: Scheme, left_out: Mapping[str, str]) -> RangesFile:
    """Ranges of a scheme by every method from one pass, as a file.

    Raises:
        UserError: the scheme has no inputs on fixed steps.
    """
    numbers, how = plan.input_formats(by.arms.base.denoiser, scheme), by.spec.recipe
    if not numbers:
        raise UserError(
            f"scheme {scheme.name!r} needs no ranges: its inputs stay in float or get their steps while it runs",
            "Calibrate for a scheme with quantized activations, such as int8 or fp8.",
        )
    origins = origins_of(by.spec.orders)
    chosen = by.prompts_of("adapted")
    cuts = {
        origin: {layer: _cuts(seen, numbers.get(layer), how) for layer, seen in find_ranges(by, origin).items()}
        for origin in origins
    }
    return RangesFile(
        contents={side: by.arms.content(side) for side in SIDES},
        scheme=scheme.name,
        formats={layer: number.name for layer, number in numbers.items()},
        method=how.method,
        percentile=how.percentile,
        merge=how.merge,
        settings=range_files.settings(chosen),
        prompts=list(chosen.prompts),
        prompts_digest=digest_of_value(chosen),
        pictures={path.name: digest_of(path) for path in by.pictures},
        left_out=dict(left_out),
        cuts={str(origin): layers for origin, layers in cuts.items()},
    )


def _cuts(seen: LayerInputs, number: Format | None, how: Recipe) -> dict[Method, float]:
    """The cut by every method that the format has; the maximum alone where the input stays in float."""
    usable = [m for m in METHODS if m == how.method or m != "entropy" or isinstance(number, Integer)]
    return {m: seen.clip(m, number, how.percentile, how.merge) for m in usable} if number else {"max": seen.absmax}


def own_prompts(source: str) -> list[str]:
    """Prompts from what a trainer wrote into an adapter's file: the trigger phrase with each tag, commonest first."""
    adapter = lora.read(Use(source=source, weight=1.0))
    tags = list(lora.tag_counts(adapter))
    phrases = [word for word in lora.trigger_words(adapter)[:1] if word not in tags] or tags[:1]
    return [*phrases, *(f"{phrases[0]}, {tag}" for tag in tags if tag not in phrases)]


def find_ranges(by: Calibrator, origin: Origin) -> Mapping[str, LayerInputs]:
    """Inputs of every layer at the states of a walk on the calibration prompts, or of the user's pictures under noise.

    One pass, whatever the method that reads ranges from it.
    """
    chosen = by.prompts_of(origin)
    values = (repr(by.spec.recipe.strata), digest_of_value(chosen))
    key = cache.key(__name__, "ranges", origin, *by.contents(origin), *values, *by.pictures)
    about = f"{by.arms.base.source}, prompts {chosen.name}, {origin}"

    def make(place: Path) -> None:
        histogram.save({origin: _observe(by, origin, chosen)}, place)

    return histogram.load(by.store.obtain("ranges", key, about, make), origin)


def _observe(by: Calibrator, origin: Origin, chosen: ProbeSet) -> dict[str, LayerInputs]:
    runs, observed_side = _RUNS[origin]
    sampler = by.sampler(chosen)
    layers = dict(plan.linear_layers(by.arms.base.denoiser))
    seen = Histogram(len(sampler.setup.strata))
    free = 0 if by.pictures else 1
    with by.watch.stage(f"calibration, {origin}", forwards(sampler.setup, free, 1, len(sampler.probes))) as advance:
        states: Arrays
        if by.pictures:
            states = pictures.states(sampler.setup, sampler.probes, by.pictures)
        else:
            states = sampler.reference(subject.full(by.arms, runs), advance).states()
        with subject.full(by.arms, observed_side).open() as runner, observed(layers, [seen]):
            sampler.run(runner, observed_side, states, advance, seen.enter)
    found = seen.seen()
    if odd := [layer for layer, given in found.items() if not np.isfinite(given.absmax)]:
        raise UserError(
            f"layer {odd[0]} receives values that are not finite on the calibration prompts, at full precision",
            "The adapter or the base breaks on them: lower --weight or --guidance, or take another --recipe.",
        )
    return found


def find_factors(by: Calibrator, scheme: Scheme, origin: Origin) -> dict[str, Input]:
    """Factors of SmoothQuant or AWQ, on the states that ranges come from; none where the scheme has none."""
    smoothing = scheme.smoothing
    if smoothing is None:
        return {}
    chosen = by.prompts_of(origin)
    values = (digest_of_value(scheme), digest_of_value(by.spec.recipe), digest_of_value(chosen))
    key = cache.key(__name__, "factors", origin, *by.contents(origin), *values)
    about = f"{by.arms.base.source}, {scheme.name}, {origin}"
    folder = by.store.obtain(
        "factors",
        key,
        about,
        lambda place: histogram.save_inputs(_smooth(by, scheme, smoothing, origin, chosen), place),
    )
    return histogram.load_inputs(folder)


_SEARCHED = 4  # AWQ's search costs some seventeen forwards a state, so it sees a fourth of the prompts


def _smooth(by: Calibrator, scheme: Scheme, smoothing: Smoothing, origin: Origin, chosen: ProbeSet) -> dict[str, Input]:
    from qcheck.calibration import smoothing as factors  # an extra that only its schemes need

    runs, side = _RUNS[origin]
    sampler = by.sampler(chosen)
    if not any(rule.activations for rule in scheme.rules):  # else the factors come with the range of what they yield
        sampler = sampler.take(max(1, len(sampler.probes) // _SEARCHED))
    reached = sampler.reference(subject.full(by.arms, runs), lambda _: None)
    calls = forwards(sampler.setup, 0, 1, len(sampler.probes))
    with (
        by.watch.stage(f"{scheme.name}: {smoothing.method} of {origin}", calls) as advance,
        by.arms.held(side) as family,
    ):

        def run(model: nn.Module) -> None:
            sampler.run(TorchRunner(family.entry(model)), side, reached.states(), advance)

        layers = plan.chosen_layers(family.module, scheme, by.spec.recipe)
        return factors.smoothed(family.module, layers, smoothing, run)
