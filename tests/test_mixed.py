"""Which layers stay in the compute type: never above the budget, and as good as trying everything."""

import itertools
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcheck import mixed, recipe, scheme
from qcheck.artifact import Content
from qcheck.errors import UserError
from qcheck.mixed import KEEP, Option
from qcheck.quantize import plan

LAYERS = st.lists(
    st.tuples(st.floats(1e-12, 1e6), st.integers(1, 10**9), st.integers(1, 10**9)), min_size=1, max_size=7
)


def _options(layers: list[tuple[float, int, int]]) -> dict[str, list[Option]]:
    return {
        f"layer{place}": [Option("int4", cost, small), Option(KEEP, 0.0, small + more)]
        for place, (cost, small, more) in enumerate(layers)
    }


@settings(max_examples=60, deadline=None)
@given(layers=LAYERS, part=st.floats(0, 1))
def test_a_choice_stays_within_the_budget_and_is_as_good_as_any(
    layers: list[tuple[float, int, int]], part: float
) -> None:
    options = _options(layers)
    least, most = (sum(offered[which].bytes for offered in options.values()) for which in (0, 1))
    budget = least + int(part * (most - least))
    chosen = mixed.choose(options, budget)
    assert list(chosen) == list(options)
    assert sum(option.bytes for option in chosen.values()) <= budget
    fitting = [
        sum(option.cost for option in every)
        for every in itertools.product(*options.values())
        if sum(option.bytes for option in every) <= budget
    ]
    worst = max(cost for cost, _, _ in layers)
    assert sum(option.cost for option in chosen.values()) <= min(fitting) + 1e-6 * worst


def test_a_costly_layer_goes_before_two_cheap_ones_only_if_it_is_worse_than_both() -> None:
    options = _options([(3.0, 10, 20), (2.0, 10, 10), (2.0, 10, 10)])
    assert mixed.kept(mixed.choose(options, 50)) == ["layer1", "layer2"]
    assert mixed.kept(mixed.choose(options, 50, most=1)) == ["layer0"]


def test_one_byte_over_is_over() -> None:
    options = _options([(3.0, 10**9, 10**9), (2.0, 10**9, 10**9 - 1), (1.0, 10**9, 10**9 - 2)])
    assert mixed.kept(mixed.choose(options, 4 * 10**9 - 1)) == ["layer1"]
    assert mixed.kept(mixed.choose(options, 4 * 10**9)) == ["layer0"]


def test_more_than_two_formats_may_be_offered() -> None:
    options = {
        "a": [Option("int4", 9, 4), Option("int8", 1, 8), Option(KEEP, 0, 16)],
        "b": [Option("int4", 1, 4), Option(KEEP, 0, 16)],
    }
    assert [option.name for option in mixed.choose(options, 12).values()] == ["int8", "int4"]


def test_a_budget_below_the_smallest_is_an_error() -> None:
    with pytest.raises(UserError, match="at least 20 bytes, and the budget is 19"):
        mixed.choose(_options([(1.0, 10, 5), (1.0, 10, 5)]), 19)


@pytest.mark.parametrize(
    ("name", "small"),
    [
        ("int4-g128", 256 * 512 // 2 + 256 * 4 * 2),
        ("int8", 256 * 512 + 256 * 2),
        ("fp8", 256 * 512 + 2),
        ("nf4-g64", 256 * 512 // 2 + 256 * 8 * 4),
        ("nvfp4-wo", 256 * 512 // 2 + 256 * 32),
    ],
)
def test_bytes_are_codes_and_steps(name: str, small: int) -> None:
    found = scheme.find(name)
    weight = torch.randn(256, 512)
    numbers = plan.make_layer(weight, found, plan.Input(1.0))
    content = Content({"layer.weight": weight}, {"layer": numbers}, {})
    wide = 4 if found.compute == "float32" else 2
    assert mixed.sizes(content, found.compute) == {"layer": (small, 256 * 512 * wide)}


def test_a_choice_becomes_a_recipe_that_a_check_takes(tmp_path: Path) -> None:
    known = recipe.find("emoji")
    path = tmp_path / "mixed.toml"
    layer = "up_blocks.2.resnets.0.conv1"
    path.write_text(mixed.recipe_of(known, [layer], 'Two "kept" layers'), "utf-8")
    read = recipe.find(str(path))
    assert read.keeps(layer)
    assert read.keeps("conv_in")
    assert not read.keeps("up_blocks.2.resnets.0.conv2")
    assert read.model_copy(update={"keep": known.keep, "title": known.title, "name": known.name}) == known
    assert tomllib.loads(path.read_text("utf-8"))["title"] == 'Two "kept" layers'


def test_options_come_from_scores() -> None:
    from qcheck.sensitivity import Scores

    parts = np.zeros((1, 2, 2))
    parts[0, :, 0] = [1, 2]
    scores = Scores(("a", "b"), np.zeros(1, np.int64), np.ones(1), parts)
    options = mixed.offered(scores, {"a": (4, 16), "b": (4, 16)}, "int4")
    assert options["b"] == [Option("int4", 4.0, 4), Option(KEEP, 0.0, 16)]
    assert mixed.kept(mixed.choose(options, 20)) == ["b"]
