"""What calibration finds for the inputs of every layer: where they are cut, and factors that smooth them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import nn

from qcheck import cache, files, recipe, trace
from qcheck.artifact import Origin, Ranges
from qcheck.backend.torch import TorchRunner
from qcheck.errors import UserError
from qcheck.model.arms import Side
from qcheck.probe import ProbeSet
from qcheck.quantize import plan, ranges
from qcheck.quantize.plan import Input
from qcheck.quantize.ranges import Histogram, Seen, observed
from qcheck.scheme import Scheme, Smoothing
from qcheck.work import Work, matched

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
    return {
        origin: ranges.clips(find_ranges(work, origin), numbers, how) | find_factors(work, scheme, origin)
        for origin in origins
    }


def _prompts(work: Work, origin: Origin) -> ProbeSet:
    """Calibration prompts; the adapter's trigger words are in all but the shared ones."""
    job = work.job
    return recipe.calibration(job.recipe, job.probes, None if origin == "shared" else job.trigger)


def _contents(work: Work, origin: Origin) -> list[str]:
    return [work.arms.content(side) for side in dict.fromkeys(_WALKS[origin])]


def find_ranges(work: Work, origin: Origin) -> Mapping[str, Seen]:
    """Inputs of every layer at the states of a walk on the calibration prompts.

    One pass, whatever the method that reads ranges from it.
    """
    if origin not in work.seen:
        chosen = _prompts(work, origin)
        values = (repr(work.job.recipe.strata), files.digest_value(chosen))
        key = cache.key("ranges", origin, *_contents(work, origin), *values)
        about = f"{work.arms.base.source}, prompts {chosen.name}, {origin}"

        def make(place: Path) -> None:
            ranges.save({origin: _observe(work, origin, chosen)}, place)

        work.seen[origin] = ranges.load(work.store.obtain("ranges", key, about, make), origin)
    return work.seen[origin]


def _observe(work: Work, origin: Origin, chosen: ProbeSet) -> dict[str, Seen]:
    walker, asked = _WALKS[origin]
    setup, probes = matched(work.arms, work.job, chosen, work.job.recipe.strata)
    layers = dict(plan.linear_layers(work.arms.base.denoiser))
    seen = Histogram()
    with work.timed(f"calibration, {origin}", trace.forwards(setup, 1, 1, len(probes))) as advance:
        reached = trace.reference(setup, work.full(walker), probes, work.store, advance)
        with observed(layers, [seen]):
            trace.visit(setup, reached, work.full(asked).runner(), asked, probes, advance)
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
    values = (files.digest_value(scheme), files.digest_value(job.recipe), files.digest_value(chosen))
    key = cache.key("factors", origin, *_contents(work, origin), *values)
    about = f"{work.arms.base.source}, {scheme.name}, {origin}"
    folder = work.store.obtain(
        "factors", key, about, lambda place: ranges.save_inputs(_smooth(work, scheme, smoothing, origin, chosen), place)
    )
    return ranges.load_inputs(folder)


_SEARCHED = 4  # AWQ's search costs some seventeen forwards a state, so it sees a fourth of the prompts


def _smooth(work: Work, scheme: Scheme, smoothing: Smoothing, origin: Origin, chosen: ProbeSet) -> dict[str, Input]:
    from qcheck.quantize import modelopt  # an extra that only its schemes need

    walker, side = _WALKS[origin]
    setup, probes = matched(work.arms, work.job, chosen, work.job.recipe.strata)
    if not any(rule.activations for rule in scheme.rules):  # else the factors come with the range of what they yield
        probes = probes[: max(1, len(probes) // _SEARCHED)]
    reached = trace.reference(setup, work.full(walker), probes, work.store, lambda _: None)
    family = work.arms.use(side)
    with work.timed(
        f"{scheme.name}: {smoothing.method} of {origin}", trace.forwards(setup, 0, 1, len(probes))
    ) as advance:

        def run(model: nn.Module) -> None:
            trace.visit(setup, reached, TorchRunner(family.entry(model)), side, probes, advance)

        layers = plan.chosen_layers(family.module, scheme, work.job.recipe)
        return modelopt.smoothed(family.module, layers, smoothing, run)
