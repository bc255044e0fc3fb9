"""Match an adapter's factors to the layers of a base, and check that they fit.

diffusers' loaders are not used: they silently drop keys of some layouts and do not support factors of a T5.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from qcheck.core.errors import UserError, listed
from qcheck.model import tensor_file
from qcheck.model.lora import layout
from qcheck.model.lora.file import Adapter, peft_config, require_lora
from qcheck.model.lora.layout import Factors, LayoutError, Names

DENOISERS = ("unet", "transformer")
_FIX = "Export it again as LoRA in the layout of PEFT, diffusers, kohya, OneTrainer, ComfyUI or xlabs."


@dataclass(frozen=True)
class Contents:
    """An adapter's factors by layer, and what it adds to biases and norms [n] by parameter ``component.layer.bias``."""

    factors: dict[str, Factors]
    shifts: dict[str, torch.Tensor]

    @property
    def layers(self) -> list[str]:
        """The layers that it changes."""
        return sorted({*self.factors, *map(layer_of, self.shifts)})


def layer_of(parameter: str) -> str:
    """The layer of a parameter."""
    return parameter.rpartition(".")[0]


def contents_of(names: Names, adapter: Adapter) -> Contents:
    """All that an adapter holds, under the names of this base where it has the layer.

    Raises:
        UserError: another kind of adapter, no known layout, or tensors that are not LoRA factors.
    """
    tensors, config = tensor_file.tensors(adapter.path), peft_config(adapter)
    require_lora(adapter, tensors, config)
    try:
        entries = layout.entries(tensors, config)
        if entries.others or not (entries.factors or entries.shifts):
            raise LayoutError(
                f"it holds {len(entries.others)} tensors that are no LoRA factors: {listed(entries.others)}"
            )
        by_layer: dict[str, Factors] = {}
        for name, factors in entries.factors.items():
            for layer, part in layout.placed(name, factors, names).items():
                if layer in by_layer:
                    raise LayoutError(f"it holds {layer} twice, the second time as {name}")
                by_layer[layer] = part
        shifts = _shifts(names, entries)
    except LayoutError as error:
        raise UserError(f"adapter {str(adapter.path)!r} is in no known LoRA layout: {error}", _FIX) from error
    return Contents(dict(sorted(by_layer.items())), dict(sorted(shifts.items())))


def _shifts(names: Names, entries: layout.Entries) -> dict[str, torch.Tensor]:
    """The additions by parameter; those of a fused layer are split as its factors are."""
    shifts: dict[str, torch.Tensor] = {}
    for name, shift in entries.shifts.items():
        factors = entries.factors.get(name)
        for parameter, values in shift.items():
            down = values.new_empty(1, 0) if factors is None else factors.down
            for layer, part in layout.placed(name, Factors(down, values.unsqueeze(1), 1.0), names).items():
                if f"{layer}.{parameter}" in shifts:
                    raise LayoutError(f"it holds the {parameter} of {layer} twice, the second time as {name}")
                shifts[f"{layer}.{parameter}"] = part.up.flatten()
    return shifts


def _modules(pipe: Any) -> dict[str, torch.nn.Module]:
    """The modules that an adapter may change in a pipeline: the denoiser first, then the text encoders."""
    parts = {name: module for name, module in pipe.components.items() if isinstance(module, torch.nn.Module)}
    denoisers = [name for name in parts if name in DENOISERS]
    return {name: parts[name] for name in (*denoisers, *(name for name in parts if name.startswith("text_encoder")))}


def _weights(pipe: Any) -> dict[str, torch.Tensor]:
    return {
        f"{component}.{name}": module.weight
        for component, part in _modules(pipe).items()
        for name, module in part.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    }


def _parameters(pipe: Any) -> dict[str, torch.Tensor]:
    return {
        f"{component}.{name}": value
        for component, part in _modules(pipe).items()
        for name, value in part.named_parameters()
    }


