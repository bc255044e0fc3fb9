"""The student of QAT: the denoiser as an artifact computes it, with the adapter's factors as parameters.

Input ranges and the base's weights are fixed. The steps of the layers that the adapter changes follow its factors, as
the artifact's do. PEFT's forward is not used: it would add the adapter a second time.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from qcheck.model.components import copied
from qcheck.model.lora.layout import Factors
from qcheck.model.quiet import quiet
from qcheck.quantize import fake, merge, plan
from qcheck.quantize.plan import Input, LayerPlan
from qcheck.spec import order as orders
from qcheck.spec.order import Order
from qcheck.spec.scheme import Scheme

Read = Callable[[str], Factors]  # the current factors of a layer


@dataclass(frozen=True)
class StudentSetup:
    """Scheme and order of the student, and the calibrated inputs of q0 (``before``) and of q1 (``calibrated``).

    ``chosen`` are the layers that are quantized; ``weight`` is the weight that the adapter is applied with.
    """

    scheme: Scheme
    order: Order
    chosen: frozenset[str]
    before: Mapping[str, Input]
    calibrated: Mapping[str, Input]
    weight: float


def make(denoiser: nn.Module, setup: StudentSetup, changed: Mapping[str, object], read: Read) -> nn.Module:
    """A copy of the full-precision base ``denoiser`` that computes q1 with the factors that ``read`` returns.

    ``changed`` are the layers that the adapter changes. Gradients of the outputs reach the factors alone, by the
    straight-through estimator of rounding.
    """
    with quiet():
        model = copied(denoiser, dtype=torch.float32)
    for name in {*setup.chosen, *changed}:
        module: Any = model.get_submodule(name)
        module.forward = _layer(module, name, setup, read if name in changed else None)
    return model


def _layer(module: Any, name: str, setup: StudentSetup, read: Read | None) -> Callable[..., torch.Tensor]:
    base: torch.Tensor = module.weight.data
    scheme, order = setup.scheme, setup.order
    if name not in setup.chosen:
        return _merged(module, lambda: _with_adapter(base, name, setup, read))
    q0 = plan.make_layer(base, scheme, setup.before[name])
    q1 = plan.make_layer(base, scheme, setup.calibrated[name])
    if read is None or orders.merge(order).keeps_factors:
        module.weight.data = q1.fake_stored(base)
        return _beside(module, q1, name, setup, read)
    rounded = q0.fake(base)

    def weight() -> torch.Tensor:
        merged = _with_adapter(base, name, setup, read)
        state = merge.stored(order, base, merged, merged - base, lambda: rounded)
        return quantized(state, scheme, setup.calibrated[name])

    return _merged(module, weight, q1)


def as_stored(master: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A float32 factor rounded to ``dtype``, the type of the adapter's file, with the gradient of the factor."""
    return master if dtype == master.dtype else fake.straight(master, master.detach().to(dtype).to(master.dtype))


def quantized(state: torch.Tensor, scheme: Scheme, calibrated: Input) -> torch.Tensor:
    """The weight ``state`` as the artifact stores it, with the gradient of ``state``."""
    numbers = plan.make_layer(state.detach(), scheme, calibrated)
    return fake.straight(numbers.stored(state), numbers.fake_stored(state.detach()))


def _with_adapter(base: torch.Tensor, name: str, setup: StudentSetup, read: Read | None) -> torch.Tensor:
    return base if read is None else base + setup.weight * read(name).change().view(base.shape)


def _merged(
    module: Any, weight: Callable[[], torch.Tensor], numbers: LayerPlan | None = None
) -> Callable[..., torch.Tensor]:
    """The forward of a layer whose weight is computed at every call."""

    def forward(inputs: torch.Tensor, *_: object) -> torch.Tensor:
        rounded = inputs if numbers is None else fake.straight_input(numbers, inputs)
        if isinstance(module, nn.Conv2d):
            output: torch.Tensor = module._conv_forward(rounded, weight(), module.bias)
            return output
        return F.linear(rounded, weight(), module.bias)

    return forward


def _beside(
    module: Any, numbers: LayerPlan, name: str, setup: StudentSetup, read: Read | None
) -> Callable[..., torch.Tensor]:
    """The forward of a layer with fixed codes, with an unmerged adapter beside it where it has one."""
    inner = type(module).forward

    def forward(inputs: torch.Tensor, *_: object) -> torch.Tensor:
        output: torch.Tensor = inner(module, fake.straight_input(numbers, inputs))
        if read is None:
            return output
        factors = read(name)
        up = setup.weight * factors.scale * factors.up.float().flatten(1)
        return output + fake.low_rank(module, inputs, (factors.down.float(), up))

    return forward
