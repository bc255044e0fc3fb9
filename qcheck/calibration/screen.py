"""Which of the user's pictures may calibrate: none under synthetic noise."""

from collections.abc import Iterable

from qcheck.calibration import pictures
from qcheck.calibration.pictures import Picture
from qcheck.core.errors import UserError
from qcheck.measure import spectrum

GRAIN = 0.05  # of the range of values: photographs of grass reach .047, noise of deviation .1 on flat drawings .054


def screened(found: Iterable[Picture]) -> tuple[list[Picture], dict[str, str]]:
    """Those without synthetic noise, and the names of the others with the reason.

    Ranges that were found on noise are wider than anything the model will meet.

    Raises:
        UserError: a file is no picture, or none is left.
    """
    kept, left = [], {}
    for picture in found:
        grain = spectrum.grain(pictures.read(picture.path))
        if grain <= GRAIN:
            kept.append(picture)
        else:
            left[picture.path.name] = f"white noise of deviation {grain:.3f} of the range of values, above {GRAIN:g}"
    if not kept:
        raise UserError(
            f"all {len(left)} pictures hold synthetic noise, first {next(iter(left.items()))}",
            "Give pictures as they were before noise was added, or calibrate on --prompts.",
        )
    return kept, left
