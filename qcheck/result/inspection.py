"""The forecast for an adapter from weights alone: the values that ``qcheck inspect`` prints."""

from qcheck.core.values import Number, Value
from qcheck.spec.order import Order


class Forecast(Value):
    """Expected survival of the adapter (1 intact, 0 erased) and its signal to noise in dB, over all its layers."""

    scheme: str
    order: Order
    survival: float
    snr: Number
    layers: int


class Arrival(Value):
    """The forecast for one layer: survival, delta_snr in dB, and the share of codes that merging left as they were.

    Nearly all codes the same is fatal to quantize-merge and usual for merge-quantize, where the few that change do so
    by a whole step and make up for the others.
    """

    scheme: str
    order: Order
    survival: float
    delta_snr: Number
    same_codes: float


class LayerReport(Value):
    """One layer: rank, alpha / rank, |D| / |W|, growth of the largest step in dB, hot input columns of D, intruders.

    ``arrivals`` are there for every order under every scheme that quantizes the layer. Intruders of very large weights
    are not counted.
    """

    name: str
    rank: int
    scale: float
    relative: float | None
    step_growth: float | None
    hot_columns: int | None
    intruders: int | None
    arrivals: list[Arrival]


class Inspection(Value):
    """What ``qcheck inspect`` prints."""

    adapter: str
    digest: str
    triggers: list[str]
    tags: dict[str, int]
    layers: list[LayerReport]
    unmatched: list[str]
    forecasts: list[Forecast]
