"""What a report shows beyond its numbers: gathered from the traces of a case that has its verdict, written small."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from qcheck.diagnose.sheet import AMPLIFY, Sheet, difference, eight_bits
from qcheck.measure import distribution, effect, spectrum
from qcheck.measure.sample import BROKEN, decibels
from qcheck.quantize import plan
from qcheck.quantize.artifact import Artifact
from qcheck.quantize.plan import Input
from qcheck.result.evidence import NAME, PICTURES, Along, Arrival, Evidence, Histogram, Pictures, Seen, Spread
from qcheck.sampling.store import Trace
from qcheck.spec.arm import Side
from qcheck.spec.order import Order
from qcheck.spec.scheme import Scheme
from qcheck.tasks.work import Work

Traces = Mapping[Side, Trace]
ARMS: dict[Side, str] = {"base": "0", "adapted": "1"}
BINS, CHANNELS = 32, 4
_EDGE, _LOSSLESS, _QUALITY = 256, 128, 88  # pixels of a stored picture; up to which it is exact; else WebP's quality
_EXACT = 200.0  # dB: equal in every bit


@BROKEN
def spread(values: np.ndarray) -> Spread:
    """Mean, lowest and highest over probes of [n, places]; a probe that broke breaks them."""
    found = (values.mean(0), values.min(0), values.max(0))
    return Spread(**{name: x.tolist() for name, x in zip(("mean", "low", "high"), found, strict=True)})


@BROKEN
def gather(
    reference: Traces,
    quantized: Traces,
    energies: effect.Energies,
    weights: np.ndarray,
    sides: Sequence[Side],
    named: tuple[str, str],
) -> Seen:
    """The curves of one case, ``named`` by scheme and order, over the arms ``sides`` that were quantized."""
    gaps = {"base": (energies.f0, energies.error0), "adapted": (energies.f1, energies.error1)}
    whole = "base" in sides
    return Seen(
        scheme=named[0],
        order=named[1],
        along=[
            Along(
                arm=side,
                sqnr=spread(np.minimum(decibels(*gaps[side]), _EXACT)),
                apart=spread(np.stack(list(quantized[side].way("apart")))) if side == "adapted" else None,
            )
            for side in sides
        ],
        survival=spread(energies.kept / energies.effect) if whole else None,
        survivals=effect.survival(energies, weights).tolist() if whole else [],
        spectra=_spectra(reference, quantized, sides),
        histograms=_histograms(_finals(reference, quantized, sides), _drifting(reference, quantized)),
        pictures=[],
        arrivals=[],
    )


def _finals(reference: Traces, quantized: Traces, sides: Sequence[Side]) -> Mapping[str, Sequence[np.ndarray]]:
    """Final latents, n of [C, h, w], by arm."""
    full = {f"f{number}": reference[side].finals() for side, number in ARMS.items()}
    return full | {f"q{ARMS[side]}": quantized[side].finals() for side in sides}


def _spectra(reference: Traces, quantized: Traces, sides: Sequence[Side]) -> dict[str, list[float]]:
    """Radial spectra, mean over probes in dB, of every arm's final latents and of what quantization changed in them."""
    arms = _finals(reference, quantized, sides)
    found = {name: _level(rows) for name, rows in arms.items()}
    for n in (ARMS[side] for side in sides):
        found[f"e{n}"] = _level(q - f for q, f in zip(arms[f"q{n}"], arms[f"f{n}"], strict=True))
    return found


def _level(latents: Iterable[np.ndarray]) -> list[float]:
    found: list[float] = np.mean([spectrum.rings(latent) for latent in latents], 0).tolist()
    return found


