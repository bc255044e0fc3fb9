"""What calibration finds for the inputs of every layer: where they are cut, and factors that smooth them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import nn

from qcheck.calibrate import histogram, pictures
from qcheck.calibrate.histogram import Histogram, Seen, observed
from qcheck.core import cache
from qcheck.core.digest import digest_of, digest_of_value
from qcheck.core.errors import UserError
from qcheck.model import lora
from qcheck.quantize import plan
from qcheck.quantize.artifact import Origin, Ranges
from qcheck.quantize.formats import Format, Integer
from qcheck.quantize.plan import Input
from qcheck.runtime.torch_runner import TorchRunner
from qcheck.sampling import sampler
from qcheck.sampling.setup import forwards
from qcheck.sampling.store import Arrays
from qcheck.spec import ranges as range_files
from qcheck.spec import recipe
from qcheck.spec.arm import SIDES, Side
from qcheck.spec.check import Use
from qcheck.spec.probe import ProbeSet
from qcheck.spec.ranges import Ranges as RangesFile
from qcheck.spec.recipe import METHODS, Method, Recipe
from qcheck.spec.scheme import Scheme, Smoothing
from qcheck.tasks.work import Work, matched

# whose walk the states are of, and who is asked there
_WALKS: Mapping[Origin, tuple[Side, Side]] = {
    "base": ("adapted", "base"),
    "adapted": ("adapted", "adapted"),
    "shared": ("base", "base"),  # knows no adapter: one engine serves them all
}


def inputs(work: Work, scheme: Scheme) -> Ranges:
    """What the scheme needs to know of every layer's input, for every origin that an order of the job asks for.

    Nothing is run for weights alone.
    """
    origins: tuple[Origin, ...] = ("base", "adapted", "shared") if "refit" in work.job.orders else ("base", "adapted")
    layers = dict(plan.linear_layers(work.arms.base.denoiser))
    if not any(rule.activations for rule in scheme.rules):
        plain = dict.fromkeys(layers, Input(0.0))
        return {origin: plain | find_factors(work, scheme, origin) for origin in origins}
    numbers, how = plan.input_formats(work.arms.base.denoiser, scheme), work.job.recipe
    if work.job.ranges is not None:
        given = _given(work, scheme, numbers, work.job.ranges)
        if absent := [origin for origin in origins if origin not in given]:
            raise UserError(f"the ranges lack those of {absent[0]}", "Run `qcheck calibrate` with --order refit.")
        return {origin: given[origin] | find_factors(work, scheme, origin) for origin in origins}
    return {
        origin: histogram.clips(find_ranges(work, origin), numbers, how) | find_factors(work, scheme, origin)
        for origin in origins
    }


def _given(work: Work, scheme: Scheme, numbers: Mapping[str, Format], path: Path) -> dict[str, dict[str, Input]]:
    """What the user's file says."""
    found = range_files.read(path)
    contents: dict[str, str] = {side: work.arms.content(side) for side in SIDES}
    formats = {layer: number.name for layer, number in numbers.items()}
    range_files.require_fit(found, contents, scheme.name, formats, work.job.probes)
    return {
        origin: {
            layer: Input(cuts[found.method] if layer in numbers else cuts["max"]) for layer, cuts in layers.items()
        }
        for origin, layers in found.cuts.items()
    }


def ranges_file(work: Work, scheme: Scheme, left_out: Mapping[str, str]) -> RangesFile:
    """Ranges of a scheme by every method from one pass, as a file.

    Raises:
        UserError: the scheme has no inputs on fixed steps.
    """
    numbers, how, job = plan.input_formats(work.arms.base.denoiser, scheme), work.job.recipe, work.job
    if not numbers:
        raise UserError(
            f"scheme {scheme.name!r} needs no ranges: its inputs stay in float or get their steps while it runs",
            "Calibrate for a scheme with quantized activations, such as int8 or fp8.",
        )
    origins: tuple[Origin, ...] = ("base", "adapted", "shared") if "refit" in job.orders else ("base", "adapted")
    chosen = _prompts(work, "adapted")
    cuts = {
        origin: {layer: _cuts(seen, numbers.get(layer), how) for layer, seen in find_ranges(work, origin).items()}
        for origin in origins
    }
    return RangesFile(
        contents={side: work.arms.content(side) for side in SIDES},
        scheme=scheme.name,
        formats={layer: number.name for layer, number in numbers.items()},
        method=how.method,
        percentile=how.percentile,
        merge=how.merge,
        settings=range_files.settings(chosen),
        prompts=list(chosen.prompts),
        prompts_digest=digest_of_value(chosen),
        pictures={path.name: digest_of(path) for path in job.pictures},
        left_out=dict(left_out),
        cuts={str(origin): layers for origin, layers in cuts.items()},
    )


def _cuts(seen: Seen, number: Format | None, how: Recipe) -> dict[Method, float]:
    """The cut by every method that the format has; the maximum alone where the input stays in float."""
    usable = [m for m in METHODS if m == how.method or m != "entropy" or isinstance(number, Integer)]
    return {m: seen.clip(m, number, how.percentile, how.merge) for m in usable} if number else {"max": seen.absmax}


