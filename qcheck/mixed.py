"""Mixed precision: which layers stay in the compute type, so that the least error is left within a budget of bytes.

An integer program, as in MixDQ (arXiv 2405.17873) and ModelOpt's auto_quantize: a layer takes one of its options, and
costs of layers add up, which docs/sensitivity.md measures.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from qcheck import recipe as recipes
from qcheck.artifact import Content
from qcheck.errors import UserError
from qcheck.quantize import plan
from qcheck.recipe import Recipe
from qcheck.sensitivity import Scores
from qcheck.target import number_format


@dataclass(frozen=True)
class Option:
    """One way to hold a layer: its name (a scheme's, or KEEP), what it costs in squared error, and its bytes."""

    name: str
    cost: float
    bytes: int


KEEP = "keep"
Options = Mapping[str, Sequence[Option]]


def choose(options: Options, budget: int, most: int | None = None) -> dict[str, Option]:
    """The option of every layer: least total cost with at most ``budget`` bytes in all.

    With ``most``, at most that many layers are kept in the compute type.

    Raises:
        UserError: even the smallest options are too large.
    """
    flat = [(layer, option) for layer, offered in options.items() for option in offered]
    smallest = sum(min(option.bytes for option in offered) for offered in options.values())
    if smallest > budget:
        raise UserError(
            f"the quantized layers take at least {smallest} bytes, and the budget is {budget}",
            "Give a larger budget, or a scheme of fewer bits.",
        )
    rows = {layer: row for row, layer in enumerate(options)}
    once = np.zeros((len(rows), len(flat)))
    once[[rows[layer] for layer, _ in flat], range(len(flat))] = 1
    sizes = np.array([option.bytes for _, option in flat], np.float64)
    kept = np.array([option.name == KEEP for _, option in flat], np.float64)
    costs = np.array([option.cost for _, option in flat])
    scale = costs.max(initial=0.0) or 1.0
    held = [
        LinearConstraint(once, 1, 1),
        LinearConstraint(sizes / budget, ub=1),
        LinearConstraint(kept, ub=len(rows) if most is None else most),
    ]
    while True:
        found = milp(
            costs / scale,
            integrality=np.ones(len(flat)),
            bounds=Bounds(0, 1),
            constraints=held,
            options={"mip_rel_gap": 0.0},
        )
        if found.x is None:
            raise UserError(f"no choice of options fits {budget} bytes", "Give a larger budget, or keep more layers.")
        chosen = found.x > 0.5
        if sum(option.bytes for (_, option), taken in zip(flat, chosen, strict=True) if taken) <= budget:
            return {layer: option for (layer, option), taken in zip(flat, chosen, strict=True) if taken}
        held.append(LinearConstraint(chosen.astype(np.float64), ub=len(rows) - 1))  # over by less than solvers see


def sizes(content: Content, compute: str) -> dict[str, tuple[int, int]]:
    """Bytes of each quantized layer's weight, with its steps, and of the same weight in the compute type."""
    return {
        layer: _sizes(content.state[f"{layer}.weight"].numel(), numbers.weight, compute)
        for layer, numbers in content.plan.items()
    }


def _sizes(count: int, grid: plan.Grid, compute: str) -> tuple[int, int]:
    wide = number_format(compute).bits
    steps = (
        0
        if grid.granularity == "none"
        else len(grid.step) * (wide if grid.held is None else number_format(grid.held.number.name).bits)
    )
    return -(-(count * number_format(grid.number.name).bits + steps) // 8), -(-count * wide // 8)


def offered(scores: Scores, found: Mapping[str, tuple[int, int]], scheme: str) -> dict[str, list[Option]]:
    """For every layer of a case: its scheme at its score, or KEEP at none."""
    return {
        layer: [Option(scheme, float(cost), found[layer][0]), Option(KEEP, 0.0, found[layer][1])]
        for layer, cost in zip(scores.layers, scores.costs, strict=True)
    }


def kept(chosen: Mapping[str, Option]) -> list[str]:
    """The layers that stay in the compute type."""
    return [layer for layer, option in chosen.items() if option.name == KEEP]


def recipe_of(recipe: Recipe, layers: Collection[str], title: str) -> str:
    """The TOML of ``recipe`` that also keeps ``layers``; `qcheck check --recipe FILE` takes it."""
    return recipes.text(recipe.model_copy(update={"title": title, "keep": (*recipe.keep, *layers)}))
