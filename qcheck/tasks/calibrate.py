"""Ranges of a scheme as a file, on the recipe's prompts, the user's, the adapter's own, or the user's pictures."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from qcheck.calibration import inputs, pictures, screen
from qcheck.calibration.pictures import Picture
from qcheck.core.cache import Cache
from qcheck.core.errors import UserError
from qcheck.core.progress import Progress
from qcheck.spec import recipe
from qcheck.spec.check import CheckSpec
from qcheck.spec.ranges import Ranges
from qcheck.spec.recipe import PromptSet
from qcheck.tasks import session as sessions


def calibrate(
    spec: CheckSpec,
    cache: Cache,
    progress: Progress,
    prompts: PromptSet | None = None,
    own: bool = False,
    shown: Path | None = None,
) -> Ranges:
    """Ranges of ``spec``'s first scheme.

    They are found on ``prompts``, on the adapters' ``own`` trigger words and tags, on the pictures in the folder
    ``shown``, or without any of these on the recipe's prompts.

    Raises:
        UserError: bad input, a scheme without ranges, or nothing left to calibrate on.
    """
    left_out: dict[str, str] = {}
    found: Sequence[Picture] = ()
    if own:
        prompts = _own(spec)
    if shown is not None:
        found, left_out = screen.screened(pictures.find(shown))
        prompts = PromptSet(name=shown.name, prompts=tuple(one.caption for one in found))
    if prompts is not None:
        if own or found:
            prompts, more = recipe.screened(prompts, spec.probes)
            found = [one for one in found if one.caption not in more]
            left_out = left_out | more
        samples = min(spec.recipe.samples, len(prompts.prompts))
        spec = spec.changed(recipe=spec.recipe.model_copy(update={"samples": samples}))
        recipe.calibration(spec.recipe, spec.probes, spec.trigger, prompts)
    with sessions.opened(spec, cache, progress) as session:
        by = replace(session.calibrator, prompts=prompts, pictures=tuple(one.path for one in found))
        return inputs.ranges_file(by, spec.schemes[0], left_out)


def _own(spec: CheckSpec) -> PromptSet:
    words = [word for used in spec.adapters for word in inputs.own_prompts(used.source)]
    names = [Path(used.source).name for used in spec.adapters]
    if not words:
        raise UserError(
            f"{', '.join(names)}: no trigger words or tags in the metadata to calibrate on",
            "Give --prompts FILE, or leave --own-prompts out.",
        )
    return PromptSet(name=Path(names[0]).stem, prompts=tuple(dict.fromkeys(words)))
