"""What is known of an adapter from weights alone: the values that ``qcheck inspect`` prints."""

from typing import Literal

from qcheck.core.values import Number, Value
from qcheck.spec.fate import Fate
from qcheck.spec.order import Order


class Forecast(Value):
    """The fate of an adapter under one scheme in one order: a word, the reason in a sentence, and the numbers.

    ``survival`` is the expected share of its change of the denoiser's weights that arrives (1 intact, 0 erased), over
    all of its layers, and ``error`` its standard error against reading every weight; ``snr`` in dB is that change over
    the noise that rounding adds to it; ``layers`` are those that the scheme quantizes.
    """

    scheme: str
    order: Order
    fate: Fate
    reason: str
    survival: Number
    error: Number
    snr: Number
    layers: int


class Arrival(Value):
    """The forecast for one layer: survival, delta_snr in dB, and the share of codes that merging left as they were.

    Nearly all codes the same is fatal to quantize-merge and usual for merge-quantize, where the few that change do so
    by a whole step and make up for the others.
    """

    scheme: str
    order: Order
    survival: Number
    delta_snr: Number
    same_codes: Number


class Details(Value):
    """What needs a layer's whole weight: growth of the largest step in dB, hot input columns of D, intruders, arrivals.

    ``arrivals`` are there for every order under every scheme that quantizes the layer. Intruders of very large weights
    are not counted.
    """

    step_growth: Number
    hot_columns: int
    intruders: int | None
    arrivals: list[Arrival]


class LayerReport(Value):
    """One layer: rank, alpha / rank, whether its factors are zero (idle), and |D| / |W|."""

    name: str
    rank: int
    scale: float
    idle: bool
    relative: Number | None = None
    details: Details | None = None


class Inspection(Value):
    """What ``qcheck inspect`` prints of one file; ``silent`` says why it does nothing under any scheme, if it does.

    ``shifted`` are the biases and parameters of norms that it changes, which nothing quantizes.
    """

    adapter: str
    digest: str
    weight: float
    triggers: list[str]
    tags: dict[str, int]
    layers: list[LayerReport]
    shifted: list[str]
    unmatched: list[str]
    silent: str | None
    forecasts: list[Forecast]


class Refusal(Value):
    """A file of several that cannot be inspected: what is wrong with it, and how to fix it."""

    adapter: str
    error: str
    fix: str


Answer = Literal[0, 1]


def answer(inspection: Inspection, by_scheme: bool, by_order: bool) -> Answer:
    """The exit code: 0 where the adapter arrives, in all schemes and orders that were named and in one of the others.

    Args:
        inspection: Of one adapter.
        by_scheme: The schemes were named: it has to arrive under each.
        by_order: The orders were named: it has to arrive in each.
    """
    if inspection.silent is not None:
        return 1
    arrives: dict[tuple[str, str], bool] = {}
    for forecast in inspection.forecasts:
        key = (forecast.scheme if by_scheme else "", forecast.order if by_order else "")
        arrives[key] = arrives.get(key, False) or forecast.fate == "arrives"
    return 0 if all(arrives.values()) else 1
