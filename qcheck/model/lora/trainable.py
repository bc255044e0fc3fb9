"""The trainable factors in an adapter's file, and a file with trained factors under the same keys."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from qcheck.core import files
from qcheck.core.errors import UserError
from qcheck.model import lora, tensor_file
from qcheck.model.lora import Adapter, layout
from qcheck.model.lora.layout import Factors


@dataclass(frozen=True)
class Part:
    """The factors of a denoiser layer in the file: their keys, the layer's rows of ``up``, and alpha / rank."""

    down: str
    up: str
    rows: torch.Tensor
    scale: float

    def factors(self, tensors: Mapping[str, torch.Tensor]) -> Factors:
        """The factors of this layer."""
        return Factors(tensors[self.down], tensors[self.up][self.rows], self.scale)


def find(pipe: Any, adapter: Adapter) -> dict[str, Part]:
    """The parts of a LoRA by denoiser layer; factors of other components and unknown layers are left out.

    Raises:
        UserError: a DoRA, LoHa or LoKr, whole differences, biases or norms, or as ``lora.contents_of``.
    """
    if lora.is_dora(adapter):
        raise UserError(
            f"adapter {str(adapter.path)!r} is a DoRA: it also rescales whole weights",
            "qcheck trains LoRA factors only; qcheck advise tries what needs no training.",
        )
    names = lora.names_of(pipe)
    if shifts := list(lora.contents_of(names, adapter).shifts):
        raise UserError(
            f"adapter {str(adapter.path)!r} changes biases or norms too, first {shifts[0]}",
            "qcheck trains LoRA factors only; qcheck advise tries what needs no training.",
        )
    tensors = tensor_file.tensors(adapter.path)
    keys, prefix = layout.keys(tensors)[0], f"{names.denoiser}."
    if others := [name for name, parts in keys.items() if "down" not in parts]:
        raise UserError(
            f"adapter {str(adapter.path)!r} has layers that are no product of two factors, first {others[0]}",
            "qcheck trains LoRA factors only; qcheck advise tries what needs no training.",
        )
    parts = {}
    for name, factors in layout.entries(tensors, lora.peft_config(adapter)).factors.items():
        row_numbers = Factors(factors.down, torch.arange(len(factors.up)).unsqueeze(1), factors.scale)
        for layer, part in layout.placed(name, row_numbers, names).items():
            if layer in names.layers and layer.startswith(prefix):
                down, up = keys[name]["down"], keys[name]["up"]
                parts[layer.removeprefix(prefix)] = Part(down, up, part.up.flatten(), part.scale)
    return dict(sorted(parts.items()))


def trained(parts: Mapping[str, Part], adapter: Adapter) -> dict[str, torch.Tensor]:
    """The file's factors of those layers by their keys, in the file's types."""
    keys = {key for part in parts.values() for key in (part.down, part.up)}
    return {key: value for key, value in tensor_file.tensors(adapter.path).items() if key in keys}


def write(adapter: Adapter, changed: Mapping[str, torch.Tensor], notes: Mapping[str, str], path: Path) -> None:
    """Write the adapter with the values ``changed``, cast to the file's types; all other tensors are copied.

    ``notes`` are added to the file's metadata, which keeps PEFT's config. A config beside the file is copied where PEFT
    would read it. The file is written atomically.
    """
    config = lora.config_beside(adapter.path)
    if config is not None and path.name == adapter.path.name:
        files.write(path.with_name(config.name), config.read_bytes())
    tensors = tensor_file.tensors(adapter.path)
    new = {key: value.detach().to(tensors[key].dtype).contiguous() for key, value in changed.items()}
    with files.whole(path) as partial:
        save_file(tensors | new, partial, metadata=adapter.metadata | dict(notes))
