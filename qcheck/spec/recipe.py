"""A recipe: how activation ranges are found, and which layers stay in the compute type."""

from fnmatch import fnmatchcase
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field, ValidationInfo

from qcheck.core.errors import UserError
from qcheck.core.values import Names, Value, data_folder, named
from qcheck.spec.probe import ProbeSet, triggered

FOLDER = data_folder("calibration") / "recipes"
PROMPTS = data_folder("calibration") / "prompts"


Method = Literal["max", "percentile", "entropy", "mse"]
METHODS: tuple[Method, ...] = get_args(Method)
Merge = Literal["pooled", "max", "mse"]
MERGES: tuple[Merge, ...] = get_args(Merge)


class PromptSet(Value):
    """Prompts for calibration; never the ones that judge."""

    name: str
    prompts: Names


def _prompts(given: object, info: ValidationInfo) -> object:
    """The set itself for its name, or for a file that is named as seen from the recipe's."""
    if not isinstance(given, str):
        return given
    beside = (info.context or {}).get("folder")
    return named(PromptSet, PROMPTS, str(beside / given) if beside and given.endswith(".toml") else given)


class Recipe(Value):
    """Ranges come from ``samples`` of ``prompts`` at ``strata`` timesteps each; ``keep`` names layers left unquantized.

    In a file ``prompts`` is the name of a prompt set, a file of one beside the recipe, or a table that holds one.
    ``method`` says where an input's range is cut (``calibrate.histogram``); ``percentile`` is for the method of that
    name. ``merge`` says how the timesteps' ranges become one: all values counted together, or each stratum cut by
    itself.
    """

    name: str
    title: str
    method: Method
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.99
    merge: Merge = "pooled"
    prompts: Annotated[PromptSet, BeforeValidator(_prompts)]
    samples: Annotated[int, Field(ge=1)]
    strata: Annotated[int, Field(ge=1)]
    seed: Annotated[int, Field(ge=0)]
    keep: Names

    def keeps(self, layer: str) -> bool:
        """Whether the layer of that name stays in the compute type."""
        return any(fnmatchcase(layer, pattern) for pattern in self.keep)


def find(name: str) -> Recipe:
    """The recipe of that name or file."""
    return named(Recipe, FOLDER, name)


def plain(prompt: str) -> str:
    """A prompt as it is compared: lower case, single spaces."""
    return " ".join(prompt.lower().split())


def calibration(
    recipe: Recipe, judged: ProbeSet, trigger: str | None = None, given: PromptSet | None = None
) -> ProbeSet:
    """The recipe's prompts, or those ``given``, trigger words added, as a probe set sampled as ``judged`` is.

    Raises:
        UserError: a calibration prompt or seed is also a probe's: what was fitted would be judged.
    """
    chosen = given or recipe.prompts
    used = {"name": chosen.name, "prompts": chosen.prompts[: recipe.samples], "seed": recipe.seed}
    calibrating = triggered(judged.model_copy(update=used), trigger)
    both = {plain(p) for p in calibrating.prompts} & {plain(p) for p in judged.prompts}
    if both:
        raise UserError(
            f"prompts are both in the calibration set {chosen.name!r} and in the probe set {judged.name!r}: "
            f"{', '.join(sorted(both))}",
            "Take them out of one of the two, or pass another --probes or --recipe.",
        )
    ours = set(range(recipe.seed, recipe.seed + recipe.samples))
    if ours & set(range(judged.seed, judged.seed + len(judged.prompts))):
        raise UserError(
            f"calibration seeds from {recipe.seed} overlap the probes' from {judged.seed}",
            "Change `seed` in one of the two files.",
        )
    if len(chosen.prompts) < recipe.samples:
        raise UserError(
            f"recipe {recipe.name!r} asks for {recipe.samples} samples; {chosen.name!r} has {len(chosen.prompts)}",
            "Lower `samples` or add prompts.",
        )
    return calibrating


def screened(chosen: PromptSet, judged: ProbeSet) -> tuple[PromptSet, dict[str, str]]:
    """``chosen`` without what is also a probe's prompt, and what was left out with the reason.

    Raises:
        UserError: nothing is left.
    """
    probes = {plain(prompt) for prompt in judged.prompts}
    left = {
        prompt: f"it is a prompt of the probe set {judged.name!r}"
        for prompt in chosen.prompts
        if plain(prompt) in probes
    }
    kept = tuple(prompt for prompt in chosen.prompts if prompt not in left)
    if not kept:
        raise UserError(
            f"every prompt of {chosen.name!r} is also in the probe set {judged.name!r}", "Give other prompts."
        )
    return chosen.model_copy(update={"prompts": kept}), left
