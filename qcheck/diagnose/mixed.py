"""Mixed precision: which layers stay in the compute type, so that the least error is left within a budget of bytes.

An integer program, as in MixDQ (arXiv 2405.17873) and ModelOpt's auto_quantize: a layer takes one of its options, and
costs of layers add up, which docs/sensitivity.md measures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from qcheck.core.errors import UserError


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


def kept(chosen: Mapping[str, Option]) -> list[str]:
    """The layers that stay in the compute type."""
    return [layer for layer, option in chosen.items() if option.name == KEEP]
