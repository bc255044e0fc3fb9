"""Which layer gets which scales: what simulation and artifact both carry out."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from qcheck.core.errors import UserError
from qcheck.quantize import formats
from qcheck.quantize.formats import Float, Format
from qcheck.spec.recipe import Recipe
from qcheck.spec.scheme import Granularity, Numbers, Rule, Scheme

Layer = nn.Linear | nn.Conv2d


@dataclass(frozen=True)
class Held:
    """Steps as a floating-point format stores them, [groups], in units of one float32 ``factor``."""

    number: Float
    codes: torch.Tensor
    factor: torch.Tensor


@dataclass(frozen=True)
class Grid:
    """Where the codes of one weight lie: one step for each group of neighbouring weights.

    ``step`` is float32, what a code is multiplied with: [1] per tensor or for a bare cast ("none", where it is 1),
    [out] per channel, [out * in / block] per block of the input axis, [numel / block] per run of the flattened weight.
    """

    number: Format
    granularity: Granularity
    step: torch.Tensor
    block: int | None = None
    held: Held | None = None

    def codes(self, weight: torch.Tensor) -> torch.Tensor:
        """Codes [out, in, ...] of a weight of the same shape."""
        groups = weight.reshape(len(self.step), -1)
        return formats.quantize(groups, self.step[:, None], self.number).view(weight.shape)

    def fake(self, weight: torch.Tensor) -> torch.Tensor:
        """What the artifact's weight dequantizes to."""
        codes = self.codes(weight).reshape(len(self.step), -1)
        return formats.dequantize(codes, self.step[:, None]).view(weight.shape)

    def spacing(self, weight: torch.Tensor) -> torch.Tensor:
        """Distance of neighbouring representable weights at each weight, same shape.

        A group's largest weight moves the step itself: only the format that holds the steps rounds it (0: none does).
        """
        groups = weight.reshape(len(self.step), -1)
        step = self.step[:, None]
        found = self.number.spacing(torch.where(step == 0, 0, groups / step)) * step
        if self.granularity != "none":
            size = groups.abs()
            found = torch.where(size == size.amax(1, keepdim=True), self._step_spacing()[:, None], found)
        return found.view(weight.shape)

    def _step_spacing(self) -> torch.Tensor:
        """What one place of the format that holds the steps means for a group's largest weight, [groups]."""
        if self.held is None:
            return torch.zeros_like(self.step)
        return self.number.limit * self.held.number.spacing(self.held.codes) * self.held.factor


@dataclass(frozen=True)
class Static:
    """An input on one fixed step, a float32 scalar."""

    number: Format
    step: torch.Tensor

    def fake(self, values: torch.Tensor) -> torch.Tensor:
        """What the artifact's input of this layer dequantizes to."""
        return formats.dequantize(formats.quantize(values, self.step, self.number), self.step)


@dataclass(frozen=True)
class Dynamic:
    """An input whose blocks of the last axis get their steps while it runs, stored by ``holder`` times ``factor``."""

    number: Format
    holder: Float
    factor: torch.Tensor
    block: int

    def fake(self, values: torch.Tensor) -> torch.Tensor:
        """What the artifact's input of this layer dequantizes to."""
        blocks = values.reshape(*values.shape[:-1], -1, self.block)
        absmax = blocks.abs().amax(-1, keepdim=True)
        step = formats.block_scale(absmax, self.number, self.holder, self.factor) * self.factor
        return formats.dequantize(formats.quantize(blocks, step, self.number), step).flatten(-2)


class Input(NamedTuple):
    """What calibration found for a layer: where its input's range is cut and, per input feature, a factor [in] on it.

    With a factor (SmoothQuant, AWQ) the input is multiplied by it and the weight divided, and ``cut`` is after it.
    """

    cut: float
    smooth: torch.Tensor | None = None


