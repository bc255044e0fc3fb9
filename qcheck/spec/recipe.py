"""A recipe: how activation ranges are calibrated, and which layers stay in the compute type."""

from fnmatch import fnmatchcase
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field, ValidationInfo

from qcheck.core.errors import UserError
from qcheck.core.values import Names, Value, data_folder, named
from qcheck.spec.probe import ProbeSet, Prompts, triggered

FOLDER = data_folder("calibration") / "recipes"
PROMPTS = data_folder("calibration") / "prompts"


Method = Literal["max", "percentile", "entropy", "mse"]
METHODS: tuple[Method, ...] = get_args(Method)
Merge = Literal["pooled", "max", "mse"]
MERGES: tuple[Merge, ...] = get_args(Merge)


class PromptSet(Value):
    """Prompts for calibration, which are never the probes' prompts."""

    name: str
    prompts: Prompts


def _prompts(prompts: object, info: ValidationInfo) -> object:
    """The prompt set of a name, or of a file whose path is relative to the recipe's."""
    if not isinstance(prompts, str):
        return prompts
    folder = (info.context or {}).get("folder")
    return named(PromptSet, PROMPTS, str(folder / prompts) if folder and prompts.endswith(".toml") else prompts)


class Recipe(Value):
    """Calibration runs ``samples`` of ``prompts`` at ``strata`` timesteps; layers in ``keep`` are not quantized.

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
    """The recipe's prompts, or the set ``given``, trigger words added, as a probe set with the sampling of ``judged``.

    Raises:
        UserError: a calibration prompt or seed is also a probe's: probes have to be held out.
    """
    source = given or recipe.prompts
    update = {"name": source.name, "prompts": source.prompts[: recipe.samples], "seed": recipe.seed, "drawn": False}
    calibrating = triggered(judged.model_copy(update=update), trigger)
    shared = {plain(p) for p in calibrating.prompts} & {plain(p) for p in judged.prompts}
    if shared:
        raise UserError(
            f"prompts are both in the calibration set {source.name!r} and in the probe set {judged.name!r}: "
            f"{', '.join(sorted(shared))}",
            "Take them out of one of the two, or pass another --probes or --recipe.",
        )
    if recipe.seed < judged.seed + len(judged.prompts) and judged.seed < recipe.seed + recipe.samples:
        raise UserError(
            f"calibration seeds from {recipe.seed} overlap the probes' from {judged.seed}",
            "Change `seed` in one of the two files.",
        )
    if len(source.prompts) < recipe.samples:
        raise UserError(
            f"recipe {recipe.name!r} asks for {recipe.samples} samples; {source.name!r} has {len(source.prompts)}",
            "Lower `samples` or add prompts.",
        )
    return calibrating


def screened(source: PromptSet, judged: ProbeSet) -> tuple[PromptSet, dict[str, str]]:
    """``source`` without the prompts of ``judged``, and the prompts left out with the reason.

    Raises:
        UserError: no prompt is left.
    """
    probes = {plain(prompt) for prompt in judged.prompts}
    left_out = {
        prompt: f"it is a prompt of the probe set {judged.name!r}"
        for prompt in source.prompts
        if plain(prompt) in probes
    }
    prompts = tuple(prompt for prompt in source.prompts if prompt not in left_out)
    if not prompts:
        raise UserError(
            f"every prompt of {source.name!r} is also in the probe set {judged.name!r}", "Give other prompts."
        )
    return source.model_copy(update={"prompts": prompts}), left_out
