"""Orders: when the adapter is merged into the base's weights, and which arm's input ranges its artifact has.

With W a weight of the base, D the adapter's change of it and Q the scheme: "before" quantization stores Q(W + D);
"after" it stores Q(Q(W) + D), as loaders do that merge into a quantized base; "beside" it stores Q(W) and keeps D as a
low-rank branch in the compute type; "bound" is the same with the factors of D as inputs of the file, so that one engine
serves every adapter.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from qcheck.core.errors import unknown

Order = Literal["merge-quantize", "quantize-merge", "unmerged", "refit", "bound"]
ORDERS: tuple[Order, ...] = get_args(Order)
Merged = Literal["before", "after", "beside", "bound"]


@dataclass(frozen=True)
class Merge:
    """The steps of an order: when D is merged, and whether input ranges are the adapter's own or shared.

    Shared ranges (and smoothing factors) come from runs of the base without an adapter: one engine then serves many
    adapters, and only codes and scales of weights are swapped.
    """

    merged: Merged
    ranges: Literal["own", "shared"] = "own"

    @property
    def keeps_factors(self) -> bool:
        """Whether D keeps its own factors beside the quantized weight, so that nothing rounds it."""
        return self.merged in ("beside", "bound")

    @property
    def binds(self) -> bool:
        """Whether the factors of D are inputs of the file, so that the file holds no adapter."""
        return self.merged == "bound"

    @property
    def refits(self) -> bool:
        """Whether an adapter's weights take the place of others' in an engine that was built once."""
        return self.merged == "before" and self.ranges == "shared"

    @property
    def rounds_change_alone(self) -> bool:
        """Whether D is added to weights that lie on the grid already, so that changes below half a step are lost."""
        return self.merged == "after"


_MERGES: dict[Order, Merge] = {
    "merge-quantize": Merge("before"),
    "quantize-merge": Merge("after"),
    "unmerged": Merge("beside"),
    "refit": Merge("before", "shared"),
    "bound": Merge("bound", "shared"),
}
# the orders of `--scheme all`: the others store the weights of one of these
MERGES: tuple[Order, ...] = tuple(name for name, merge in _MERGES.items() if merge.ranges == "own")


def find(name: str) -> Order:
    """The order of that name.

    Raises:
        UserError: there is none.
    """
    for known in ORDERS:
        if known == name:
            return known
    raise unknown("order", name, ORDERS)


def merge(name: Order) -> Merge:
    """The steps of the order of that name."""
    return _MERGES[name]
