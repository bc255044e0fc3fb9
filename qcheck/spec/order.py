"""Orders: when the adapter is merged, and what of it is rounded."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from qcheck.core.errors import unknown

Order = Literal["merge-quantize", "quantize-merge", "unmerged", "refit"]
ORDERS: tuple[Order, ...] = get_args(Order)
MERGES: tuple[Order, ...] = ("merge-quantize", "quantize-merge", "unmerged")  # refit makes the first one's weights


@dataclass(frozen=True)
class Merge:
    """What an order does with an adapter's change D of a weight W under a scheme Q.

    ``merged`` before quantizing is Q(W + D), after it Q(Q(W) + D), beside it Q(W) + D, bound is that with D an input
    of the engine. ``ranges`` of layers' inputs are the adapter's own, or those that all adapters of an engine share.
    """

    merged: Literal["before", "after", "beside", "bound"]
    ranges: Literal["own", "shared"]

    @property
    def loses(self) -> bool:
        """Whether what is below half a step is gone: Q(W) lies on the grid, so that Q(Q(W) + D) rounds it away."""
        return self.merged == "after"


OF: Mapping[str, Merge] = {
    "merge-quantize": Merge("before", "own"),
    "quantize-merge": Merge("after", "own"),
    "unmerged": Merge("beside", "own"),
    "refit": Merge("before", "shared"),
}


def find(name: str) -> Order:
    """The order of that name."""
    for known in ORDERS:
        if known == name:
            return known
    raise unknown("order", name, ORDERS)
