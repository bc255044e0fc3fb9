"""The content of the arms of a scheme: which weights an artifact holds, and the numbers that round them."""

import functools
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import torch

from qcheck.model.arms import Arms
from qcheck.quantize import bound, merge, plan
from qcheck.quantize.bound import Binding
from qcheck.quantize.fake import Factors
from qcheck.quantize.plan import Input, LayerPlan
from qcheck.spec import order as orders
from qcheck.spec.arm import Side
from qcheck.spec.order import Order
from qcheck.spec.recipe import Recipe
from qcheck.spec.scheme import Scheme

BASE: Literal["base"] = "base"
Origin = Literal["base", "adapted", "shared"]  # inputs of an arm at f1's latents, or of the base on its own runs
Ranges = Mapping[Origin, Mapping[str, Input]]


class QuantizedWeights(NamedTuple):
    """The content of a quantized arm: full-precision weights, their plan, and the factors of an unmerged adapter.

    ``side`` is the arm whose biases and norms its graph has. With a ``rank`` the factors are inputs of the file, padded
    to that rank.
    """

    state: Mapping[str, torch.Tensor]
    plan: Mapping[str, LayerPlan]
    branches: Mapping[str, Factors]
    side: Side = "adapted"
    rank: int | None = None

    def bound(self) -> dict[str, torch.Tensor]:
        """The file's inputs for the adapter, float32; empty where its factors are in the file, or merged."""
        return {} if self.rank is None else bound.inputs(self.branches, self.rank)

    def inputs(self) -> dict[str, np.ndarray]:
        """As ``bound``, as a runner takes them."""
        return {name: tensor.numpy() for name, tensor in self.bound().items()}


def calibrated_on(order: Order) -> Origin:
    """The origin of the inputs that give the ranges of q1 in an order."""
    return "shared" if orders.merge(order).ranges == "shared" else "adapted"


def of_base(arms: Arms, scheme: Scheme, recipe: Recipe, ranges: Ranges) -> QuantizedWeights:
    """q0: the base quantized with its own ranges."""
    state = arms.state("base")
    layers = plan.chosen_layers(arms.base.denoiser, scheme, recipe)
    return QuantizedWeights(state, plan.make(layers, state, scheme, ranges["base"]), {}, "base")


def of_adapted(
    arms: Arms, scheme: Scheme, recipe: Recipe, order: Order, ranges: Ranges, binding: Binding | None = None
) -> QuantizedWeights:
    """q1 in one order (``spec.order``); layers that the recipe keeps in float are merged there, unless D is bound.

    ``binding`` are the inputs of a file that binds its adapter, by default the adapter's own.
    """
    calibrated, layers = ranges[calibrated_on(order)], plan.chosen_layers(arms.base.denoiser, scheme, recipe)
    if orders.merge(order).binds:
        state = arms.state("base")
        binding, own = binding or bound.binding([arms.ranks()]), set(arms.denoiser_layers())
        branches = {
            layer: arms.factors(layer) if layer in own else bound.absent(state[f"{layer}.weight"])
            for layer in binding.layers
        }
        return QuantizedWeights(state, plan.make(layers, state, scheme, calibrated), branches, "base", binding.rank)
    base, adapted = arms.state("base"), arms.state("adapted")
    changed = [layer for layer in arms.denoiser_layers() if layer in layers]

    def stored(layer: str) -> torch.Tensor:
        before, after = base[f"{layer}.weight"], adapted[f"{layer}.weight"]
        quantized = functools.partial(_quantized, before, scheme, ranges["base"][layer])
        return merge.stored(order, before, after, after - before, quantized)

    state = adapted.replaced({f"{layer}.weight": functools.partial(stored, layer) for layer in changed})
    branches = {layer: arms.factors(layer) for layer in changed} if orders.merge(order).keeps_factors else {}
    return QuantizedWeights(state, plan.make(layers, state, scheme, calibrated), branches)


def _quantized(weight: torch.Tensor, scheme: Scheme, calibrated: Input) -> torch.Tensor:
    return plan.make_layer(weight, scheme, calibrated).fake(weight)
