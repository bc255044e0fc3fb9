"""How much of the change that an adapter makes to a weight arrives in the codes of its artifact."""

import numpy as np
import torch

from qcheck.measure.sample import decibels
from qcheck.model.arms import Arms
from qcheck.quantize import merge, plan
from qcheck.quantize.artifact import Artifact
from qcheck.quantize.plan import Input
from qcheck.result.evidence import Arrival
from qcheck.spec import order as orders
from qcheck.spec.order import Order
from qcheck.spec.scheme import Scheme


def arrivals(arms: Arms, scheme: Scheme, order: Order, made: Artifact) -> tuple[list[Arrival], str]:
    """What the codes hold of the adapter's change of every layer that is quantized; or nothing, and why."""
    if scheme.smoothing or not scheme.exported or scheme.control:
        return (
            [],
            f"{scheme.name} {_UNREAD['smoothed' if scheme.smoothing else 'cast' if scheme.control else 'loaded']}",
        )
    if orders.merge(order).merged == "beside":
        return [], f"{order}: the adapter keeps its own factors in float, so all of it arrives"
    quantized = {layer.name for layer in made.manifest.layers}
    names = [name for name in arms.denoiser_layers() if name in quantized]
    before, after = arms.state("base"), arms.state("adapted")
    pairs = {name: (before[f"{name}.weight"], after[f"{name}.weight"]) for name in names}
    return [arrival(name, *pair, scheme, order) for name, pair in pairs.items()], ""


_EXACT = 200.0  # dB: equal in every bit
_UNREAD = {
    "smoothed": "rescales weights by calibration data, so codes of base and adapted do not compare",
    "cast": "quantizes no weight",
    "loaded": "is quantized while PyTorch loads it",
}


def arrival(layer: str, before: torch.Tensor, after: torch.Tensor, scheme: Scheme, order: Order) -> Arrival:
    """The change D = after - before of a weight beside what its codes hold of it, q1 - q0.

    survival <q1 - q0, D> / |D|^2; snr 10 log10(|D|^2 / |q1 - q0 - D|^2), where q1 is the codes of what the order stores
    (``merge.stored``).
    """
    wanted = (after - before).double()
    q0 = _fake(before, scheme)
    q1 = _fake(merge.stored(order, before, after, after - before, q0), scheme)
    found = q1.double() - q0.double()
    whole, kept, lost = ((a * b).sum().numpy() for a, b in ((wanted, wanted), (found, wanted), (found - wanted,) * 2))
    return Arrival(layer=layer, survival=float(kept / whole), snr=float(np.minimum(decibels(whole, lost), _EXACT)))


def _fake(weight: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    return plan.make_layer(weight, scheme, Input(1.0)).fake(weight)