def own_prompts(source: str) -> list[str]:
    """Prompts from what a trainer wrote into an adapter's file: the trigger phrase with each tag, commonest first."""
    adapter = lora.read(Use(source, 1.0))
    tags = list(lora.tag_counts(adapter))
    phrases = [word for word in lora.trigger_words(adapter)[:1] if word not in tags] or tags[:1]
    return [*phrases, *(f"{phrases[0]}, {tag}" for tag in tags if tag not in phrases)]


def _prompts(work: Work, origin: Origin) -> ProbeSet:
    """Calibration prompts; the adapter's trigger words are in all but the shared ones."""
    job = work.job
    return recipe.calibration(job.recipe, job.probes, None if origin == "shared" else job.trigger, job.calibrating)


def _contents(work: Work, origin: Origin) -> list[str]:
    return [work.arms.content(side) for side in dict.fromkeys(_WALKS[origin])]


def find_ranges(work: Work, origin: Origin) -> Mapping[str, Seen]:
    """Inputs of every layer at the states of a walk on the calibration prompts, or of the user's pictures under noise.

    One pass, whatever the method that reads ranges from it.
    """
    if origin not in work.seen:
        chosen = _prompts(work, origin)
        values = (repr(work.job.recipe.strata), digest_of_value(chosen))
        key = cache.key("ranges", origin, *_contents(work, origin), *values, *work.job.pictures)
        about = f"{work.arms.base.source}, prompts {chosen.name}, {origin}"

        def make(place: Path) -> None:
            histogram.save({origin: _observe(work, origin, chosen)}, place)

        work.seen[origin] = histogram.load(work.store.obtain("ranges", key, about, make), origin)
    return work.seen[origin]


def _observe(work: Work, origin: Origin, chosen: ProbeSet) -> dict[str, Seen]:
    walker, asked = _WALKS[origin]
    setup, probes = matched(work.arms, work.job, chosen, work.job.recipe.strata)
    layers = dict(plan.linear_layers(work.arms.base.denoiser))
    seen = Histogram(len(setup.strata))
    walks = 0 if work.job.pictures else 1
    with work.timed(f"calibration, {origin}", forwards(setup, walks, 1, len(probes))) as advance:
        states: Arrays
        if work.job.pictures:
            states = pictures.states(setup, probes, work.job.pictures)
        else:
            states = sampler.reference(setup, work.full(walker), probes, work.store, advance).states()
        with observed(layers, [seen]):
            sampler.visit(setup, states, work.full(asked).runner(), asked, probes, advance, seen.enter)
    found = seen.seen()
    if odd := [layer for layer, given in found.items() if not np.isfinite(given.absmax)]:
        raise UserError(
            f"layer {odd[0]} receives values that are not finite on the calibration prompts, at full precision",
            "The adapter or the base breaks on them: lower --weight or --guidance, or take another --recipe.",
        )
    return found


def find_factors(work: Work, scheme: Scheme, origin: Origin) -> dict[str, Input]:
    """Factors of SmoothQuant or AWQ, on the states that ranges come from; none where the scheme has none."""
    smoothing, job = scheme.smoothing, work.job
    if smoothing is None:
        return {}
    chosen = _prompts(work, origin)
    values = (digest_of_value(scheme), digest_of_value(job.recipe), digest_of_value(chosen))
    key = cache.key("factors", origin, *_contents(work, origin), *values)
    about = f"{work.arms.base.source}, {scheme.name}, {origin}"
    folder = work.store.obtain(
        "factors",
        key,
        about,
        lambda place: histogram.save_inputs(_smooth(work, scheme, smoothing, origin, chosen), place),
    )
    return histogram.load_inputs(folder)


_SEARCHED = 4  # AWQ's search costs some seventeen forwards a state, so it sees a fourth of the prompts


def _smooth(work: Work, scheme: Scheme, smoothing: Smoothing, origin: Origin, chosen: ProbeSet) -> dict[str, Input]:
    from qcheck.calibrate import smoothing as modelopt  # an extra that only its schemes need

    walker, side = _WALKS[origin]
    setup, probes = matched(work.arms, work.job, chosen, work.job.recipe.strata)
    if not any(rule.activations for rule in scheme.rules):  # else the factors come with the range of what they yield
        probes = probes[: max(1, len(probes) // _SEARCHED)]
    reached = sampler.reference(setup, work.full(walker), probes, work.store, lambda _: None)
    family = work.arms.use(side)
    with work.timed(f"{scheme.name}: {smoothing.method} of {origin}", forwards(setup, 0, 1, len(probes))) as advance:

        def run(model: nn.Module) -> None:
            sampler.visit(setup, reached.states(), TorchRunner(family.entry(model)), side, probes, advance)

        layers = plan.chosen_layers(family.module, scheme, work.job.recipe)
        return modelopt.smoothed(family.module, layers, smoothing, run)
