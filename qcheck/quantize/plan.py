"""Which layer gets which scales: what simulation and artifact both carry out."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from qcheck.errors import UserError
from qcheck.quantize import formats
from qcheck.quantize.formats import Integer
from qcheck.recipe import Recipe
from qcheck.scheme import Scheme

KINDS: dict[str, type[nn.Linear] | type[nn.Conv2d]] = {"Linear": nn.Linear, "Conv2d": nn.Conv2d}


@dataclass(frozen=True)
class LayerPlan:
    """Scales of one layer: ``weight`` [out] (or [1] per tensor) and the scalar of its input."""

    weight: torch.Tensor
    activation: torch.Tensor
    weight_format: Integer
    activation_format: Integer

    def weight_codes(self, weight: torch.Tensor) -> torch.Tensor:
        """Codes [out, in, ...] of a weight of the same shape."""
        return formats.quantize(weight, self._column(weight), self.weight_format)

    def fake_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """What the artifact's weight dequantizes to."""
        return formats.dequantize(self.weight_codes(weight), self._column(weight))

    def fake_activation(self, values: torch.Tensor) -> torch.Tensor:
        """What the artifact's input of this layer dequantizes to."""
        return formats.dequantize(formats.quantize(values, self.activation, self.activation_format), self.activation)

    def _column(self, weight: torch.Tensor) -> torch.Tensor:
        return self.weight.view(-1, *[1] * (weight.dim() - 1))


Plan = Mapping[str, LayerPlan]


def linear_layers(model: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """Name and module of every layer that any scheme could quantize."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            yield name, module


def chosen_layers(model: nn.Module, scheme: Scheme, recipe: Recipe) -> dict[str, nn.Linear | nn.Conv2d]:
    """The layers that ``scheme`` quantizes and ``recipe`` does not keep out.

    Raises:
        UserError: none is left.
    """
    kinds = tuple(KINDS[kind] for kind in scheme.operators)
    found = {name: m for name, m in linear_layers(model) if isinstance(m, kinds) and not recipe.keeps(name)}
    if not found:
        raise UserError(
            f"scheme {scheme.name!r} with recipe {recipe.name!r} leaves no layer to quantize",
            f"Shorten `keep` of the recipe (now: {', '.join(recipe.keep)}).",
        )
    return found


def make(
    layers: Mapping[str, nn.Linear | nn.Conv2d], scheme: Scheme, ranges: Mapping[str, float]
) -> dict[str, LayerPlan]:
    """Scales for every layer from its weight's absolute maximum and the ``ranges`` of its input (absmax by layer)."""
    weights, activations = formats.find(scheme.weights.format), formats.find(scheme.activations.format)
    plan = {}
    for name, module in layers.items():
        rows = module.weight.detach().abs().flatten(1)
        absmax = rows.amax(1) if scheme.weights.granularity == "channel" else rows.amax().view(1)
        plan[name] = LayerPlan(
            weight=formats.scale(absmax, weights, scheme.compute),
            activation=formats.scale(torch.tensor(ranges[name]), activations, scheme.compute),
            weight_format=weights,
            activation_format=activations,
        )
    return plan
