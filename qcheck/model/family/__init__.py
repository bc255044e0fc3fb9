"""Families of pipelines: the denoiser's inputs, the initial noise and the solver's settings; one module each."""

from collections.abc import Mapping
from typing import Any

from qcheck.model.family.chroma import Chroma
from qcheck.model.family.common import Conditions, Family, Shape
from qcheck.model.family.flux import Flux
from qcheck.model.family.flux2 import Flux2Klein
from qcheck.model.family.qwen_image import QwenImage
from qcheck.model.family.sana import Sana, SanaSprint
from qcheck.model.family.sd3 import StableDiffusion3
from qcheck.model.family.unet import StableDiffusion, StableDiffusionXL
from qcheck.model.family.z_image import ZImage

__all__ = ["FAMILIES", "Conditions", "Family", "QwenImage", "Shape", "ZImage", "find"]

FAMILIES: tuple[type[Family], ...] = (
    StableDiffusion,
    StableDiffusionXL,
    StableDiffusion3,
    Flux,
    ZImage,
    QwenImage,
    Flux2Klein,
    Chroma,
    Sana,
    SanaSprint,
)


def find(index: Mapping[str, Any]) -> type[Family] | None:
    """The family of a pipeline from its ``model_index.json``, None where no family fits."""
    present = {name: pair[1] for name, pair in index.items() if isinstance(pair, list | tuple) and pair[1] is not None}
    return next((family for family in FAMILIES if family.fits(present)), None)
