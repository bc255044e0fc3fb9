"""What calibration finds for the inputs of every layer: where they are cut, and factors that smooth them."""

from collections.abc import Mapping

import numpy as np
from torch import nn

from qcheck import cache, files, recipe, trace
from qcheck.artifact import Ranges
from qcheck.backend.torch import TorchRunner
from qcheck.errors import UserError
from qcheck.model.arms import SIDES, Side
from qcheck.probe import ProbeSet
from qcheck.quantize import plan, ranges
from qcheck.quantize.plan import Input
from qcheck.quantize.ranges import Histogram, Seen, observed
from qcheck.scheme import Scheme, Smoothing
from qcheck.work import Work, matched


def inputs(work: Work, scheme: Scheme) -> Ranges:
    """For both arms what the scheme needs to know of every layer's input; nothing is run for weights alone."""
    layers = dict(plan.linear_layers(work.arms.base.denoiser))
    if not any(rule.activations for rule in scheme.rules):
        plain = dict.fromkeys(layers, Input(0.0))
        return {side: plain | find_factors(work, scheme, side) for side in SIDES}
    numbers, seen = plan.input_formats(work.arms.base.denoiser, scheme), find_ranges(work)
    return {
        side: ranges.clips(seen[side], numbers, work.job.recipe) | find_factors(work, scheme, side) for side in SIDES
    }


def find_ranges(work: Work) -> Mapping[Side, Mapping[str, Seen]]:
    """Inputs of every layer for both arms, at the same states: those of f1 on the calibration prompts.

    One pass, whatever the method that reads ranges from it.
    """
    if work.seen:
        return work.seen
    job, arms = work.job, work.arms
    chosen = recipe.calibration(job.recipe, job.probes, job.trigger)
    contents = (arms.content("base"), arms.content("adapted"))
    key = cache.key("ranges", *contents, repr(job.recipe.strata), files.digest_value(chosen))
    about = f"{arms.base.source}, prompts {chosen.name}"
    folder = work.store.obtain("ranges", key, about, lambda place: ranges.save(_observe(work, chosen), place))
    work.seen.update({side: ranges.load(folder, side) for side in SIDES})
    return work.seen


def _observe(work: Work, chosen: ProbeSet) -> dict[Side, dict[str, Seen]]:
    setup, probes = matched(work.arms, work.job, chosen, work.job.recipe.strata)
    layers = dict(plan.linear_layers(work.arms.base.denoiser))
    found: dict[Side, dict[str, Seen]] = {}
    with work.timed("calibration", trace.forwards(setup, 1, 2, len(probes))) as advance:
        reached = trace.reference(setup, work.full("adapted"), probes, work.store, advance)
        for side in SIDES:
            seen = Histogram()
            with observed(layers, [seen]):
                trace.visit(setup, reached, work.full(side).runner(), side, probes, advance)
            found[side] = seen.seen()
        if odd := [layer for layer, inputs in found["adapted"].items() if not np.isfinite(inputs.absmax)]:
            raise UserError(
                f"layer {odd[0]} receives values that are not finite on the calibration prompts, at full precision",
                "The adapter or the base breaks on them: lower --weight or --guidance, or take another --recipe.",
            )
    return found


def find_factors(work: Work, scheme: Scheme, side: Side) -> dict[str, Input]:
    """Factors of SmoothQuant or AWQ for an arm, on the states that ranges come from; none where the scheme has none."""
    smoothing, job = scheme.smoothing, work.job
    if smoothing is None:
        return {}
    chosen = recipe.calibration(job.recipe, job.probes, job.trigger)
    values = (files.digest_value(scheme), files.digest_value(job.recipe), files.digest_value(chosen))
    key = cache.key("factors", work.arms.content("base"), work.arms.content("adapted"), side, *values)
    about = f"{work.arms.base.source}, {scheme.name}, {side}"
    folder = work.store.obtain(
        "factors", key, about, lambda place: ranges.save_inputs(_smooth(work, scheme, smoothing, side, chosen), place)
    )
    return ranges.load_inputs(folder)


_SEARCHED = 4  # AWQ's search costs some seventeen forwards a state, so it sees a fourth of the prompts


def _smooth(work: Work, scheme: Scheme, smoothing: Smoothing, side: Side, chosen: ProbeSet) -> dict[str, Input]:
    from qcheck.quantize import modelopt  # an extra that only its schemes need

    setup, probes = matched(work.arms, work.job, chosen, work.job.recipe.strata)
    if not any(rule.activations for rule in scheme.rules):  # else the factors come with the range of what they yield
        probes = probes[: max(1, len(probes) // _SEARCHED)]
    reached = trace.reference(setup, work.full("adapted"), probes, work.store, lambda _: None)
    family = work.arms.use(side)
    with work.timed(
        f"{scheme.name}: {smoothing.method} of {side}", trace.forwards(setup, 0, 1, len(probes))
    ) as advance:

        def run(model: nn.Module) -> None:
            trace.visit(setup, reached, TorchRunner(family.entry(model)), side, probes, advance)

        layers = plan.chosen_layers(family.module, scheme, work.job.recipe)
        return modelopt.smoothed(family.module, layers, smoothing, run)
