"""Layers whose weights stay in 16 bit, as their file has them, and compute in float32.

The float32 weight, with the changes by adapters merged in, exists while its layer computes. On a processor every value
is that of a layer whose weight was cast and merged beforehand; another device merges there, which may change the last
bit. Memory holds the file's own bytes, mapped, and the adapters' factors: the files must not change meanwhile.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

import torch
from accelerate import init_empty_weights
from torch import nn
from torch.nn import functional as F

from qcheck.model.lora.layout import Factors

LEAST = 2**20  # elements: a smaller weight is cast when it is loaded
_KINDS: dict[type[nn.Module], type[nn.Module]]

Merge = tuple[Factors, float]  # an adapter's factors of a layer, and the adapter's weight


@dataclass(frozen=True)
class Weight:
    """A layer's weight [out, in, ...] in an arm: ``stored`` and its changes ``merges``, which float32 has not.

    Layers that have it share its tensors: nothing may write into them.
    """

    stored: torch.Tensor
    merges: tuple[Merge, ...] = ()

    def merged(self, factors: Factors, weight: float) -> Self:
        """With an adapter's change: at once in float32, later where the weight is stored in 16 bit."""
        if self.stored.dtype == torch.float32:
            return replace(self, stored=factors.merged(self.stored, weight))
        return replace(self, merges=(*self.merges, (factors, weight)))

    def whole(self) -> torch.Tensor:
        """In float32, with all changes."""
        value = self.stored.float()
        for factors, weight in self.merges:
            value = factors.merged(value, weight)
        return value


class _Computed(torch.autograd.Function):
    """The product of a stored layer, of which a backward pass computes the weight again instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, layer: Any) -> torch.Tensor:
        ctx.layer, ctx.shape = layer, inputs.shape
        return product(layer, inputs, whole(layer), layer.bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return input_gradient(ctx.layer, gradient, ctx.shape, whole(ctx.layer)), None


def product(layer: Any, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The output of a layer with another ``weight`` and ``bias``."""
    if isinstance(layer, nn.Conv2d):
        output: torch.Tensor = layer._conv_forward(inputs, weight, bias)
        return output
    return F.linear(inputs, weight, bias)


def input_gradient(layer: Any, gradient: torch.Tensor, shape: torch.Size, weight: torch.Tensor) -> torch.Tensor:
    """dL/dx of ``shape`` from dL/dy: the layer's transposed weight on ``gradient``."""
    if not isinstance(layer, nn.Conv2d):
        return gradient @ weight
    places = (layer.stride, layer.padding, layer.dilation, False, (0, 0), layer.groups)
    inputs, wanted = gradient.new_empty(1).expand(shape), [True, False, False]  # their values are not read
    result: torch.Tensor = torch.ops.aten.convolution_backward(gradient, inputs, weight, None, *places, wanted)[0]
    return result


class _Stored:
    """The forward of a layer whose weight may be stored; in float32 it is an ordinary layer."""

    merges: tuple[Merge, ...] = ()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The layer's output."""
        layer: Any = self
        if not is_stored(layer):
            return product(layer, inputs, layer.weight, layer.bias)
        if torch.is_grad_enabled() and inputs.requires_grad:
            output: torch.Tensor = _Computed.apply(inputs, layer)  # type: ignore[no-untyped-call]
            return output
        return product(layer, inputs, whole(layer), layer.bias)


class StoredLinear(_Stored, nn.Linear):
    """A linear layer that may be stored."""


class StoredConv2d(_Stored, nn.Conv2d):
    """A convolution that may be stored."""


_KINDS = {nn.Linear: StoredLinear, nn.Conv2d: StoredConv2d}
Converted = TypeVar("Converted", bound=nn.Module)


def whole(layer: Any) -> torch.Tensor:
    """The weight of a layer as it computes, in float32 where it is stored."""
    weight: torch.Tensor = layer.weight
    return weight_of(layer).whole() if is_stored(layer) else weight