@dataclass(frozen=True)
class LayerPlan:
    """Numbers of one layer; ``input`` None leaves the layer's input in float. ``smooth`` is as in ``Input``."""

    weight: Grid
    input: Static | Dynamic | None = None
    smooth: torch.Tensor | None = None

    def stored(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight whose codes are stored, same shape."""
        return weight if self.smooth is None else weight / self.smooth

    def codes(self, weight: torch.Tensor) -> torch.Tensor:
        """Codes [out, in, ...] of a weight of the same shape."""
        return self.weight.codes(self.stored(weight))

    def fake_stored(self, weight: torch.Tensor) -> torch.Tensor:
        """What those codes dequantize to, beside an input that ``fake_input`` has passed."""
        return self.weight.fake(self.stored(weight))

    def fake(self, weight: torch.Tensor) -> torch.Tensor:
        """What the artifact does as one weight on the input as it comes."""
        values = self.fake_stored(weight)
        return values if self.smooth is None else values * self.smooth

    def fake_input(self, values: torch.Tensor) -> torch.Tensor:
        """What the artifact's product reads of the layer's input."""
        values = values if self.smooth is None else values * self.smooth
        return values if self.input is None else self.input.fake(values)


Plan = Mapping[str, LayerPlan]


def linear_layers(model: nn.Module) -> Iterator[tuple[str, Layer]]:
    """Name and module of every layer that any scheme could quantize."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            yield name, module


def _rule(weight: torch.Tensor, scheme: Scheme) -> Rule | None:
    """The scheme's rule for a layer, None where it has none or no block fits the layer."""
    rule = scheme.rule("Linear" if weight.dim() == 2 else "Conv2d")
    if rule is None or any(_misfits(numbers, weight) for numbers in (rule.weights, rule.activations)):
        return None
    return rule


def _misfits(numbers: Numbers | None, weight: torch.Tensor) -> bool:
    """Whether blocks do not divide the layer's input axis, or runs the flattened weight."""
    if numbers is None or numbers.block is None:
        return False
    if numbers.granularity == "run":
        return weight.numel() % numbers.block != 0
    return numbers.block_of(weight.shape[1]) is None


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


def input_formats(model: nn.Module, scheme: Scheme) -> dict[str, Format]:
    """The format of every layer's input on a fixed step, where ``scheme`` has one."""
    found = {}
    for name, module in linear_layers(model):
        rule = _rule(module.weight, scheme)
        if rule is not None and rule.activations is not None and rule.activations.scales is None:
            found[name] = formats.find(rule.activations.format)
    return found


def make(
    layers: Iterable[str],
    weights: Mapping[str, torch.Tensor],
    scheme: Scheme,
    inputs: Mapping[str, Input],
) -> dict[str, LayerPlan]:
    """Scales for every layer from the absolute maxima of ``weights`` (``<layer>.weight``) and its ``inputs``.

    Raises:
        ValueError: a layer that the scheme has no rule for, or blocks that do not divide its input axis.
    """
    return {name: make_layer(weights[f"{name}.weight"], scheme, inputs[name]) for name in layers}


def make_layer(weight: torch.Tensor, scheme: Scheme, calibrated: Input) -> LayerPlan:
    """Scales of one layer from its weight [out, in, ...] and what calibration found for its input.

    Raises:
        ValueError: as ``make``.
    """
    rule = _rule(weight, scheme)
    if rule is None:
        raise ValueError(f"scheme {scheme.name!r} has no numbers for a layer of shape {list(weight.shape)}")
    smooth = calibrated.smooth
    values = weight if smooth is None else weight / smooth
    number = _input(rule.activations, calibrated.cut, scheme)
    return LayerPlan(_grid(values, rule.weights, scheme.compute), number, smooth)


def absmax(weight: torch.Tensor, numbers: Numbers) -> torch.Tensor:
    """The largest absolute weight of every group that shares a step, [groups]."""
    block = numbers.block_of(weight.shape[1]) if numbers.granularity == "block" else numbers.block
    groups = {"tensor": 1, "channel": len(weight)}.get(numbers.granularity, weight.numel() // (block or 1))
    return weight.detach().abs().reshape(groups, -1).amax(1)


def _grid(weight: torch.Tensor, numbers: Numbers, stored: str) -> Grid:
    number = formats.find(numbers.format)
    if numbers.granularity == "none":
        return Grid(number, "none", torch.ones(1))
    if numbers.granularity == "block" and weight.dim() != 2:
        raise ValueError(f"blocks are for Linear layers, not for a weight of shape {list(weight.shape)}")
    most = absmax(weight, numbers)
    block = None if numbers.block is None else weight.numel() // len(most)
    if numbers.scales is None:
        return Grid(number, numbers.granularity, formats.scale(most, number, stored), block)
    holder = formats.floating(numbers.scales)
    factor = formats.scale_of_scales(most, number, holder)
    held = Held(holder, formats.block_scale(most, number, holder, factor), factor)
    step = formats.floating(stored).nearest(held.codes * factor)
    return Grid(number, numbers.granularity, step, block, held)


def _input(numbers: Numbers | None, most: float, scheme: Scheme) -> Static | Dynamic | None:
    if numbers is None:
        return None
    number = formats.find(numbers.format)
    if numbers.scales is None or numbers.block is None:
        return Static(number, formats.scale(torch.tensor(most), number, scheme.compute))
    holder = formats.floating(numbers.scales)
    factor = formats.scale_of_scales(torch.tensor([most]), number, holder)
    return Dynamic(number, holder, factor, numbers.block)
