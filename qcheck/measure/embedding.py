"""How much of what an adapter does to pictures is left, in the embeddings of a network of the user's own."""

import numpy as np

from qcheck.device.arithmetic import pseudo_values
from qcheck.measure.registry import measures
from qcheck.measure.sample import BROKEN, Sample


@measures("clip_survival", when="end")
@measures("dinov2_survival", when="end")
@BROKEN
def survival(name: str, f0: np.ndarray, f1: np.ndarray, q1: np.ndarray) -> Sample:
    """S = sum <q1 - f0, f1 - f0> / sum |f1 - f0|^2 of embeddings [n, D], as pseudo-values [n]: 1 is intact, 0 erased.

    NaN where f1's pictures are f0's.
    """
    kept, effects = ((q1 - f0) * (f1 - f0)).sum(1), np.square(f1 - f0).sum(1)
    return Sample(name, "adapted", pseudo_values(lambda rows: kept[rows].sum() / effects[rows].sum(), len(kept)))
