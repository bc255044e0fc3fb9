"""The curves of a report, computed from the traces of a case that has its verdict."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from qcheck.device.arithmetic import decibels
from qcheck.measure import distribution, effect, spectrum
from qcheck.measure.sample import BROKEN
from qcheck.result.evidence import Along, CaseEvidence, Histogram, Spread
from qcheck.sampling.store import Trace
from qcheck.spec.arm import Side

Traces = Mapping[Side, Trace]
ARMS: dict[Side, str] = {"base": "0", "adapted": "1"}
BINS, CHANNELS = 32, 4
_EXACT = 200.0  # dB: equal in every bit


@BROKEN
def spread(values: np.ndarray) -> Spread:
    """Mean, lowest and highest over the n probes of ``values`` [n, places]; not finite where a probe is not."""
    statistics = (values.mean(0), values.min(0), values.max(0))
    return Spread(**{name: x.tolist() for name, x in zip(("mean", "low", "high"), statistics, strict=True)})


@BROKEN
def gather(
    reference: Traces,
    quantized: Traces,
    energies: effect.Energies,
    sides: Sequence[Side],
    names: tuple[str, str],
) -> CaseEvidence:
    """The curves of one case over the arms ``sides`` that were quantized; ``names`` are its scheme and order."""
    gaps = {"base": (energies.f0, energies.error0), "adapted": (energies.f1, energies.error1)}
    has_base = "base" in sides
    return CaseEvidence(
        scheme=names[0],
        order=names[1],
        along=[
            Along(
                arm=side,
                sqnr=spread(np.minimum(decibels(*gaps[side]), _EXACT)),
                apart=spread(np.stack(list(quantized[side].apart()))) if side == "adapted" else None,
            )
            for side in sides
        ],
        survival=spread(energies.kept / energies.effect) if has_base else None,
        survivals=effect.survival(energies).tolist() if has_base else [],
        spectra=_spectra(reference, quantized, sides),
        histograms=_histograms(_finals(reference, quantized, sides), _drifting(reference, quantized)),
        pictures=[],
        arrivals=[],
    )


def _finals(reference: Traces, quantized: Traces, sides: Sequence[Side]) -> Mapping[str, Sequence[np.ndarray]]:
    """Final latents of the n probes, [C, h, w] each, by arm."""
    full = {f"f{number}": reference[side].finals() for side, number in ARMS.items()}
    return full | {f"q{ARMS[side]}": quantized[side].finals() for side in sides}


def _spectra(reference: Traces, quantized: Traces, sides: Sequence[Side]) -> dict[str, list[float]]:
    """Radial spectra, mean over probes in dB, of every arm's final latents and of their change by quantization."""
    arms = _finals(reference, quantized, sides)
    spectra = {name: _level(rows) for name, rows in arms.items()}
    for n in (ARMS[side] for side in sides):
        spectra[f"e{n}"] = _level(q - f for q, f in zip(arms[f"q{n}"], arms[f"f{n}"], strict=True))
    return spectra


def _level(latents: Iterable[np.ndarray]) -> list[float]:
    levels: list[float] = np.mean([spectrum.rings(latent) for latent in latents], 0).tolist()
    return levels


def frequencies(shape: tuple[int, int]) -> list[float]:
    """Cycles per pixel of the rings of ``spectrum.rings`` on latents of h x w."""
    side = min(shape)
    return [ring / side for ring in range(1, side // 2 + 1)]


def _drifting(reference: Traces, quantized: Traces) -> list[int]:
    """The channels whose final distribution quantization changed the most, sorted by index."""
    f, q = (np.array([row[-1] for row in arm["adapted"].scalars("moments")]) for arm in (reference, quantized))
    moved = np.nan_to_num(distribution.gaussian_kl(q, f), nan=np.inf)
    return sorted(int(channel) for channel in np.argsort(-moved, kind="stable")[:CHANNELS])


def _histograms(arms: Mapping[str, Sequence[np.ndarray]], channels: Sequence[int]) -> list[Histogram]:
    return [histogram(c, {name: [row[c] for row in rows] for name, rows in arms.items()}) for c in channels]


def histogram(channel: int, values: Mapping[str, Sequence[np.ndarray]]) -> Histogram:
    """Histograms of each arm's latents, n of [h, w], as shares of their number; f0 and f1 set the range."""
    full = np.stack([row for name, rows in values.items() if name.startswith("f") for row in rows])
    low, high = float(full.min()), float(full.max())
    high = high if high > low else low + 1

    def shares(rows: Sequence[np.ndarray]) -> list[float]:
        latents = np.stack(rows)
        counts, _ = np.histogram(np.clip(np.nan_to_num(latents, nan=low), low, high), BINS, (low, high))
        parts: list[float] = (counts / latents.size).tolist()
        return parts

    return Histogram(channel=channel, low=low, high=high, shares={name: shares(rows) for name, rows in values.items()})
