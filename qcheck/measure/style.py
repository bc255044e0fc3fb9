"""How much of a style, and of a subject, quantized pictures keep, by features of them and of f0's and f1's.

The style of a picture are the mean and deviation of every channel at six depths of a network (Huang and Belongie 2017,
after the Gram matrices of Gatys et al. 2016): they know no places. A subject are the network's deepest features.
All three are relative: to what the adapter does at full precision, or to another prompt's picture.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from qcheck.device.arithmetic import pseudo_values
from qcheck.measure.registry import measures
from qcheck.measure.sample import BROKEN, Sample
from qcheck.spec.arm import Arm, Side

LEAST = 3  # pictures: without one of them there are still two to hold beside each other


@dataclass(frozen=True)
class Features:
    """Features of n pictures by stages of a network, the shallowest first.

    ``styles`` are the mean and deviation of every channel [n, 2 C] of a stage, ``places`` the channels at every place
    [n, C, h, w] of its last stages, and ``subject`` the last stage's means [n, C].
    """

    styles: tuple[np.ndarray, ...]
    places: tuple[np.ndarray, ...]
    subject: np.ndarray


@measures("style_survival", when="end")
@BROKEN
def style_survival(f0: Features, f1: Features, q1: Features) -> Sample:
    """S = sum <q1 - f0, f1 - f0> / sum |f1 - f0|^2 of style statistics, as pseudo-values [n]: 1 is intact, 0 erased.

    Sums run over pictures and stages, and every stage counts alike: its products are divided by its mean |f1 - f0|^2.
    NaN where f1's pictures are f0's.
    """
    kept, effects = _products(f0, f1, q1)
    values = pseudo_values(lambda rows: kept[rows].sum() / effects[rows].sum(), len(kept))
    return Sample("style_survival", "adapted", values)


@BROKEN
def each(f0: Features, f1: Features, q1: Features) -> np.ndarray:
    """The style survival [n] of each picture by itself: rough, for looking at the ones that keep least."""
    kept, effects = _products(f0, f1, q1)
    ratios: np.ndarray = kept / effects
    return ratios


@measures("style_effect", when="end")
@BROKEN
def style_effect(f0: Features, f1: Features) -> Sample:
    """|mean of f1 - f0|^2 / mean |f1 - f0|^2 of style statistics, as pseudo-values [n], every stage alike.

    What all pictures have in common of what the adapter does to their style: 1 is all of it, 0 none.
    """
    effects = [b - a for a, b in zip(f0.styles, f1.styles, strict=True)]

    def share(rows: np.ndarray) -> np.ndarray:
        common = [np.square(e[rows].mean(0)).sum() / np.square(e[rows]).sum(1).mean() for e in effects]
        return np.array(np.mean(common))

    return Sample("style_effect", "adapted", pseudo_values(share, len(effects[0])))


@measures("deep_distance", when="end")
@BROKEN
def deep_distance(arm: Arm, quantized: Features, full: Features) -> Sample:
    """Root mean square distance of pictures from their partners over that from other pictures' partners, [n].

    Of channels at every place of the last stages, as vectors of length 1 (Zhang et al. 2018), every stage alike. 0 is
    equal, and 1 as far as another prompt's picture.
    """
    stages = [_Distances.of(_flat(q), _flat(f)) for q, f in zip(quantized.places, full.places, strict=True)]

    def distance(rows: np.ndarray) -> np.ndarray:
        return np.asarray(np.sqrt(np.mean([stage.relative(rows) for stage in stages])))

    return Sample("deep_distance", arm, pseudo_values(distance, len(full.subject)))


@measures("subject_survival", when="end")
@BROKEN
def subject_survival(arm: Arm, quantized: Features, full: Features) -> Sample:
    """1 less the squared distance of pictures from their partners over that from other pictures' partners, [n].

    Of the deepest features, wherever they are in the picture. 1 is the same subject, 0 as far as another prompt's.
    """
    distances = _Distances.of(quantized.subject, full.subject)
    values = pseudo_values(lambda rows: 1 - distances.relative(rows), len(full.subject))
    return Sample("subject_survival", arm, values)


def samples(f0: Features, f1: Features, quantized: Mapping[Side, Features]) -> list[Sample]:
    """Every sample of the quantized arms that are there."""
    full: dict[Side, Features] = {"base": f0, "adapted": f1}
    whole = [style_survival(f0, f1, quantized["adapted"]), style_effect(f0, f1)]
    pairs = [(side, arm, full[side]) for side, arm in quantized.items()]
    return whole + [one for pair in pairs for one in (deep_distance(*pair), subject_survival(*pair))]


def _products(f0: Features, f1: Features, q1: Features) -> tuple[np.ndarray, np.ndarray]:
    """<q1 - f0, f1 - f0> and |f1 - f0|^2 [n] over all stages, each alike."""
    stages = [((c - a) * (b - a), np.square(b - a)) for a, b, c in zip(f0.styles, f1.styles, q1.styles, strict=True)]
    sums = np.array([[part.sum(1) for part in stage] for stage in stages])  # [stages, 2, n]
    alike: np.ndarray = (sums / sums[:, 1:].mean(-1, keepdims=True)).sum(0)
    return alike[0], alike[1]


def _flat(places: np.ndarray) -> np.ndarray:
    """Channels [n, C, h, w] as unit vectors, flat [n, C h w] float64."""
    values = places.astype(np.float64)
    units: np.ndarray = values / np.sqrt(np.square(values).sum(1, keepdims=True))
    return units.reshape(len(values), -1)


@dataclass(frozen=True)
class _Distances:
    """|q - f|^2 of partners [n], and the inner products [n, n] of the full-precision pictures' centred features.

    They add up to nothing, so that the sum of some is that of the others but for its sign: a jackknife takes n^2 steps.
    """

    partners: np.ndarray
    products: np.ndarray

    @staticmethod
    def of(quantized: np.ndarray, full: np.ndarray) -> "_Distances":
        centred = full - full.mean(0)
        return _Distances(np.square(quantized - full).sum(1), centred @ centred.T)

    def relative(self, rows: np.ndarray) -> np.ndarray:
        """Mean |q - f|^2 of partners over the mean |f - f'|^2 of different pictures, over at least two ``rows``."""
        count, out = len(rows), np.setdiff1d(np.arange(len(self.partners)), rows)
        squares, whole = self.products.diagonal()[rows].sum(), self.products[np.ix_(out, out)].sum()
        others = 2 * (squares - whole / count) / (count - 1)
        ratio: np.ndarray = self.partners[rows].mean() / others
        return ratio
