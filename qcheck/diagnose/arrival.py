"""The share of an adapter's change of the weights that is left in the codes of its artifact."""

import numpy as np
import torch

from qcheck.device.arithmetic import decibels
from qcheck.model.arms import Arms
from qcheck.quantize import merge, plan
from qcheck.quantize.artifact import Artifact
from qcheck.quantize.plan import Input
from qcheck.result.evidence import Arrival
from qcheck.spec import order as orders
from qcheck.spec.order import Order
from qcheck.spec.scheme import Scheme


def arrivals(arms: Arms, scheme: Scheme, order: Order, artifact: Artifact) -> tuple[list[Arrival], str]:
    """The share of the adapter's change in the codes of every quantized layer; else an empty list and the reason."""
    if scheme.smoothing or not scheme.exported or scheme.control:
        return (
            [],
            f"{scheme.name} {_UNREAD['smoothed' if scheme.smoothing else 'cast' if scheme.control else 'loaded']}",
        )
    if orders.merge(order).keeps_factors:
        return [], f"{order}: the adapter keeps its own factors in float, so all of it arrives"
    quantized = {layer.name for layer in artifact.manifest.layers}
    names = [name for name in arms.active_layers() if name in quantized]
    before, after = arms.state("base"), arms.state("adapted")
    return [arrival(name, before[f"{name}.weight"], after[f"{name}.weight"], scheme, order) for name in names], ""


_EXACT = 200.0  # dB: equal in every bit
_UNREAD = {
    "smoothed": "rescales weights by calibration data, so codes of base and adapted do not compare",
    "cast": "quantizes no weight",
    "loaded": "is quantized while PyTorch loads it",
}


def arrival(layer: str, before: torch.Tensor, after: torch.Tensor, scheme: Scheme, order: Order) -> Arrival:
    """The change D = after - before of a weight, compared with its change in the codes, q1 - q0.

    survival <q1 - q0, D> / |D|^2; snr 10 log10(|D|^2 / |q1 - q0 - D|^2). q1 is quantized from the weight that the order
    stores (``merge.stored``).
    """
    change = (after - before).double()
    q0 = _fake(before, scheme)
    q1 = _fake(merge.stored(order, before, after, after - before, lambda: q0), scheme)
    stored_change = q1.double() - q0.double()
    energy, product, error = (
        (a * b).sum().numpy() for a, b in ((change, change), (stored_change, change), (stored_change - change,) * 2)
    )
    return Arrival(
        layer=layer, survival=float(product / energy), snr=float(np.minimum(decibels(energy, error), _EXACT))
    )


def _fake(weight: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    return plan.make_layer(weight, scheme, Input(1.0)).fake(weight)
