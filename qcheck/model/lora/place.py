"""Match an adapter's factors to the layers of a base, and check that they fit.

diffusers' loaders are not used: they silently drop keys of some layouts and do not support factors of a T5.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file

from qcheck.core.errors import UserError, listed
from qcheck.model.lora import layout
from qcheck.model.lora.file import Adapter, peft_config, require_lora
from qcheck.model.lora.layout import Factors, LayoutError, Names

DENOISERS = ("unet", "transformer")
_FIX = "Export it again as LoRA in the layout of PEFT, diffusers, kohya, OneTrainer, ComfyUI or xlabs."


def factors_of(names: Names, adapter: Adapter) -> dict[str, Factors]:
    """The adapter's factors by layer, under the names of this base where it has the layer.

    Raises:
        UserError: another kind of adapter, no known layout, or tensors that are not LoRA factors.
    """
    tensors, config = load_file(adapter.path), peft_config(adapter)
    require_lora(adapter, tensors, config)
    try:
        entries, others = layout.entries(tensors, config)
        if others or not entries:
            raise LayoutError(f"it holds {len(others)} tensors that are no LoRA factors: {listed(others)}")
        by_layer: dict[str, Factors] = {}
        for name, factors in entries.items():
            for layer, part in layout.placed(name, factors, names).items():
                if layer in by_layer:
                    raise LayoutError(f"it holds {layer} twice, the second time as {name}")
                by_layer[layer] = part
    except LayoutError as error:
        raise UserError(f"adapter {str(adapter.path)!r} is in no known LoRA layout: {error}", _FIX) from error
    return dict(sorted(by_layer.items()))


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


def names_of(pipe: Any) -> Names:
    """The names of the pipeline's layers."""
    return _names(pipe, _weights(pipe))


def _names(pipe: Any, layers: Iterable[str]) -> Names:
    denoiser = next(iter(_modules(pipe)))
    config = getattr(pipe, denoiser).config
    return Names(denoiser, frozenset(layers), layers_per_block(config))


def layers_per_block(config: Mapping[str, Any]) -> int:
    """The layers in a block of a UNet; 2 for other denoisers, where it is not used."""
    count = config.get("layers_per_block")
    return count if isinstance(count, int) else 2


@dataclass(frozen=True)
class Fit:
    """The factors by layer ``component.module`` that an adapter changes, and layers without a match."""

    factors: dict[str, Factors]
    unmatched: tuple[str, ...]


def fit(pipe: Any, adapter: Adapter, allow_unmatched: bool = False) -> Fit:
    """Match the adapter's factors to the layers of this base.

    Raises:
        UserError: layers that this base does not have (with ``allow_unmatched``: only if it has none of them), or
            factors that do not fit the layer's weight.
    """
    weights = _weights(pipe)
    factors = factors_of(_names(pipe, weights), adapter)
    unmatched = sorted(set(factors) - set(weights))
    if len(unmatched) == len(factors) or (unmatched and not allow_unmatched):
        none = "none" if len(unmatched) == len(factors) else f"only {len(factors) - len(unmatched)}"
        advice = "" if none == "none" else " --allow-unmatched checks what does match, and lists the rest."
        raise UserError(
            f"{none} of the {len(factors)} layers of adapter {str(adapter.path)!r} exist in this base; "
            f"missing: {listed(unmatched)}",
            "It was trained for another base, or its layer names are not known here; this base has layers such as "
            f"{listed(sorted(weights))}.{advice}",
        )
    matching = [name for name in factors if name in weights]
    for name in matching:
        require_shape(name, weights[name], factors[name])
    shaped = {name: factors[name].shaped(weights[name].shape) for name in matching}
    return Fit(shaped, tuple(unmatched))


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
