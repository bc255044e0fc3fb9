"""Probes: prompt + seed + steps + guidance + adapter weight, the same in every arm."""

import itertools
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from qcheck.core import files
from qcheck.core.errors import UserError
from qcheck.core.values import DATA, Value, as_tuple, named

FOLDER = DATA / "probes"
SAMPLING = ("steps", "guidance", "seed", "width", "height")  # fields that command-line options replace
RANDOM = "random"
_DRAWN = re.compile(rf"{RANDOM}:(\d+)")


_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")  # all but tabs and line ends
_LONGEST = 10_000  # characters; no text encoder reads a tenth of that


def require_text(prompt: str) -> str:
    """``prompt``, where it is text that an encoder can read.

    Raises:
        ValueError: it holds control characters, or is far longer than any encoder reads.
    """
    if len(prompt) > _LONGEST:
        raise ValueError(f"a prompt of {len(prompt)} characters, of at most {_LONGEST}: {prompt[:40]!r}...")
    if control := _CONTROL.search(prompt):
        raise ValueError(f"a prompt with the control character {control[0]!r}: {prompt[:40]!r}")
    return prompt


Prompt = Annotated[str, AfterValidator(require_text)]
Prompts = Annotated[tuple[Prompt, ...], BeforeValidator(as_tuple)]
Grouped = Mapping[str, Sequence[str]]
_HEADER = re.compile(r"\[([^\[\]]*)\]")


class ProbeSet(Value):
    """The prompts of a check, one probe each; sizes in pixels, None for the pipeline's own.

    ``groups``, where there are any, has the name of each prompt's group, "" for a prompt in none: the adapter has to
    survive in each group by itself. All of them come in the first prompts: a check may decide by no more than those.
    ``of_base``: the base's own steps and guidance come before those of the set, where they are known; in a request,
    the set has the base's own. ``drawn``: the seed was drawn for this run, and the timesteps at which arms are compared
    are drawn from it.
    """

    name: str
    prompts: Annotated[Prompts, Field(min_length=1)]
    groups: Prompts = ()
    negative: Prompt = ""
    seed: Annotated[int, Field(ge=0, le=2**62)]  # torch's generators take 64 bits, and seeds count up
    steps: Annotated[int, Field(ge=1)]
    guidance: Annotated[float, Field(ge=0)]
    width: int | None = None
    height: int | None = None
    of_base: bool = False
    drawn: bool = False

    @model_validator(mode="after")
    def _grouped(self) -> Self:
        if self.groups and len(self.groups) != len(self.prompts):
            raise ValueError(f"{len(self.prompts)} prompts and {len(self.groups)} groups: give one for each, or none")
        names = dict.fromkeys(self.groups)
        if absent := names.keys() - set(self.groups[: len(names)]):
            raise ValueError(
                f"group {min(absent)!r} is not among the first {len(names)} prompts: let groups take turns, so that "
                "whatever part of the prompts decides has all of them"
            )
        return self

    @property
    def seed_option(self) -> int | str:
        """The value of ``--seed`` that gives this seed, and the same timesteps."""
        return f"{RANDOM}:{self.seed}" if self.drawn else self.seed


class Probe(Value):
    """One matched run: all arms share its prompt, noise and sampling. Equal digests prove that two traces match."""

    prompt: str
    negative: str
    seed: int
    steps: int
    guidance: float
    weights: tuple[float, ...]
    width: int | None
    height: int | None


def find(name: str) -> ProbeSet:
    """The probe set of that name or file."""
    return named(ProbeSet, FOLDER, name)


