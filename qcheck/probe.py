"""Probes: prompt + seed + steps + guidance + adapter weight, the same in every arm."""

from qcheck import files
from qcheck.files import Names, Value

FOLDER = files.PACKAGE / "data" / "probes"


class ProbeSet(Value):
    """Prompts to judge on, one probe each; sizes in pixels, None for the pipeline's own."""

    name: str
    prompts: Names
    negative: str = ""
    seed: int
    steps: int
    guidance: float
    width: int | None = None
    height: int | None = None


class Probe(Value):
    """One matched run. Its digest is what proves that two traces belong together."""

    prompt: str
    negative: str
    seed: int
    steps: int
    guidance: float
    weight: float
    width: int | None
    height: int | None


def find(name: str) -> ProbeSet:
    """The probe set of that name or file."""
    return files.find(ProbeSet, FOLDER, name)


def probes(chosen: ProbeSet, weight: float) -> tuple[Probe, ...]:
    """One probe for each prompt; seeds count up, so no two probes share their noise."""
    return tuple(
        Probe(
            prompt=prompt,
            negative=chosen.negative,
            seed=chosen.seed + index,
            steps=chosen.steps,
            guidance=chosen.guidance,
            weight=weight,
            width=chosen.width,
            height=chosen.height,
        )
        for index, prompt in enumerate(chosen.prompts)
    )
