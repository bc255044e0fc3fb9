"""What an order does to a weight is said in one place: artifact, student, forecast and arrival compute the same."""

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from qcheck.device.arithmetic import decibels
from qcheck.diagnose import arrival
from qcheck.diagnose import change as changes
from qcheck.model.arms import Arms
from qcheck.model.load import Base
from qcheck.model.lora.layout import Factors
from qcheck.model.stored import Weight
from qcheck.quantize import contents, merge, plan
from qcheck.quantize.contents import QuantizedWeights
from qcheck.quantize.forecast import Rows
from qcheck.quantize.plan import Input
from qcheck.spec import order as orders
from qcheck.spec import recipe, scheme
from qcheck.spec.order import MERGES, ORDERS, Order
from qcheck.training import student

OUT, IN = 24, 32
INT4 = scheme.find("int4-g128")  # a step for the 32 inputs of each output; inputs in float
PLAIN = Input(1.0)


class Layer(NamedTuple):
    """A weight, an adapter's factors, and the weight with their product: numbers whose sums are exact in float32."""

    base: torch.Tensor
    factors: Factors
    adapted: torch.Tensor

    @property
    def change(self) -> torch.Tensor:
        return self.adapted - self.base


@pytest.fixture(params=range(3))
def layer(request: pytest.FixtureRequest) -> Layer:
    generator = torch.Generator().manual_seed(request.param)
    base, down, up = (
        torch.randint(-most, most + 1, shape, generator=generator) / one
        for most, one, shape in ((1024, 1024, (OUT, IN)), (8, 32, (2, IN)), (8, 32, (OUT, 2)))
    )
    factors = Factors(down, up, 1.0)
    return Layer(base, factors, base + factors.change())


def _fake(weight: torch.Tensor) -> torch.Tensor:
    """Q, with the steps of that weight."""
    return plan.make_layer(weight, INT4, PLAIN).fake(weight)


def _stored(order: Order, layer: Layer) -> torch.Tensor:
    return merge.stored(order, layer.base, layer.adapted, layer.change, lambda: _fake(layer.base))


@pytest.mark.parametrize("order", ORDERS)
def test_what_is_stored_is_the_orders_formula(order: Order, layer: Layer) -> None:
    """W + D before quantization, Q(W) + D after it, W beside it."""
    formula = {
        "merge-quantize": layer.base + layer.factors.change(),
        "refit": layer.base + layer.factors.change(),
        "quantize-merge": _fake(layer.base) + layer.factors.change(),
        "unmerged": layer.base,
        "bound": layer.base,
    }
    assert torch.equal(_stored(order, layer), formula[order])
    assert len({value.numpy().tobytes() for value in formula.values()}) == 3


class Denoiser(torch.nn.Module):
    """One layer."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(IN, OUT, bias=False)
        self.layer.weight.data = weight.clone()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(inputs)


def _content(order: Order, layer: Layer) -> QuantizedWeights:
    """What the artifact is made of."""
    model = Denoiser(layer.base)
    family: Any = SimpleNamespace(pipe=SimpleNamespace(unet=model), module=model, denoiser="unet")
    weights = {"base": {"unet.layer": Weight(layer.base)}, "adapted": {"unet.layer": Weight(layer.adapted)}}
    base = Base("made", "made", family)
    arms = Arms(base, base, (), (), ("unet.layer",), weights, {"unet.layer": layer.factors.down})
    ranges = {origin: {"layer": PLAIN} for origin in ("base", "adapted", "shared")}
    return contents.of_adapted(arms, INT4, recipe.find("emoji"), order, ranges)  # type: ignore[arg-type]


def _artifact(order: Order, layer: Layer) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of the artifact, and what they stand for."""
    content = _content(order, layer)
    weight, numbers = content.state["layer.weight"], content.plan["layer"]
    return numbers.codes(weight), numbers.fake_stored(weight)


def _students(order: Order, layer: Layer) -> torch.Tensor:
    """The weight that QAT's student computes with: its answer to every unit vector."""
    ground = student.StudentSetup(INT4, order, frozenset({"layer"}), {"layer": PLAIN}, {"layer": PLAIN}, 1.0)
    model = student.make(Denoiser(layer.base), ground, {"layer": None}, lambda _: layer.factors)
    with torch.no_grad():
        return model(torch.eye(IN)).t()


def _agree(order: Order, layer: Layer) -> None:
    codes, values = _artifact(order, layer)
    base = plan.make_layer(layer.base, INT4, PLAIN)
    assert torch.equal(values, _fake(_stored(order, layer)))

    if orders.merge(order).keeps_factors:  # the branch is in float: its sum rounds
        assert torch.allclose(_students(order, layer), values + layer.factors.change(), atol=1e-6)
    else:
        assert torch.equal(_students(order, layer), values)

    if order in MERGES:
        rows = Rows(layer.base, layer.change, len(layer.base))
        (forecast,) = changes.arrivals(INT4, [order], rows)
        same = float((codes == base.codes(layer.base)).float().mean())
        assert forecast.same_codes == same
        assert (same == 1) == (order == "unmerged")

    wanted, found = layer.change.double().numpy(), (values.double() - base.fake(layer.base).double()).numpy()
    arrived = arrival.arrival("layer", layer.base, layer.adapted, INT4, order)
    assert arrived.survival == pytest.approx((found * wanted).sum() / np.square(wanted).sum(), rel=1e-6)
    snr = decibels(np.square(wanted).sum(), np.square(found - wanted).sum())
    assert arrived.snr == pytest.approx(float(snr), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("order", ORDERS)
def test_artifact_student_forecast_and_arrival_agree_on_a_layer(order: Order, layer: Layer) -> None:
    _agree(order, layer)


@pytest.mark.parametrize("order", [order for order in ORDERS if not orders.merge(order).keeps_factors])
def test_all_of_them_ask_the_one_place(order: Order, layer: Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were an order to store something else, all would compute that."""
    plain = _artifact(order, layer)[0]
    monkeypatch.setattr(merge, "stored", lambda _order, base, _adapted, change, _quantized: base - change)
    assert not torch.equal(_artifact(order, layer)[0], plain)
    _agree(order, layer)


def test_a_layer_that_the_recipe_keeps_in_float_is_merged_in_every_order(layer: Layer) -> None:
    for order in ORDERS:
        model = Denoiser(layer.base)
        ground = student.StudentSetup(INT4, order, frozenset(), {}, {}, 1.0)
        made = student.make(model, ground, {"layer": None}, lambda _: layer.factors)
        with torch.no_grad():
            assert torch.equal(made(torch.eye(IN)).t(), layer.adapted)
