"""The grid of a weight, and the rule that a scheme has for a layer."""

import pytest
import torch

from qcheck.quantize import formats, plan
from qcheck.spec import scheme

INT8 = formats.find("int8")


def test_the_largest_weight_of_a_group_sets_the_step_and_is_not_rounded() -> None:
    weight = torch.tensor([[0.5, -1.27, 0.3], [0.0, 0.0, 0.0], [2.54, 1.0, -0.1]])
    grid = plan.Grid(INT8, "channel", weight.abs().amax(1) / 127)
    assert grid.spacing(weight).tolist() == [
        pytest.approx([0.01, 0.0, 0.01]),
        [0.0, 0.0, 0.0],
        pytest.approx([0.0, 0.02, 0.02]),
    ]


@pytest.mark.parametrize(
    ("name", "shape", "one"),
    [("int8", (8, 16), False), ("int4-g128", (8, 16, 3, 3), False), ("fp8", (8, 16), True)],
)
def test_a_layer_has_one_step_where_its_rule_says_so(name: str, shape: tuple[int, ...], one: bool) -> None:
    assert plan.has_one_step(torch.zeros(shape), scheme.find(name)) is one