def frequencies(shape: tuple[int, int]) -> list[float]:
    """Cycles per pixel of the rings of ``spectrum.rings`` on latents of h x w."""
    side = min(shape)
    return [ring / side for ring in range(1, side // 2 + 1)]


def _drifting(reference: Traces, quantized: Traces) -> list[int]:
    """The channels whose final distribution quantization moved the most, in their order."""
    f, q = (np.array([row[-1] for row in arm["adapted"].way("moments")]) for arm in (reference, quantized))
    moved = np.nan_to_num(distribution.gaussian_kl(q, f), nan=np.inf)
    return sorted(int(channel) for channel in np.argsort(-moved, kind="stable")[:CHANNELS])


def _histograms(arms: Mapping[str, Sequence[np.ndarray]], channels: Sequence[int]) -> list[Histogram]:
    return [histogram(c, {name: [row[c] for row in rows] for name, rows in arms.items()}) for c in channels]


def histogram(channel: int, values: Mapping[str, Sequence[np.ndarray]]) -> Histogram:
    """Shares by value of each arm's latents, n of [h, w]; the full-precision arms, f0 and f1, set the ends."""
    full = np.stack([row for name, rows in values.items() if name.startswith("f") for row in rows])
    low, high = float(full.min()), float(full.max())
    high = high if high > low else low + 1

    def shares(rows: Sequence[np.ndarray]) -> list[float]:
        every = np.stack(rows)
        counted, _ = np.histogram(np.clip(np.nan_to_num(every, nan=low), low, high), BINS, (low, high))
        found: list[float] = (counted / every.size).tolist()
        return found

    return Histogram(channel=channel, low=low, high=high, shares={name: shares(rows) for name, rows in values.items()})


def arrivals(work: Work, scheme: Scheme, order: Order, made: Artifact) -> tuple[list[Arrival], str]:
    """What the codes hold of the adapter's change of every layer that is quantized; or nothing, and why."""
    if scheme.smoothing or not scheme.exported or scheme.control:
        return (
            [],
            f"{scheme.name} {_UNREAD['smoothed' if scheme.smoothing else 'cast' if scheme.control else 'loaded']}",
        )
    if order == "unmerged":
        return [], "unmerged: the adapter keeps its own factors in float, so all of it arrives"
    prefix = f"{work.arms.base.family.denoiser}."
    quantized = {layer.name for layer in made.manifest.layers}
    names = [name for name in work.arms.denoiser_layers() if name in quantized]
    both = {name: [work.arms.weights[side][prefix + name] for side in ARMS] for name in names}
    return [arrival(name, before, after, scheme, order) for name, (before, after) in both.items()], ""


_UNREAD = {
    "smoothed": "rescales weights by calibration data, so codes of base and adapted do not compare",
    "cast": "quantizes no weight",
    "loaded": "is quantized while PyTorch loads it",
}


def arrival(layer: str, before: torch.Tensor, after: torch.Tensor, scheme: Scheme, order: Order) -> Arrival:
    """The change D = after - before of a weight beside what its codes hold of it, q1 - q0.

    survival <q1 - q0, D> / |D|^2; snr 10 log10(|D|^2 / |q1 - q0 - D|^2). q1 is Q(after), or Q(q0 + D) where the adapter
    is merged into a quantized base.
    """
    wanted = (after - before).double()
    q0 = _fake(before, scheme)
    q1 = _fake(q0 + (after - before) if order == "quantize-merge" else after, scheme)
    found = q1.double() - q0.double()
    whole, kept, lost = ((a * b).sum().numpy() for a, b in ((wanted, wanted), (found, wanted), (found - wanted,) * 2))
    return Arrival(layer=layer, survival=float(kept / whole), snr=float(np.minimum(decibels(whole, lost), _EXACT)))


def _fake(weight: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    return plan.make_layer(weight, scheme, Input(1.0)).fake(weight)


def store(work: Work, found: Sequence[tuple[Seen | None, Sheet]], alignment: Mapping[str, float], folder: Path) -> None:
    """Write evidence.json, with the ``alignment`` of layers in dB, and pictures/ of the cases that have any."""
    (folder / PICTURES).mkdir()
    cases, prompts = [], []
    for number, (seen, sheet) in enumerate(found):
        if seen is not None:
            shown = [_draw(sheet, side, number, folder) for side in ARMS if any(a.arm == side for a in seen.along)]
            cases.append(seen.model_copy(update={"pictures": shown}))
            prompts = [*sheet.prompts]
    evidence = Evidence(
        strata=[index + 1 for index in work.setup.strata],
        frequencies=frequencies((work.shape[2], work.shape[3])),
        amplify=AMPLIFY,
        prompts=prompts,
        alignment=dict(alignment),
        cases=cases,
    )
    (folder / NAME).write_text(evidence.to_json(), "utf-8")


def _draw(sheet: Sheet, side: Side, number: int, folder: Path) -> Pictures:
    rows = range(len(sheet.prompts))
    full, quantized, arm = sheet.reference[side], sheet.quantized[side], ARMS[side]
    return Pictures(
        arm=side,
        reference=[_picture(full[i], folder, f"f{arm}-{i + 1}") for i in rows],
        quantized=[_picture(quantized[i], folder, f"q{arm}-{i + 1}-case{number + 1}") for i in rows],
        difference=[
            _picture(difference(full[i], quantized[i]), folder, f"e{arm}-{i + 1}-case{number + 1}") for i in rows
        ],
    )


def _picture(values: np.ndarray, folder: Path, name: str) -> str:
    """Write a picture [H, W, 3], made smaller where it is large; its name relative to ``folder``."""
    image = Image.fromarray(eight_bits(values))
    image.thumbnail((_EDGE, _EDGE), Image.Resampling.LANCZOS)
    where = f"{PICTURES}/{name}.webp"
    image.save(folder / where, lossless=max(image.size) <= _LOSSLESS, quality=_QUALITY, method=6)
    return where
