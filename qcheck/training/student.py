"""The denoiser as an artifact computes it, with the adapter's factors free to move: what QAT trains.

Ranges of inputs and everything of the base are fixed; the steps of the layers that the adapter changes follow its
factors as the artifact's do. PEFT has no part in it: its forward would add the adapter a second time.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from qcheck.model.lora.layout import Factors
from qcheck.model.quiet import quiet
from qcheck.quantize import fake, merge, plan
from qcheck.quantize.plan import Input, LayerPlan
from qcheck.spec import order as orders
from qcheck.spec.order import Order
from qcheck.spec.scheme import Scheme

Read = Callable[[str], Factors]  # a layer's factors as they are now


@dataclass(frozen=True)
class StudentSetup:
    """What the student stands on: scheme and order, and what calibration found for q0's and q1's inputs.

    ``chosen`` are the layers that are quantized; ``weight`` is how strongly the adapter is applied.
    """

    scheme: Scheme
    order: Order
    chosen: frozenset[str]
    before: Mapping[str, Input]
    calibrated: Mapping[str, Input]
    weight: float


def make(denoiser: nn.Module, ground: StudentSetup, touched: Mapping[str, object], read: Read) -> nn.Module:
    """A copy of the full-precision base ``denoiser`` that computes q1 with the factors that ``read`` gives.

    The gradient of its outputs reaches the factors and nothing else; rounding is passed straight through.
    """
    with quiet():
        model = copy.deepcopy(denoiser).requires_grad_(False)
    for name in {*ground.chosen, *touched}:
        module: Any = model.get_submodule(name)
        module.forward = _layer(module, name, ground, read if name in touched else None)
    return model


def _layer(module: Any, name: str, ground: StudentSetup, read: Read | None) -> Callable[..., torch.Tensor]:
    base: torch.Tensor = module.weight.data
    scheme, order = ground.scheme, ground.order
    if name not in ground.chosen:
        return _merged(module, lambda: _added(base, name, ground, read))
    q0 = plan.make_layer(base, scheme, ground.before[name])
    q1 = plan.make_layer(base, scheme, ground.calibrated[name])
    if read is None or orders.merge(order).merged == "beside":
        module.weight.data = q1.fake_stored(base)
        return _beside(module, q1, name, ground, read)
    rounded = q0.fake(base)

    def weight() -> torch.Tensor:
        merged = _added(base, name, ground, read)
        state = merge.stored(order, base, merged, merged - base, rounded)
        return quantized(state, scheme, ground.calibrated[name])

    return _merged(module, weight, q1)


def as_stored(master: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A float32 factor as a file of that type holds it, with the gradient of the factor."""
    return master if dtype == master.dtype else fake.straight(master, master.detach().to(dtype).to(master.dtype))


def quantized(state: torch.Tensor, scheme: Scheme, calibrated: Input) -> torch.Tensor:
    """The weight that the artifact stores of ``state``, with the gradient of ``state``."""
    numbers = plan.make_layer(state.detach(), scheme, calibrated)
    return fake.straight(numbers.stored(state), numbers.fake_stored(state.detach()))


def _added(base: torch.Tensor, name: str, ground: StudentSetup, read: Read | None) -> torch.Tensor:
    return base if read is None else base + ground.weight * read(name).change().view(base.shape)


def _merged(
    module: Any, weight: Callable[[], torch.Tensor], numbers: LayerPlan | None = None
) -> Callable[..., torch.Tensor]:
    """A layer whose weight is computed whenever it runs."""

    def forward(inputs: torch.Tensor, *_: object) -> torch.Tensor:
        given = inputs if numbers is None else fake.straight_input(numbers, inputs)
        if isinstance(module, nn.Conv2d):
            found: torch.Tensor = module._conv_forward(given, weight(), module.bias)
            return found
        return F.linear(given, weight(), module.bias)

    return forward


def _beside(
    module: Any, numbers: LayerPlan, name: str, ground: StudentSetup, read: Read | None
) -> Callable[..., torch.Tensor]:
    """A layer of fixed codes, with the adapter beside it where it has one."""
    inner = type(module).forward

    def forward(inputs: torch.Tensor, *_: object) -> torch.Tensor:
        output: torch.Tensor = inner(module, fake.straight_input(numbers, inputs))
        if read is None:
            return output
        found = read(name)
        up = ground.weight * found.scale * found.up.float().flatten(1)
        return output + fake.low_rank(module, inputs, (found.down.float(), up))

    return forward
