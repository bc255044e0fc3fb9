"""Patterns on a fixed grid in the final latents: checkerboards, patch borders, aliasing of up- and downsampling.

The lattice of a pattern of period p are the frequencies (i / p, j / p), not both 0. A period that divides the side
falls on exact bins and does not leak, so no window is used; sides are cut to a multiple of the periods.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from qcheck.device.arithmetic import decibels
from qcheck.measure.registry import View, measures
from qcheck.measure.sample import BROKEN, Sample
from qcheck.spec.arm import Arm

PERIODS = (2, 4)  # latent pixels: a transformer's patch, and two stages of resampling


@dataclass(frozen=True)
class Grid:
    """The lattice of each probe: ``change`` and log power ratio at its bins, and the latent's variance.

    ``change`` [n, C, K] complex is FFT(x_q - x_f) / (h w); ``ratio`` [n, C, K] is ln(P_q / P_f); ``variance`` [n, C] of
    x_f; ``bins`` [K, 2] are frequencies in cycles per pixel. ``full`` and ``quantized`` [n] are the lattice's shares of
    each latent's power, dB.
    """

    change: np.ndarray
    ratio: np.ndarray
    variance: np.ndarray
    bins: np.ndarray
    full: np.ndarray
    quantized: np.ndarray


def _cut(latent: np.ndarray) -> np.ndarray:
    """A latent [C, h, w] without the last rows and columns that are no whole period; a fixed grid keeps its place."""
    height, width = (side - side % max(PERIODS) for side in latent.shape[-2:])
    return np.asarray(latent, np.float64)[:, :height, :width]


def bins(height: int, width: int) -> np.ndarray:
    """Frequencies [K, 2] of all periods that divide both sides, in cycles per pixel."""
    pairs = {(i / p, j / p) for p in PERIODS if height % p == 0 and width % p == 0 for i in range(p) for j in range(p)}
    return np.array(sorted(pairs - {(0.0, 0.0)})).reshape(-1, 2)


@BROKEN
def read(quantized: Iterable[np.ndarray], full: Iterable[np.ndarray]) -> Grid:
    """Reduce final latents, n of [C, h, w], to the lattice's bins."""
    change, ratio, variance, shares = [], [], [], []
    for q, f in zip(quantized, full, strict=True):
        x_q, x_f = (_cut(x) for x in (q, f))
        height, width = x_f.shape[-2:]
        frequencies = bins(height, width)
        rows, columns = np.rint(frequencies * (height, width)).astype(int).T
        a, b = (np.fft.fft2(x)[:, rows, columns] / (height * width) for x in (x_q, x_f))
        change.append(a - b)
        ratio.append(2 * np.log(np.abs(a) / np.abs(b)))
        variance.append(x_f.var((1, 2)))
        shares.append([np.square(np.abs(c)).sum() / x.var((1, 2)).sum() for c, x in ((b, x_f), (a, x_q))])
    levels = decibels(np.array(shares).T, np.ones(1))
    return Grid(np.array(change), np.array(ratio), np.array(variance), frequencies, levels[0], levels[1])


@BROKEN
def amplitude(grid: Grid) -> np.ndarray:
    """Each probe's amplitude of the pattern that the other probes share, [n, C], in standard deviations of the channel.

    The mean over probes of the change at the bins is the shared pattern; by Parseval its norm is the pattern's root
    mean square over the pixels, so a checkerboard of amplitude a is read as a. Each probe is projected on the
    direction of the others' mean: errors without a shared pattern average to 0 instead of to their own size.
    """
    count = len(grid.change)
    others = (grid.change.sum(0) - grid.change) / (count - 1)
    norm = np.linalg.norm(others, axis=-1, keepdims=True)
    direction = np.divide(others, norm, out=np.zeros_like(others), where=norm != 0)
    projected = (grid.change * direction.conj()).sum(-1).real
    amplitudes: np.ndarray = projected / np.sqrt(grid.variance.mean(0))
    return amplitudes


@BROKEN
def energy(grid: Grid) -> np.ndarray:
    """Log power ratio at every bin, mean over channels, [n, K], dB: it also detects a grid whose phase varies by probe.

    The log ratio of two independent spectra spreads by pi in bins that are their own conjugate (both frequencies 0 or
    1/2: the checkerboard's) and by pi / sqrt 3 in all others. The former are divided by sqrt 3, so that the worst
    bin is not one of them by chance.
    """
    self_conjugate = ((2 * grid.bins) % 1 == 0).all(1)
    levels: np.ndarray = 10 / np.log(10) * grid.ratio.mean(1) / np.where(self_conjugate, np.sqrt(3), 1)
    return levels


def grids(view: View) -> tuple[Grid, Grid]:
    """The lattice's bins of the base and of the adapted arm."""
    return read(view.q0.finals, view.f0.finals), read(view.q1.finals, view.f1.finals)


@measures("lattice_amplitude")
@BROKEN
def lattice_amplitude(view: View) -> list[Sample]:
    """The shared pattern of both arms, and the adapted arm's less the base's; the worst channel counts."""
    base, adapted = (amplitude(grid) for grid in view.once(grids))
    places = tuple(f"channel {c}" for c in range(base.shape[1]))
    arms: tuple[tuple[Arm, np.ndarray], ...] = (("base", base), ("adapted", adapted), ("both", adapted - base))
    return [Sample("lattice_amplitude", arm, values, places, "highest") for arm, values in arms]


@measures("lattice_energy")
def lattice_energy(view: View) -> list[Sample]:
    """Log power ratio at every bin; the worst bin counts."""
    base, adapted = view.once(grids)
    waves = tuple(f"{i:g}, {j:g} cycles/px" for i, j in base.bins)
    return [
        Sample("lattice_energy", "base", energy(base), waves, "highest"),
        Sample("lattice_energy", "adapted", energy(adapted), waves, "highest"),
    ]


@measures("hidden_lattice")
@BROKEN
def hidden_lattice(view: View) -> list[Sample]:
    """The rise of the lattice's share of power by the adapter at full precision that is lost after quantization.

    The smaller of the rise and the loss: positive only where f1 has a grid that q1 lacks.
    """
    base, adapted = view.once(grids)
    added, remaining = adapted.full - base.full, adapted.quantized - base.quantized
    return [Sample("hidden_lattice", "both", np.minimum(added, added - remaining))]
