"""Every layout of adapter files in every family: what is merged is what the file holds, to the last layer."""

import copy
import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qcheck.errors import UserError
from qcheck.job import Use
from qcheck.model import arms, lora
from qcheck.model.arms import Arms
from qcheck.model.base import Base
from tests import families, layouts
from tests.layouts import Part, Parts, Writer

EXACT = 1e-6  # of the largest value of a weight and its change, float32's own rounding

DENOISER, ALL = r"^(unet|transformer)\.", r""
ATTENTION = r"attn[12]\.|self_attn"
# SDXL has no upsampler in a block without attention, as the tiny pipeline has; the original's name of it is another
SGM = r"^unet\.(?!up_blocks\.0\.upsamplers)|^text"
XLABS = r"transformer\.transformer_blocks\.\d+\.attn\.|single_transformer_blocks\.\d+\.(attn\.|proj_out)"


@dataclass(frozen=True)
class Case:
    """A layout of one family: the layers that it can hold, and how the factors are made."""

    family: str
    writer: Writer
    wanted: str = ALL
    alphas: bool = True
    shared: bool = False

    def __str__(self) -> str:
        marks = ("" if self.alphas else "-no-alpha") + ("-shared" if self.shared else "")
        return f"{self.family}-{self.writer.__name__}{marks}"


_ONE_ENCODER = [
    (layouts.peft, ALL, True, False),
    (layouts.peft, ALL, False, False),
    (layouts.peft_with_alphas, ALL, True, False),
    (layouts.peft_folder, DENOISER, True, False),
    (layouts.diffusers, ALL, False, False),
    (layouts.processors, ATTENTION, False, False),
    (layouts.bare_processors, r"^unet.*attn[12]\.", False, False),
    (layouts.kohya, ALL, True, False),
    (layouts.kohya, ALL, False, False),
]
_FLUX: list[tuple[Writer, str, bool, bool]] = [
    (layouts.peft, ALL, True, False),
    (layouts.peft_with_alphas, ALL, True, False),
    (layouts.peft_folder, DENOISER, True, False),
    (layouts.kohya_flux, ALL, True, False),
    (layouts.kohya_flux, ALL, True, True),
    (layouts.kohya_flux, ALL, False, True),
    (layouts.comfy_flux, ALL, True, False),
    (layouts.original_peft_flux, DENOISER, False, True),
    (layouts.one_trainer, DENOISER, True, False),
    (layouts.xlabs, XLABS, False, True),
]
_LAYOUTS: dict[str, list[tuple[Writer, str, bool, bool]]] = {
    "sd1": _ONE_ENCODER,
    "sd2": _ONE_ENCODER,
    "sdxl": [
        (layouts.peft, ALL, True, False),
        (layouts.peft_with_alphas, ALL, True, False),
        (layouts.peft_folder, DENOISER, True, False),
        (layouts.diffusers, ALL, False, False),
        (layouts.kohya_xl, ALL, True, False),
        (layouts.kohya_xl, ALL, False, False),
        (layouts.kohya_sgm, SGM, True, False),
    ],
    "sd3": [
        (layouts.peft, ALL, True, False),
        (layouts.peft_with_alphas, ALL, True, False),
        (layouts.peft_folder, DENOISER, True, False),
        (layouts.kohya_sd3, ALL, True, False),
        (layouts.kohya_sd3, ALL, False, False),
        (layouts.kohya_sd3, ALL, True, True),
        (layouts.one_trainer, ALL, True, False),
    ],
    "flux": _FLUX,
    "flux-schnell": _FLUX,
}
CASES = [Case(family, *rest) for family, each in _LAYOUTS.items() for rest in each]


@functools.cache
def _made(family: str) -> Any:
    return families.FAMILIES[family]()


def _state(pipe: Any) -> dict[str, torch.Tensor]:
    """Every parameter of every component."""
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {f"{name}.{key}": value.clone() for name, part in parts.items() for key, value in part.state_dict().items()}


def _base(family: str) -> Base:
    return Base(family, family, copy.deepcopy(_made(family)))


def _read(path: Path, weight: float = 1.0) -> lora.Adapter:
    return lora.read(Use(str(path), weight))


def _wrong(before: dict[str, torch.Tensor], both: Arms, wanted: dict[str, torch.Tensor]) -> list[str]:
    """The parameters that are not what they were plus the wanted change [out, in, ...] of their layer."""
    found = []
    for name, after in _state(both.base.pipe).items():
        change = wanted.get(name.removesuffix(".weight"), torch.zeros(())) if name.endswith(".weight") else None
        if change is None or change.ndim == 0:
            right = torch.equal(after, before[name])
        else:
            expected = before[name].double() + change
            right = bool((after - expected).abs().max() <= EXACT * (before[name].abs().max() + change.abs().max()))
        found += [] if right else [name]
    return found


def _changes(parts: Parts, weight: float = 1.0) -> dict[str, torch.Tensor]:
    return {layer: weight * part.change() for layer, part in parts.items()}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_file_is_applied_exactly_and_to_nothing_else(case: Case, tmp_path: Path) -> None:
    base = _base(case.family)
    before = _state(base.pipe)
    parts = layouts.known(base.pipe, case.wanted, case.alphas, case.shared)
    assert len(parts) > 10
    both = arms.apply(base, [_read(case.writer(parts, tmp_path / "made.safetensors"), 0.7)])
    assert set(both.layers) == set(parts)
    assert _wrong(before, both, _changes(parts, 0.7)) == []
    for layer in both.denoiser_layers():
        down, up = both.factors(layer)
        wanted = 0.7 * next(part for name, part in parts.items() if name.split(".", 1)[1] == layer).change().flatten(1)
        assert (up.double() @ down.double().flatten(1) - wanted).norm() <= 1e-4 * wanted.norm(), layer