def weight_of(layer: Any) -> Weight:
    """The weight that a layer has now."""
    return Weight(layer.weight.detach(), getattr(layer, "merges", ()))


def is_stored(layer: Any) -> bool:
    """Whether a layer's weight is stored in 16 bit."""
    return isinstance(layer, StoredLinear | StoredConv2d) and layer.weight.dtype != torch.float32


def place(layer: Any, weight: Weight, device: torch.device | None = None) -> None:
    """Give a layer the weight of an arm, on ``device`` or where it is. A stored one differs in its changes alone."""
    place_on = device or weight.stored.device
    if weight.stored.dtype == torch.float32 or not is_stored(layer):
        layer.weight.data = weight.stored.to(place_on)
    if isinstance(layer, _Stored):
        layer.merges = tuple((factors.to(place_on), size) for factors, size in weight.merges)


def prepare(part: nn.Module, whole_ones: Iterable[str] = ()) -> None:
    """Let the large layers of ``part`` compute from their 16-bit weights, and cast everything else to float32.

    Layers whose name ends with one of ``whole_ones`` are cast too: their owner reads the type of their weight.

    Raises:
        RuntimeError: a buffer is computed and not read from the files, so that loading in 16 bit has rounded it.
    """
    if rounded := [name for name, value in computed(part).items() if value.dtype.itemsize < 4]:
        raise RuntimeError(f"{type(part).__name__} computes {rounded[0]}, which loading in 16 bit has rounded")
    names = tuple(whole_ones)
    kept = set()
    for name, layer in part.named_modules():
        kind = _KINDS.get(type(layer))
        weight = getattr(layer, "weight", None)
        if kind is not None and _is_large(weight) and not (names and name.endswith(names)):
            layer.__class__ = kind
            kept.add(id(layer.weight))
    for value in (*part.parameters(), *part.buffers()):
        if value.is_floating_point() and id(value) not in kept:
            value.data = value.data.float()


def computed(part: nn.Module) -> dict[str, torch.Tensor]:
    """The floating-point buffers of ``part`` that are computed and not read from its files, by name."""
    state = part.state_dict()
    return {n: value for n, value in part.named_buffers() if value.is_floating_point() and n not in state}


def compute_again(part: Any) -> None:
    """Give a part of diffusers or transformers the computed buffers that loading in 16 bit has rounded, in float32."""
    rounded = [name for name, value in computed(part).items() if value.dtype.itemsize < 4]
    if not rounded:
        return
    with init_empty_weights(include_buffers=False):
        again = type(part).from_config(part.config) if hasattr(part, "from_config") else type(part)(part.config)
    for name in rounded:
        part.get_buffer(name).data = again.get_buffer(name).float()


def _is_large(weight: Any) -> bool:
    return bool(weight.dtype.itemsize == 2 and weight.numel() >= LEAST)


def ordinary(layer: Any) -> None:
    """Make a layer with a whole weight one of torch's own again."""
    layer.__class__ = next(plain for plain, kind in _KINDS.items() if kind is type(layer))
    vars(layer).pop("merges", None)


def stored_layers(part: nn.Module) -> Iterator[Any]:
    """The layers of ``part`` that may be stored."""
    return (layer for layer in part.modules() if isinstance(layer, _Stored))


class Weights(Mapping[str, torch.Tensor]):
    """Float32 tensors by name, some of which are computed each time that they are read."""

    def __init__(self, values: Mapping[str, torch.Tensor | Callable[[], torch.Tensor]]) -> None:
        self._values = values

    def __getitem__(self, name: str) -> torch.Tensor:
        """The tensor of that name."""
        value = self._values[name]
        return value if isinstance(value, torch.Tensor) else value()

    def __contains__(self, name: object) -> bool:
        """Whether there is a tensor of that name; nothing is computed."""
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._values)

    def __len__(self) -> int:
        """The number of tensors."""
        return len(self._values)

    def replaced(self, values: Mapping[str, torch.Tensor | Callable[[], torch.Tensor]]) -> "Weights":
        """With other tensors under some names."""
        return Weights({**self._values, **values})
