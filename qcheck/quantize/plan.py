"""Which layer gets which scales: what simulation and artifact both carry out."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from qcheck.errors import UserError
from qcheck.quantize import formats
from qcheck.quantize.formats import Format
from qcheck.recipe import Recipe
from qcheck.scheme import Rule, Scheme

Layer = nn.Linear | nn.Conv2d


@dataclass(frozen=True)
class LayerPlan:
    """Scales of one layer.

    ``weight`` holds one step for each group of neighbouring weights: [1] per tensor, [out] per channel,
    [out * in / block] per block. ``activation`` is the scalar step of the layer's input, None if that stays in float.
    """

    weight_format: Format
    weight: torch.Tensor
    block: int | None = None
    activation_format: Format | None = None
    activation: torch.Tensor | None = None

    def weight_codes(self, weight: torch.Tensor) -> torch.Tensor:
        """Codes [out, in, ...] of a weight of the same shape."""
        groups = weight.reshape(len(self.weight), -1)
        return formats.quantize(groups, self.weight[:, None], self.weight_format).view(weight.shape)

    def fake_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """What the artifact's weight dequantizes to."""
        codes = self.weight_codes(weight).reshape(len(self.weight), -1)
        return formats.dequantize(codes, self.weight[:, None]).view(weight.shape)

    def spacing(self, weight: torch.Tensor) -> torch.Tensor:
        """Distance of neighbouring representable weights at each weight, same shape."""
        groups = weight.reshape(len(self.weight), -1)
        return (self.weight_format.spacing(groups / self.weight[:, None]) * self.weight[:, None]).view(weight.shape)

    def fake_activation(self, values: torch.Tensor) -> torch.Tensor:
        """What the artifact's input of this layer dequantizes to."""
        if self.activation is None or self.activation_format is None:
            return values
        return formats.dequantize(formats.quantize(values, self.activation, self.activation_format), self.activation)


Plan = Mapping[str, LayerPlan]


def linear_layers(model: nn.Module) -> Iterator[tuple[str, Layer]]:
    """Name and module of every layer that any scheme could quantize."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            yield name, module


def _rule(weight: torch.Tensor, scheme: Scheme) -> Rule | None:
    """The scheme's rule for a layer, None where it has none or no block divides the layer's input axis."""
    rule = scheme.rule("Linear" if weight.dim() == 2 else "Conv2d")
    if rule is None or (rule.weights.granularity == "block" and rule.weights.block_of(weight.shape[1]) is None):
        return None
    return rule


def quantizes(name: str, weight: torch.Tensor, scheme: Scheme, recipe: Recipe) -> bool:
    """Whether the layer of that name and weight is quantized: a rule takes it and the recipe does not keep it out."""
    return _rule(weight, scheme) is not None and not recipe.keeps(name)


def chosen_layers(model: nn.Module, scheme: Scheme, recipe: Recipe) -> dict[str, Layer]:
    """The layers that ``scheme`` quantizes and ``recipe`` does not keep out.

    Raises:
        UserError: none is left.
    """
    layers = linear_layers(model)
    found = {name: module for name, module in layers if quantizes(name, module.weight, scheme, recipe)}
    if not found:
        raise UserError(
            f"scheme {scheme.name!r} with recipe {recipe.name!r} leaves no layer to quantize",
            f"Shorten `keep` of the recipe (now: {', '.join(recipe.keep)}).",
        )
    return found


def make(
    layers: Iterable[str],
    weights: Mapping[str, torch.Tensor],
    scheme: Scheme,
    ranges: Mapping[str, float],
) -> dict[str, LayerPlan]:
    """Scales for every layer from the absolute maxima of ``weights`` (``<layer>.weight``) and of its input.

    Raises:
        ValueError: a layer that the scheme has no rule for, or blocks that do not divide its input axis.
    """
    return {name: make_layer(weights[f"{name}.weight"], scheme, ranges[name]) for name in layers}


def make_layer(weight: torch.Tensor, scheme: Scheme, absmax: float) -> LayerPlan:
    """Scales of one layer from its weight [out, in, ...] and the absolute maximum of its input.

    Raises:
        ValueError: as ``make``.
    """
    rule = _rule(weight, scheme)
    if rule is None:
        raise ValueError(f"scheme {scheme.name!r} has no numbers for a layer of shape {list(weight.shape)}")
    number = formats.find(rule.weights.format)
    block = rule.weights.block_of(weight.shape[1]) if rule.weights.granularity == "block" else None
    if block is not None and weight.dim() != 2:
        raise ValueError(f"blocks are for Linear layers, not for a weight of shape {list(weight.shape)}")
    groups = {"tensor": 1, "channel": len(weight), "block": weight.numel() // (block or 1)}[rule.weights.granularity]
    step = formats.scale(weight.detach().abs().reshape(groups, -1).amax(1), number, scheme.compute)
    if rule.activations is None:
        return LayerPlan(number, step, block)
    inputs = formats.find(rule.activations.format)
    return LayerPlan(number, step, block, inputs, formats.scale(torch.tensor(absmax), inputs, scheme.compute))
