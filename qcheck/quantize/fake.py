"""Simulation: a torch model that computes what the artifact computes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from qcheck.quantize.plan import LayerPlan, Plan


def _fake_input(layer: LayerPlan) -> "object":
    def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (layer.fake_activation(inputs[0]), *inputs[1:])

    return hook


@contextmanager
def simulated(model: nn.Module, plan: Plan) -> Iterator[nn.Module]:
    """``model`` with every planned layer's weight and input replaced by their dequantized codes, then as it was."""
    kept: dict[str, torch.Tensor] = {}
    handles = []
    try:
        for name, layer in plan.items():
            module = model.get_submodule(name)
            weight = module.get_parameter("weight")
            kept[name] = weight.data
            weight.data = layer.fake_weight(weight.data)
            handles.append(module.register_forward_pre_hook(_fake_input(layer)))  # type: ignore[arg-type]
        yield model
    finally:
        for handle in handles:
            handle.remove()
        for name, data in kept.items():
            model.get_submodule(name).get_parameter("weight").data = data
