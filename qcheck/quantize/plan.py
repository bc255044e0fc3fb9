"""The plan of a scheme: which layer gets which scales. Simulation and artifact both follow it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from torch import nn

from qcheck.core.errors import UserError
from qcheck.model.components import is_unread
from qcheck.quantize import formats
from qcheck.quantize.formats import Float, Format, Integer
from qcheck.spec.recipe import Recipe
from qcheck.spec.scheme import Granularity, Numbers, Rule, Scheme

Layer = nn.Linear | nn.Conv2d


@dataclass(frozen=True)
class Held:
    """Steps, [groups], as codes of a floating-point format in units of one float32 ``factor``."""

    number: Float
    codes: torch.Tensor
    factor: torch.Tensor

    def to(self, device: torch.device) -> Self:
        """The same steps on ``device``."""
        return replace(self, codes=self.codes.to(device), factor=self.factor.to(device))


@dataclass(frozen=True)
class Grid:
    """The quantization grid of one weight: one step for each group of neighbouring weights.

    ``step`` is the float32 factor of the codes: [1] per tensor or for a bare cast ("none", where it is 1),
    [out] per channel, [out * in / block] per block of the input axis, [numel / block] per run of the flattened weight.
    """

    number: Format
    granularity: Granularity
    step: torch.Tensor
    block: int | None = None
    held: Held | None = None

    def to(self, device: torch.device) -> Self:
        """The same grid on ``device``."""
        held = None if self.held is None else self.held.to(device)
        return replace(self, step=self.step.to(device), held=held)

    def codes(self, weight: torch.Tensor) -> torch.Tensor:
        """Codes [out, in, ...] of a weight of the same shape."""
        groups = weight.reshape(len(self.step), -1)
        return formats.quantize(groups, self.step[:, None], self.number).view(weight.shape)

    def fake(self, weight: torch.Tensor) -> torch.Tensor:
        """The dequantized weight of the artifact."""
        codes = self.codes(weight).reshape(len(self.step), -1)
        return formats.dequantize(codes, self.step[:, None]).view(weight.shape)

    def spacing(self, weight: torch.Tensor) -> torch.Tensor:
        """Distance of neighbouring representable weights at each weight, same shape.

        A group's largest weight defines the step, so only the format that stores the steps rounds it: its spacing is 0
        without such a format.
        """
        groups = weight.reshape(len(self.step), -1)
        step = self.step[:, None]
        spacing = self.number.spacing(torch.where(step == 0, 0, groups / step)) * step
        if self.granularity != "none":
            size = groups.abs()
            spacing = torch.where(size == size.amax(1, keepdim=True), self._step_spacing()[:, None], spacing)
        return spacing.view(weight.shape)

    def _step_spacing(self) -> torch.Tensor:
        """The spacing of a group's largest weight, [groups]: the spacing of its stored step times the largest code."""
        if self.held is None:
            return torch.zeros_like(self.step)
        return self.number.limit * self.held.number.spacing(self.held.codes) * self.held.factor


@dataclass(frozen=True)
class Static:
    """An input on one fixed step, a float32 scalar."""

    number: Format
    step: torch.Tensor

    def to(self, device: torch.device) -> Self:
        """The same step on ``device``."""
        return replace(self, step=self.step.to(device))

    def fake(self, values: torch.Tensor) -> torch.Tensor:
        """What the artifact's input of this layer dequantizes to.

        On a GPU, where each pass over the values costs as much as the layer, torch's one pass multiplies by 1 / step: a
        value within a rounding error of the middle of two codes may get the other one.
        """
        if values.is_cuda and isinstance(self.number, Integer):
            zero, (low, high) = self.step.new_zeros(1, dtype=torch.int32), (self.number.lowest, self.number.limit)
            return torch.fake_quantize_per_tensor_affine(values, self.step.reshape(1), zero, low, high)
        return formats.dequantize(formats.quantize(values, self.step, self.number), self.step)