def names_of(pipe: Any) -> Names:
    """The names of the pipeline's layers: of all that have parameters."""
    denoiser = next(iter(_modules(pipe)))
    config = getattr(pipe, denoiser).config
    return Names(denoiser, frozenset(map(layer_of, _parameters(pipe))), layers_per_block(config))


def layers_per_block(config: Mapping[str, Any]) -> int:
    """The layers in a block of a UNet; 2 for other denoisers, where it is not used."""
    count = config.get("layers_per_block")
    return count if isinstance(count, int) else 2


@dataclass(frozen=True)
class Fit:
    """As ``Contents``, of layers ``component.module`` that the base has; ``unmatched`` are the others."""

    factors: dict[str, Factors]
    unmatched: tuple[str, ...]
    shifts: dict[str, torch.Tensor] = field(default_factory=dict)


def fit(pipe: Any, adapter: Adapter, allow_unmatched: bool = False) -> Fit:
    """Match the adapter's factors to the layers of this base.

    Raises:
        UserError: layers that this base does not have (with ``allow_unmatched``: only if it has none of them), or
            factors that do not fit the layer's weight.
    """
    weights, parameters, names = _weights(pipe), _parameters(pipe), names_of(pipe)
    contents = contents_of(names, adapter)
    factors, count = contents.factors, len(contents.layers)
    shifted = {layer for layer in map(layer_of, contents.shifts) if layer not in names.layers}
    unmatched = sorted({layer for layer in factors if layer not in weights} | shifted)
    if len(unmatched) == count or (unmatched and not allow_unmatched):
        none = "none" if len(unmatched) == count else f"only {count - len(unmatched)}"
        advice = "" if none == "none" else " --allow-unmatched checks what does match, and lists the rest."
        raise UserError(
            f"{none} of the {count} layers of adapter {str(adapter.path)!r} exist in this base; "
            f"missing: {listed(unmatched)}",
            "It was trained for another base, or its layer names are not known here; this base has layers such as "
            f"{listed(sorted(weights))}.{advice}",
        )
    matching = [name for name in factors if name in weights]
    for name in matching:
        require_shape(name, weights[name], factors[name])
    shaped = {name: factors[name].shaped(weights[name].shape) for name in matching}
    shifts = {name: values for name, values in contents.shifts.items() if layer_of(name) not in unmatched}
    for name, values in shifts.items():
        require_place(name, parameters[name].shape if name in parameters else None, values)
    return Fit(shaped, tuple(unmatched), shifts)


def require_place(name: str, shape: Sequence[int] | None, values: torch.Tensor) -> None:
    """Refuse an addition to a parameter that the layer does not have (None), or of another shape."""
    if shape is None or list(shape) != list(values.shape):
        there = "none there" if shape is None else f"one of shape {list(shape)}"
        raise UserError(
            f"the adapter adds {list(values.shape)} values to {name}, and the base has {there}",
            "It was trained for another base of the same family; give that base.",
        )


def require_shape(name: str, weight: torch.Tensor, factors: Factors) -> None:
    """Refuse factors that do not multiply to the shape of the layer's weight, and a DoRA of another number of sizes."""
    down, up = factors.down.flatten(1), factors.up.flatten(1)
    if (len(up), down.shape[1]) != (len(weight), weight[0].numel()) or up.shape[1] != len(down):
        raise UserError(
            f"adapter layer {name}: factors {list(factors.up.shape)} x {list(factors.down.shape)} do not fit "
            f"the weight {list(weight.shape)}",
            "It was trained for another base of the same family; give that base.",
        )
    sizes = factors.sizes
    if sizes is not None and sizes.values.numel() != weight.shape[sizes.axis]:
        sides = f"{weight.shape[sizes.axis]} {'inputs' if sizes.axis else 'outputs'}"
        raise UserError(
            f"adapter layer {name}: {sizes.values.numel()} sizes of a DoRA do not fit the {sides}",
            "It was trained for another base of the same family, or the file is damaged.",
        )
