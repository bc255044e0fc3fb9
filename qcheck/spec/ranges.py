"""A ranges file: the input range of every layer, and the runs it was calibrated on. `qcheck calibrate` writes it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from qcheck.core import files
from qcheck.core.errors import UserError
from qcheck.core.values import Number, Value
from qcheck.spec.probe import ProbeSet
from qcheck.spec.recipe import Merge, Method, plain

Cuts = dict[Method, Number]


class Ranges(Value):
    """Input ranges, ``cuts``, by origin (the arm whose inputs were observed), layer and method.

    ``method`` is the method in use; the cuts of the others are stored for comparison. ``merge`` says how the cuts of
    the timesteps were merged. ``contents`` are the digests of both arms' weights, ``formats`` the number format of each
    layer's input, and ``settings`` the sampling of the runs: a file that does not fit a check is refused. ``pictures``
    are the digests, by name, of pictures whose noised latents were observed instead of the model's own. ``left_out``
    are prompts and pictures that could not be used, with the reason.
    """

    schema_: Literal["qcheck-ranges/1"] = Field(default="qcheck-ranges/1", alias="schema")
    contents: dict[str, str]
    scheme: str
    formats: dict[str, str]
    method: Method
    percentile: float
    merge: Merge
    settings: dict[str, float | int | str | None]
    prompts: list[str]
    prompts_digest: str
    pictures: dict[str, str]
    left_out: dict[str, str]
    cuts: dict[str, dict[str, Cuts]]


def read(path: Path) -> Ranges:
    """The file at ``path``.

    Raises:
        UserError: it cannot be read or is no ranges file.
    """
    try:
        return Ranges.model_validate(files.read_json(path))
    except (OSError, ValueError) as error:
        first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise UserError(f"ranges {str(path)!r}: {first}", "Give a file that `qcheck calibrate` wrote.") from error


def settings(sampling: ProbeSet) -> dict[str, float | int | str | None]:
    """The sampling that latents depend on beside prompts and seeds."""
    return {name: getattr(sampling, name) for name in ("steps", "guidance", "negative", "width", "height")}


def require_fit(
    ranges: Ranges, contents: Mapping[str, str], scheme: str, formats: Mapping[str, str], judged: ProbeSet
) -> None:
    """Refuse ranges of another base, adapter or scheme, and ranges that were calibrated on a probe's prompt.

    Raises:
        UserError: another base, adapter or weight; inputs of other formats; other sampling; a probe's prompt.
    """
    fix = "Run `qcheck calibrate` with this base, --lora, --weight, --scheme and sampling."
    for arm, digest in contents.items():
        if ranges.contents.get(arm) != digest:
            part = "base" if arm == "base" else "adapter, or its weight,"
            raise UserError(f"the ranges were found on another {part}: {ranges.contents.get(arm)}, not {digest}", fix)
    if ranges.formats != dict(formats):
        raise UserError(f"the ranges are for scheme {ranges.scheme!r}; inputs of {scheme!r} have other formats", fix)
    for name, value in settings(judged).items():
        if ranges.settings.get(name) != value:
            raise UserError(f"the ranges were found at {name} {ranges.settings.get(name)}, not {value}", fix)
    if shared := {plain(prompt) for prompt in ranges.prompts} & {plain(prompt) for prompt in judged.prompts}:
        raise UserError(
            f"prompts are both in the ranges and in the probe set {judged.name!r}: {', '.join(sorted(shared))}",
            "Judge on other --prompts or --probes, or calibrate on others.",
        )
