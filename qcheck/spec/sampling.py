"""The steps and the guidance that a base is made for, from its files."""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from qcheck.core import files
from qcheck.core.values import DATA, Value, read_toml

FILE = DATA / "sampling.toml"
_INDEX, _CARD = "model_index.json", "README.md"
_STEPS = re.compile(r"\bnum_inference_steps\s*=\s*(\d{1,4})\b")
_GUIDANCE = re.compile(r"\b(?:guidance_scale|true_cfg_scale)\s*=\s*(\d{1,3}(?:\.\d{1,9})?)\b")
_MOST_CARD = 2**22  # bytes
_OTHER_TASK = re.compile(r"Img2Img|Inpaint")  # in the class of a pipeline of the same models


class Sampling(Value):
    """Steps of the solver and guidance scale."""

    steps: Annotated[int, Field(ge=1)]
    guidance: Annotated[float, Field(ge=0)]


class Few(Value):
    """Pipelines of ``steps`` without guidance: those of class ``pipeline`` whose ``file`` has ``value`` at ``key``.

    ``guidance`` is the scale at which the pipeline has none.
    """

    file: str
    key: str
    value: str | bool | float
    steps: int
    guidance: float = 1.0
    pipeline: str | None = None


class Defaults(Value):
    """The whole file."""

    name: str
    pipelines: dict[str, Sampling]
    few: list[Few]


@functools.cache
def defaults() -> Defaults:
    """The defaults by pipeline class."""
    return read_toml(Defaults, FILE)


def of_base(folder: Path) -> tuple[Sampling, str] | None:
    """The sampling of the pipeline in ``folder``, and where it is from; None where there is no known pipeline.

    The model card counts first: the first ``num_inference_steps`` and guidance in its example code. What it
    leaves open is the class's default, or few steps without guidance for a base that was distilled to them.
    """
    kind = _OTHER_TASK.sub("", str(_json(folder / _INDEX).get("_class_name")))
    usual = defaults().pipelines.get(kind)
    if usual is None:
        return None
    source = f"the default of {kind}"
    for few in defaults().few:
        if few.pipeline in {None, kind} and _json(folder / few.file).get(few.key) == few.value:
            usual, source = Sampling(steps=few.steps, guidance=few.guidance), f"{few.key} {few.value!r} in {few.file}"
    card = _text(folder / _CARD)
    steps, guidance = _STEPS.search(card), _GUIDANCE.search(card)
    if steps or guidance:
        source = f"the base's {_CARD}" if steps and guidance else f"the base's {_CARD} and {source}"
    sampling = Sampling(
        steps=max(1, int(steps[1])) if steps else usual.steps,
        guidance=float(guidance[1]) if guidance else usual.guidance,
    )
    return sampling, source


def _text(path: Path) -> str:
    try:
        return files.read_text(path, _MOST_CARD)
    except (OSError, ValueError):
        return ""


def _json(path: Path) -> Mapping[str, Any]:
    """The object in a file; empty where there is none, of which whoever loads the base complains."""
    try:
        content = files.read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
