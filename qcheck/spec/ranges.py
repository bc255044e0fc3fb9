"""A ranges file: where the inputs of every layer are cut, and what that was found on. `qcheck calibrate` writes it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from qcheck.core.errors import UserError
from qcheck.core.values import Number, Value
from qcheck.spec.probe import ProbeSet
from qcheck.spec.recipe import Merge, Method, plain

Cuts = dict[Method, Number]


class Ranges(Value):
    """Cuts by origin (whose inputs), layer and method; ``method`` is the one in use, the others are there to compare.

    All were merged over timesteps as ``merge`` says.

    ``contents`` are the digests of both arms' weights, ``formats`` the number format of each layer's input, and
    ``settings`` the sampling of the runs; a file whose own do not fit is refused. ``pictures`` are digests by name of
    those whose latents were met, if not the model's own. ``left_out`` are prompts and pictures that could not be used,
    with the reason.
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

    def to_json(self) -> str:
        """Indented JSON."""
        return self.model_dump_json(indent=1, by_alias=True) + "\n"


def read(path: Path) -> Ranges:
    """The file at ``path``.

    Raises:
        UserError: it cannot be read or is no ranges file.
    """
    try:
        return Ranges.model_validate(json.loads(path.read_text("utf-8")))
    except (OSError, UnicodeDecodeError, ValueError, ValidationError) as error:
        first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise UserError(f"ranges {str(path)!r}: {first}", "Give a file that `qcheck calibrate` wrote.") from error


def settings(sampling: ProbeSet) -> dict[str, float | int | str | None]:
    """What the states depend on beside prompts and seeds."""
    return {name: getattr(sampling, name) for name in ("steps", "guidance", "negative", "width", "height")}


def require_fit(
    found: Ranges, contents: Mapping[str, str], scheme: str, formats: Mapping[str, str], judged: ProbeSet
) -> None:
    """Refuse ranges that were made for something else, or on what judges.

    Raises:
        UserError: another base, adapter or weight; inputs of other formats; other sampling; a probe's prompt.
    """
    again = "Run `qcheck calibrate` with this base, --lora, --weight, --scheme and sampling."
    for arm, digest in contents.items():
        if found.contents.get(arm) != digest:
            what = "base" if arm == "base" else "adapter, or its weight,"
            raise UserError(f"the ranges were found on another {what}: {found.contents.get(arm)}, not {digest}", again)
    if found.formats != dict(formats):
        raise UserError(f"the ranges are for scheme {found.scheme!r}; inputs of {scheme!r} have other formats", again)
    for name, value in settings(judged).items():
        if found.settings.get(name) != value:
            raise UserError(f"the ranges were found at {name} {found.settings.get(name)}, not {value}", again)
    if both := {plain(prompt) for prompt in found.prompts} & {plain(prompt) for prompt in judged.prompts}:
        raise UserError(
            f"prompts are both in the ranges and in the probe set {judged.name!r}: {', '.join(sorted(both))}",
            "Judge on other --prompts or --probes, or calibrate on others.",
        )
