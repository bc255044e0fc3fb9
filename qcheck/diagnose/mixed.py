"""Mixed precision: the layers to keep in the compute type for the least error within a budget of bytes.

An integer program, as in MixDQ (arXiv 2405.17873) and ModelOpt's auto_quantize: each layer takes one of its options,
and the costs of layers are assumed to add up, which docs/sensitivity.md measures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from qcheck.core.errors import UserError


@dataclass(frozen=True)
class Option:
    """A storage of one layer: its name (a scheme's, or KEEP), its cost in squared error, and its bytes."""

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
    one_each = np.zeros((len(rows), len(flat)))
    one_each[[rows[layer] for layer, _ in flat], range(len(flat))] = 1
    sizes = np.array([option.bytes for _, option in flat], np.float64)
    in_compute = np.array([option.name == KEEP for _, option in flat], np.float64)
    costs = np.array([option.cost for _, option in flat])
    scale = costs.max(initial=0.0) or 1.0
    constraints = [
        LinearConstraint(one_each, 1, 1),
        LinearConstraint(sizes / budget, ub=1),
        LinearConstraint(in_compute, ub=len(rows) if most is None else most),
    ]
    while True:
        solution = milp(
            costs / scale,
            integrality=np.ones(len(flat)),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": 0.0},
        )
        if solution.x is None:
            raise UserError(f"no choice of options fits {budget} bytes", "Give a larger budget, or keep more layers.")
        selected = solution.x > 0.5
        if sum(option.bytes for (_, option), is_selected in zip(flat, selected, strict=True) if is_selected) <= budget:
            return {layer: option for (layer, option), is_selected in zip(flat, selected, strict=True) if is_selected}
        # this selection is over the budget by less than the solver's tolerance: exclude it
        constraints.append(LinearConstraint(selected.astype(np.float64), ub=len(rows) - 1))


def kept(choice: Mapping[str, Option]) -> list[str]:
    """The layers that stay in the compute type."""
    return [layer for layer, option in choice.items() if option.name == KEEP]
