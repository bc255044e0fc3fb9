"""Ranges of a scheme as a file, from the recipe's prompts, the user's, the adapter's own, or the user's pictures."""

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
    folder: Path | None = None,
) -> Ranges:
    """Ranges of ``spec``'s first scheme.

    They come from ``prompts``, from the adapters' ``own`` trigger words and tags, from the pictures in ``folder``, or
    without any of these from the recipe's prompts.

    Raises:
        UserError: bad input, a scheme without ranges, or nothing left to calibrate on.
    """
    left_out: dict[str, str] = {}
    usable: Sequence[Picture] = ()
    if own:
        prompts = _own(spec)
    if folder is not None:
        usable, left_out = screen.screened(pictures.find(folder))
        prompts = PromptSet(name=folder.name, prompts=tuple(picture.caption for picture in usable))
    if prompts is not None:
        if own or usable:
            prompts, overlapping = recipe.screened(prompts, spec.probes)
            usable = [picture for picture in usable if picture.caption not in overlapping]
            left_out = left_out | overlapping
        samples = min(spec.recipe.samples, len(prompts.prompts))
        spec = spec.changed(recipe=spec.recipe.model_copy(update={"samples": samples}))
        recipe.calibration(spec.recipe, spec.probes, spec.trigger, prompts)
    with sessions.opened(spec, cache, progress) as session:
        calibrator = replace(session.calibrator, prompts=prompts, pictures=tuple(picture.path for picture in usable))
        return inputs.ranges_file(calibrator, spec.schemes[0], left_out)


def _own(spec: CheckSpec) -> PromptSet:
    words = [word for use in spec.adapters for word in inputs.own_prompts(use.source)]
    names = [Path(use.source).name for use in spec.adapters]
    if not words:
        raise UserError(
            f"{', '.join(names)}: no trigger words or tags in the metadata to calibrate on",
            "Give --prompts FILE, or leave --own-prompts out.",
        )
    return PromptSet(name=Path(names[0]).stem, prompts=tuple(dict.fromkeys(words)))
