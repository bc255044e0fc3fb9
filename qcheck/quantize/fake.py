"""Simulation: a torch model that computes the same values as the artifact."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from qcheck.model.stored import Weight, place, weight_of, whole
from qcheck.quantize.plan import Dynamic, LayerPlan, Plan

Factors = tuple[torch.Tensor, torch.Tensor]


def low_rank(module: nn.Module, inputs: torch.Tensor, factors: Factors) -> torch.Tensor:
    """The unmerged adapter's part of a layer's output: up [out, r] times down [r, in, ...] times the float input."""
    down, up = factors
    if isinstance(module, nn.Conv2d):
        inner = F.conv2d(inputs, down, None, module.stride, module.padding, module.dilation)
        return F.conv2d(inner, up[:, :, None, None])
    return F.linear(F.linear(inputs, down), up)


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, _values: torch.Tensor, stand_in: torch.Tensor) -> torch.Tensor:
        return stand_in.view_as(stand_in)

    @staticmethod
    def backward(_ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


def straight(values: torch.Tensor, stand_in: torch.Tensor) -> torch.Tensor:
    """``stand_in`` bit for bit, with the gradient of ``values``: the straight-through estimator (arXiv 1308.3432)."""
    values_out: torch.Tensor = _Straight.apply(values, stand_in.detach())  # type: ignore[no-untyped-call]
    return values_out


def straight_input(layer: LayerPlan, values: torch.Tensor) -> torch.Tensor:
    """As ``LayerPlan.fake_input``, with a gradient: 1 inside the range, 0 where a static step saturates."""
    values = values if layer.smooth is None else values * layer.smooth
    if layer.input is None:
        return values
    if isinstance(layer.input, Dynamic):
        return straight(values, layer.input.fake(values.detach()))
    end = float(layer.input.number.limit * layer.input.step)
    return straight(values.clamp(-end, end), layer.input.fake(values.detach()))


def _forward(module: Any, layer: LayerPlan | None, factors: Factors | None) -> Callable[[torch.Tensor], torch.Tensor]:
    inner = module.forward

    def forward(inputs: torch.Tensor, *_: object) -> torch.Tensor:
        output: torch.Tensor = inner(inputs if layer is None else layer.fake_input(inputs))
        return output if factors is None else output + low_rank(module, inputs, factors)

    return forward


@contextmanager
def simulated(
    model: nn.Module,
    plan: Plan,
    branches: Mapping[str, Factors] | None = None,
    state: Mapping[str, torch.Tensor] | None = None,
) -> Iterator[nn.Module]:
    """``model`` with dequantized codes as weights and unmerged low-rank ``branches``, restored when the block ends.

    ``state`` holds the weights of these layers (``<layer>.weight``); without it they are the model's own. Everything is
    moved to the device of the model.
    """
    weights: dict[str, Weight] = {}
    branches = branches or {}
    names = [*plan, *(name for name in branches if name not in plan)]
    try:
        for name in names:
            module: Any = model.get_submodule(name)
            device: torch.device = module.weight.device
            numbers = plan[name].to(device) if name in plan else None
            if numbers is not None or state is not None:
                weights[name] = weight_of(module)
                weight = whole(module).detach() if state is None else state[f"{name}.weight"].to(device)
                place(module, Weight(weight if numbers is None else numbers.fake_stored(weight)))
            factors = branches.get(name)
            down_up = None if factors is None else (factors[0].to(device), factors[1].to(device))
            module.forward = _forward(module, numbers, down_up)
        yield model
    finally:
        for name in names:
            vars(model.get_submodule(name)).pop("forward", None)
        for name, before in weights.items():
            place(model.get_submodule(name), before)