@dataclass(frozen=True)
class Dynamic:
    """An input whose blocks of the last axis get their steps at run time, stored in ``holder`` times ``factor``."""

    number: Format
    holder: Float
    factor: torch.Tensor
    block: int

    def to(self, device: torch.device) -> Self:
        """The same factor on ``device``."""
        return replace(self, factor=self.factor.to(device))

    def fake(self, values: torch.Tensor) -> torch.Tensor:
        """What the artifact's input of this layer dequantizes to."""
        blocks = values.reshape(*values.shape[:-1], -1, self.block)
        absmax = blocks.abs().amax(-1, keepdim=True)
        step = formats.block_scale(absmax, self.number, self.holder, self.factor) * self.factor
        return formats.dequantize(formats.quantize(blocks, step, self.number), step).flatten(-2)


class Input(NamedTuple):
    """The calibration of a layer: the cut of its input's range and, optionally, a factor [in] for each input feature.

    With a factor (SmoothQuant, AWQ) the input is multiplied by it and the weight divided; ``cut`` is of that product.
    """

    cut: float
    smooth: torch.Tensor | None = None


@dataclass(frozen=True)
class LayerPlan:
    """Numbers of one layer; ``input`` None leaves the layer's input in float. ``smooth`` is as in ``Input``."""

    weight: Grid
    input: Static | Dynamic | None = None
    smooth: torch.Tensor | None = None

    def to(self, device: torch.device) -> Self:
        """The same numbers on ``device``."""
        number = None if self.input is None else self.input.to(device)
        smooth = None if self.smooth is None else self.smooth.to(device)
        return replace(self, weight=self.weight.to(device), input=number, smooth=smooth)

    def stored(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight whose codes are stored, same shape."""
        return weight if self.smooth is None else weight / self.smooth

    def codes(self, weight: torch.Tensor) -> torch.Tensor:
        """Codes [out, in, ...] of a weight of the same shape."""
        return self.weight.codes(self.stored(weight))

    def fake_stored(self, weight: torch.Tensor) -> torch.Tensor:
        """The dequantized weight, for an input that has passed ``fake_input``."""
        return self.weight.fake(self.stored(weight))

    def fake(self, weight: torch.Tensor) -> torch.Tensor:
        """The artifact's effective weight on the layer's unscaled input."""
        values = self.fake_stored(weight)
        return values if self.smooth is None else values * self.smooth

    def fake_input(self, values: torch.Tensor) -> torch.Tensor:
        """The layer's input as the artifact's product reads it."""
        values = values if self.smooth is None else values * self.smooth
        return values if self.input is None else self.input.fake(values)


Plan = Mapping[str, LayerPlan]


def linear_layers(model: nn.Module) -> Iterator[tuple[str, Layer]]:
    """Name and module of every Linear and Conv2d layer whose output is read: those that a scheme can quantize."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and not is_unread(module):
            yield name, module


def rule_of(weight: torch.Tensor, scheme: Scheme) -> Rule | None:
    """The scheme's rule for a layer, None where it has none or no block fits the layer."""
    rule = scheme.rule("Linear" if weight.dim() == 2 else "Conv2d")
    if rule is None or any(_misfits(numbers, weight) for numbers in (rule.weights, rule.activations)):
        return None
    return rule


def has_one_step(weight: torch.Tensor, scheme: Scheme) -> bool:
    """Whether all weights of a layer share one step."""
    rule = rule_of(weight, scheme)
    return rule is not None and rule.weights.granularity == "tensor"


def _misfits(numbers: Numbers | None, weight: torch.Tensor) -> bool:
    """Whether blocks do not divide the layer's input axis, or runs the flattened weight."""
    if numbers is None or numbers.block is None:
        return False
    if numbers.granularity == "run":
        return weight.numel() % numbers.block != 0
    return numbers.block_of(weight.shape[1]) is None


def quantizes(name: str, weight: torch.Tensor, scheme: Scheme, recipe: Recipe) -> bool:
    """Whether the layer of that name and weight is quantized: a rule takes it and the recipe does not keep it out."""
    return rule_of(weight, scheme) is not None and not recipe.keeps(name)


def chosen_layers(model: nn.Module, scheme: Scheme, recipe: Recipe) -> dict[str, Layer]:
    """The layers that ``scheme`` quantizes and ``recipe`` does not keep out.

    Raises:
        UserError: no layer is left.
    """
    layers = linear_layers(model)
    quantized = {name: module for name, module in layers if quantizes(name, module.weight, scheme, recipe)}
    if not quantized:
        raise UserError(
            f"scheme {scheme.name!r} with recipe {recipe.name!r} leaves no layer to quantize",
            f"Shorten `keep` of the recipe (now: {', '.join(recipe.keep)}).",
        )
    return quantized


def input_formats(model: nn.Module, scheme: Scheme) -> dict[str, Format]:
    """The format of every layer's input on a fixed step, where ``scheme`` has one."""
    number_formats = {}
    for name, module in linear_layers(model):
        rule = rule_of(module.weight, scheme)
        if rule is not None and rule.activations is not None and rule.activations.scales is None:
            number_formats[name] = formats.find(rule.activations.format)
    return number_formats


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
    """Scales of one layer from its weight [out, in, ...] and the calibration of its input, on the weight's device.

    Raises:
        ValueError: as ``make``.
    """
    rule = rule_of(weight, scheme)
    if rule is None:
        raise ValueError(f"scheme {scheme.name!r} has no numbers for a layer of shape {list(weight.shape)}")
    smooth = None if calibrated.smooth is None else calibrated.smooth.to(weight.device)
    values = weight if smooth is None else weight / smooth
    number = _input(rule.activations, calibrated.cut, scheme)
    return LayerPlan(grid(values, rule.weights, scheme.compute), number, smooth).to(weight.device)


def absmax(weight: torch.Tensor, numbers: Numbers) -> torch.Tensor:
    """The largest absolute weight of every group that shares a step, [groups]."""
    block = numbers.block_of(weight.shape[1]) if numbers.granularity == "block" else numbers.block
    groups = {"tensor": 1, "channel": len(weight)}.get(numbers.granularity, weight.numel() // (block or 1))
    return weight.detach().abs().reshape(groups, -1).amax(1)


def grid(weight: torch.Tensor, numbers: Numbers, stored: str) -> Grid:
    """The grid of a weight [out, in, ...], by its absolute maxima; steps are stored in the float format ``stored``.

    Raises:
        ValueError: blocks of a weight that is no matrix.
    """
    number = formats.find(numbers.format)
    if numbers.granularity == "none":
        return Grid(number, "none", torch.ones(1))
    if numbers.granularity == "block" and weight.dim() != 2:
        raise ValueError(f"blocks are for Linear layers, not for a weight of shape {list(weight.shape)}")
    largest = absmax(weight, numbers)
    block = None if numbers.block is None else weight.numel() // len(largest)
    if numbers.scales is None:
        return Grid(number, numbers.granularity, formats.scale(largest, number, stored), block)
    holder = formats.floating(numbers.scales)
    factor = formats.scale_of_scales(largest, number, holder)
    stored_steps = Held(holder, formats.block_scale(largest, number, holder, factor), factor)
    step = formats.floating(stored).nearest(stored_steps.codes * factor)
    return Grid(number, numbers.granularity, step, block, stored_steps)


def _input(numbers: Numbers | None, cut: float, scheme: Scheme) -> Static | Dynamic | None:
    if numbers is None:
        return None
    number = formats.find(numbers.format)
    if numbers.scales is None or numbers.block is None:
        return Static(number, formats.scale(torch.tensor(cut), number, scheme.compute))
    holder = formats.floating(numbers.scales)
    factor = formats.scale_of_scales(torch.tensor([cut]), number, holder)
    return Dynamic(number, holder, factor, numbers.block)