def from_text(path: Path, like: ProbeSet) -> ProbeSet:
    """A probe set of the prompts in a text file, one a line, sampled as ``like``; empty lines and ``#`` are skipped.

    A line ``[name]`` puts those below it into the group of that name, ``[]`` into none. Groups take turns in the set.

    Raises:
        UserError: not readable, or no prompt in it.
    """
    try:
        lines = [line.strip() for line in files.read_text(path).splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"prompts {str(path)!r}: {error}", "Give a UTF-8 text file, one prompt a line.") from error
    groups, name = dict[str, list[str]](), ""
    for line in lines:
        if header := _HEADER.fullmatch(line):
            name = header[1].strip()
        elif line and not line.startswith("#"):
            groups.setdefault(name, []).append(line)
    if not groups:
        raise UserError(f"prompts {str(path)!r} holds no prompt", "Write one prompt a line.")
    prompts, names = in_turn(groups)
    _require_all_text([*prompts, *names], f"prompts {str(path)!r}: ")
    return like.model_copy(update={"name": path.stem, "prompts": prompts, "groups": names})


def in_turn(groups: Grouped) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The prompts of groups, groups taking turns, and the group of each; no groups where the only one is nameless."""
    rounds = itertools.zip_longest(*([(prompt, name) for prompt in prompts] for name, prompts in groups.items()))
    pairs = [pair for one in rounds for pair in one if pair is not None]
    names = tuple(name for _, name in pairs)
    return tuple(prompt for prompt, _ in pairs), names if any(names) else ()


def from_prompts(prompts: Sequence[str] | Grouped, like: ProbeSet) -> ProbeSet:
    """A probe set of those prompts, or of those groups of prompts, sampled as ``like``.

    Raises:
        UserError: there is none, or one is empty.
    """
    prompts, groups = in_turn(prompts) if isinstance(prompts, Mapping) else (prompts, ())
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise UserError(
            f"prompts {list(prompts)!r}: one is empty, or there is none", "Give prompts that say something."
        )
    _require_all_text([*prompts, *groups])
    return like.model_copy(update={"name": "prompts", "prompts": tuple(prompts), "groups": groups})


def draw(seed: int | str) -> int | str:
    """``seed`` with a number in place of a bare ``random``; a drawn number is below 2**31."""
    return f"{RANDOM}:{secrets.randbelow(2**31)}" if str(seed) == RANDOM else seed


def seeding(seed: int | str) -> Mapping[str, int | bool]:
    """The fields of a probe set that a number, ``random`` or ``random:NUMBER`` sets.

    Raises:
        UserError: it is none of them.
    """
    text = str(draw(seed))
    drawn = _DRAWN.fullmatch(text)
    number = drawn[1] if drawn else text
    if not (number.isascii() and number.isdecimal()):
        raise UserError(f"--seed {text!r} is none", f"Give a number from 0, or {RANDOM}.")
    return {"seed": int(number), "drawn": drawn is not None}


def _require_all_text(prompts: Sequence[str], where: str = "") -> None:
    try:
        for prompt in prompts:
            require_text(prompt)
    except ValueError as error:
        raise UserError(f"{where}{error}", "Write prompts as plain text.") from error


def repeated(probe_set: ProbeSet, count: int) -> ProbeSet:
    """``probe_set`` with exactly ``count`` prompts: cut, or repeated from the start (each probe has its own seed)."""
    times = count // len(probe_set.prompts) + 1
    prompts, groups = probe_set.prompts * times, probe_set.groups * times
    return probe_set.model_copy(update={"prompts": prompts[:count], "groups": groups[:count]})


def triggered(probe_set: ProbeSet, trigger: str | None) -> ProbeSet:
    """``probe_set`` with the trigger words before every prompt that lacks them."""
    if not trigger:
        return probe_set
    _require_all_text([trigger], "--trigger: ")
    prompts = tuple(
        p if re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", p) else f"{trigger}, {p}" for p in probe_set.prompts
    )
    _require_all_text(prompts, "--trigger: ")
    return probe_set.model_copy(update={"prompts": prompts})


def probes(probe_set: ProbeSet, weights: tuple[float, ...]) -> tuple[Probe, ...]:
    """One probe for each prompt; seeds count up, so no two probes share their noise."""
    return tuple(
        Probe(
            prompt=prompt,
            negative=probe_set.negative,
            seed=probe_set.seed + index,
            steps=probe_set.steps,
            guidance=probe_set.guidance,
            weights=weights,
            width=probe_set.width,
            height=probe_set.height,
        )
        for index, prompt in enumerate(probe_set.prompts)
    )
