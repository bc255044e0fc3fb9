"""An adapter's file as numbers that can be trained, and put back as it was, key by key."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from qcheck.core.errors import UserError
from qcheck.model import lora
from qcheck.model.lora import Adapter, layout
from qcheck.model.lora.layout import Factors


@dataclass(frozen=True)
class Part:
    """What a layer of the denoiser takes from the file: the keys of its factors, the rows of ``up``, alpha / rank."""

    down: str
    up: str
    rows: torch.Tensor
    scale: float

    def factors(self, tensors: Mapping[str, torch.Tensor]) -> Factors:
        """The layer's own."""
        return Factors(tensors[self.down], tensors[self.up][self.rows], self.scale)


def find(pipe: Any, adapter: Adapter) -> dict[str, Part]:
    """The parts of a LoRA by the denoiser's layers that it changes; what is of no such layer has none.

    Raises:
        UserError: a DoRA, or as ``lora.factors_of``.
    """
    if lora.is_dora(adapter):
        raise UserError(
            f"adapter {str(adapter.path)!r} is a DoRA: it also rescales whole weights",
            "qcheck trains LoRA factors only; qcheck advise tries what needs no training.",
        )
    names = lora.names_of(pipe)
    lora.factors_of(names, adapter)  # refuses what is no LoRA of a known layout
    tensors = load_file(adapter.path)
    keyed, prefix = layout.keys(tensors)[0], f"{names.denoiser}."
    found = {}
    for name, factors in layout.entries(tensors, lora.peft_config(adapter))[0].items():
        numbered = Factors(factors.down, torch.arange(len(factors.up)).unsqueeze(1), factors.scale)
        for layer, part in layout.placed(name, numbered, names).items():
            if layer in names.layers and layer.startswith(prefix):
                down, up = keyed[name]["down"], keyed[name]["up"]
                found[layer.removeprefix(prefix)] = Part(down, up, part.up.flatten(), part.scale)
    return dict(sorted(found.items()))


def trained(parts: Mapping[str, Part], adapter: Adapter) -> dict[str, torch.Tensor]:
    """The file's factors of those layers, by its keys, as it stores them."""
    keys = {key for part in parts.values() for key in (part.down, part.up)}
    return {key: value for key, value in load_file(adapter.path).items() if key in keys}


def write(adapter: Adapter, changed: Mapping[str, torch.Tensor], notes: Mapping[str, str], path: Path) -> None:
    """Write the adapter with other values under some keys, in their own types; all else stays as it was.

    ``notes`` join the file's metadata; PEFT's config stays in the file, and beside it where PEFT would look for it. The
    file is whole or absent.
    """
    config = lora.config_beside(adapter.path)
    if config is not None and path.name == adapter.path.name:
        shutil.copyfile(config, path.with_name(config.name))
    tensors = load_file(adapter.path)
    new = {key: value.detach().to(tensors[key].dtype).contiguous() for key, value in changed.items()}
    partial = path.with_name(f".{path.name}.partial")
    save_file(tensors | new, partial, metadata=adapter.metadata | dict(notes))
    partial.replace(path)
