"""What an adapter's change D does to one whole weight W: intruder dimensions, hot columns, steps, codes by order."""

from collections.abc import Iterator, Sequence

import torch

from qcheck.quantize import forecast, merge
from qcheck.quantize.forecast import Arrived, Rows
from qcheck.result.inspection import Arrival, Details
from qcheck.spec.order import Order
from qcheck.spec.scheme import Scheme

_TOP, _SAME = 10, 0.6  # arXiv 2410.21228: directions compared, and the cosine below which one is new
_WIDEST = 2048  # of a weight's smaller side: beyond, the two decompositions for intruders take seconds a layer
_HOT = 5.0  # a column of D this many times as long as the median column


def details(before: torch.Tensor, change: torch.Tensor, arrivals: Sequence[Arrival]) -> Details:
    """The details of a layer, from its whole weight [out, in, ...] and the change of it."""
    columns = change.flatten(1).norm(dim=0)
    rows = (before.flatten(1).abs().amax(1), (before + change).flatten(1).abs().amax(1))
    return Details(
        step_growth=float((20 * torch.log10(rows[1] / rows[0].clamp(min=1e-30))).max()),
        hot_columns=int((columns > _HOT * columns.median()).sum()),
        intruders=intruders(before.flatten(1), (before + change).flatten(1)),
        arrivals=[*arrivals],
    )


def arrivals(scheme: Scheme, orders: Sequence[Order], rows: Rows) -> Iterator[Arrival]:
    """The forecast of one layer under a scheme that quantizes it, in every order."""
    base = rows.grid(scheme, rows.before)
    codes, rounded = base.codes(rows.before), base.fake(rows.before)
    for order in orders:
        arrived = forecast.of_rows(scheme, order, rows)
        stored = merge.stored(order, rows.before, rows.before + rows.change, rows.change, lambda: rounded)
        same_codes = (rows.grid(scheme, stored).codes(stored) == codes).float().mean()
        yield _arrival(scheme.name, order, arrived, float(same_codes))


def _arrival(scheme: str, order: Order, arrived: Arrived, same_codes: float) -> Arrival:
    total = forecast.Total(layers=[arrived])
    return Arrival(scheme=scheme, order=order, survival=total.survival, delta_snr=total.snr, same_codes=same_codes)


def _left_vectors(weight: torch.Tensor) -> torch.Tensor:
    """Left singular vectors [out, k] of a weight [out, n], the strongest first, k = min(out, n)."""
    wide = weight.shape[0] <= weight.shape[1]
    vectors = torch.linalg.eigh(weight @ weight.t() if wide else weight.t() @ weight).eigenvectors.flip(1)
    return vectors if wide else torch.nn.functional.normalize(weight @ vectors, dim=0)


def intruders(before: torch.Tensor, merged: torch.Tensor) -> int | None:
    """Intruder dimensions: the number of the ten strongest left singular vectors of W + D that are near none of W's.

    Both weights are [out, n]. Near is a cosine of at least .6 (arXiv 2410.21228). Many intruders mean that the adapter
    adds strong directions of its own instead of adjusting the base's, as an excessive alpha / rank does. None, which is
    not counted, where both sides are longer than 2048.
    """
    if min(before.shape) > _WIDEST:
        return None
    cosines = (_left_vectors(before).t() @ _left_vectors(merged)[:, :_TOP]).abs().amax(0)
    return int((cosines < _SAME).sum())
