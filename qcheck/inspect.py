"""An adapter without inference: what it is, what it does to the base's weights, and which order would lose it.

Weights are streamed, one layer at a time. With D the adapter's change of a weight and s the quantizer's step there:

- merge-quantize, Q(W + D): W is as good as dither, so D arrives whole on average (survival 1) with noise of variance
  f (1 - f) s^2 a weight, f the fraction of |d| / s.
- quantize-merge, Q(Q(W) + D): W sits on the grid already, so d becomes s round(d / s): below half a step it is gone.
  The same holds for merge-quantize where the base was stored in the scheme's own format, as 16-bit bases are.
- unmerged: D arrives as it is.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from safetensors import safe_open

from qcheck.errors import UserError
from qcheck.files import Number, Value
from qcheck.job import Use
from qcheck.model import base as bases
from qcheck.model import lora
from qcheck.progress import Progress, Silent
from qcheck.quantize import plan
from qcheck.recipe import Recipe
from qcheck.scheme import MERGES, Order, Scheme

_WORDS = 20
_TOP, _SAME = 10, 0.6  # arXiv 2410.21228: directions looked at, and the cosine below which one is new
_HOT = 5.0  # a column of D this many times as long as the median column


class Forecast(Value):
    """Expected survival of the adapter (1 intact, 0 erased) and its signal to noise in dB, over all its layers."""

    scheme: str
    order: Order
    survival: float
    snr: Number
    layers: int


class LayerReport(Value):
    """One layer: rank, alpha / rank, |D| / |W|, growth of the largest step in dB, hot input columns of D, intruders."""

    name: str
    rank: int
    scale: float
    relative: float | None
    step_growth: float | None
    hot_columns: int | None
    intruders: int | None


class Inspection(Value):
    """What ``qcheck inspect`` prints."""

    adapter: str
    digest: str
    triggers: list[str]
    tags: dict[str, int]
    layers: list[LayerReport]
    unmatched: list[str]
    forecasts: list[Forecast]


@dataclass
class _Sums:
    """Running inner products of one forecast: <arrived, D>, |D|^2 and noise energy."""

    kept: float = 0.0
    whole: float = 0.0
    noise: float = 0.0
    layers: int = 0


def arrival(change: torch.Tensor, step: torch.Tensor, order: Order) -> tuple[float, float]:
    """Expected <arrived, D> and noise energy of a change of weights, of any shape, with the step at each."""
    step = step.clamp(min=1e-30)  # where nothing rounds, or all is zero
    ratio = change / step
    if order == "unmerged":
        return float(change.square().sum()), 0.0
    if order == "quantize-merge":
        arrived = torch.round(ratio) * step
        return float((arrived * change).sum()), float((arrived - change).square().sum())
    fraction = ratio.abs() % 1
    return float(change.square().sum()), float((fraction * (1 - fraction) * step.square()).sum())


def scale_of(alphas: dict[str, float], metadata: dict[str, str], module: str, rank: int) -> float:
    """Alpha / rank of a layer: from the file's alpha key, else from PEFT's metadata, else 1 as loaders assume."""
    if f"{module}.alpha" in alphas:
        return alphas[f"{module}.alpha"] / rank
    try:
        stored = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError as error:
        raise UserError(f"the adapter's metadata is not JSON: {error}", "Export the adapter again.") from error
    component = module.split(".", maxsplit=1)[0]
    layer = module.removeprefix(f"{component}.")
    alpha = stored.get(f"{component}.alpha_pattern", {}).get(layer, stored.get(f"{component}.lora_alpha"))
    if alpha is None:
        return 1.0
    return float(alpha) / (math.sqrt(rank) if stored.get(f"{component}.use_rslora") else rank)


Changes = Iterator[tuple[str, torch.Tensor]]


def _watched(changes: Changes, total: int, progress: Progress) -> Changes:
    with progress.stage("layers", total) as advance:
        for change in changes:
            yield change
            advance(1)


def _weights(folder: Path) -> dict[str, Path]:
    """Which file below ``folder`` holds which tensor."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as stream:
            found.update(dict.fromkeys(stream.keys(), path))
    return found


def _changes(factors: lora.Factors, scale: dict[str, float], weight: float) -> Changes:
    for name, pair in factors.items():
        if set(pair) != {"A", "B"}:
            raise UserError(f"adapter layer {name} has only factor {''.join(pair)}", "Export the adapter again.")
        up, down = pair["B"].float().flatten(1), pair["A"].float()
        yield name, weight * scale[name] * (up @ down.flatten(1)).view(len(up), *down.shape[1:])


def _left(weight: torch.Tensor) -> torch.Tensor:
    """Left singular vectors [out, k] of a weight [out, n], the strongest first, k = min(out, n)."""
    wide = weight.shape[0] <= weight.shape[1]
    vectors = torch.linalg.eigh(weight @ weight.t() if wide else weight.t() @ weight).eigenvectors.flip(1)
    return vectors if wide else torch.nn.functional.normalize(weight @ vectors, dim=0)


def intruders(before: torch.Tensor, merged: torch.Tensor) -> int:
    """Intruder dimensions: how many of the ten strongest left singular vectors of W + D are near none of W's.

    Both weights are [out, n]. Near is a cosine of at least .6 (arXiv 2410.21228). Many mean that the adapter does not
    adjust what the base does but adds strong directions of its own, as a wild alpha / rank does.
    """
    cosines = (_left(before).t() @ _left(merged)[:, :_TOP]).abs().amax(0)
    return int((cosines < _SAME).sum())


def inspect(
    source: str,
    base: str | None,
    weight: float,
    chosen: list[Scheme],
    recipe: Recipe,
    progress: Progress | None = None,
) -> Inspection:
    """Look at the adapter ``source``, against the weights of ``base`` where one is given.

    Raises:
        UserError: an adapter that cannot be read, or a base without a denoiser in safetensors.
    """
    adapter = lora.read(Use(source, weight))
    lora.require_plain(adapter)
    factors, alphas = lora.factors_of(StableDiffusionLoraLoaderMixin, adapter)
    scale = {n: scale_of(alphas, adapter.metadata, n, pair["A"].shape[0]) for n, pair in factors.items()}
    stored = {} if base is None else _denoiser_weights(base)
    sums: dict[tuple[str, Order], _Sums] = {(s.name, order): _Sums() for s in chosen for order in MERGES}
    layers, unmatched = [], []
    for name, change in _watched(_changes(factors, scale, weight), len(factors), progress or Silent()):
        layer = name.removeprefix("unet.")
        path = stored.get(f"{layer}.weight")
        if path is None:
            if name.startswith("unet."):
                unmatched.append(name)
            layers.append(_bare(name, factors[name], scale[name]))
            continue
        with safe_open(path, "pt") as stream:
            before = stream.get_tensor(f"{layer}.weight").float()
        lora.require_shape(name, before, factors[name])
        layers.append(_layer(name, factors[name], scale[name], before, change.view(before.shape)))
        for found in chosen:
            if plan.quantizes(layer, before, found, recipe):
                _add(sums, found, before, change.view(before.shape))
    if base is not None and len(unmatched) == len(layers):
        raise UserError(
            f"no layer of adapter {source!r} is in base {base!r}, first {unmatched[0]}",
            "Give the base it was trained on.",
        )
    return Inspection(
        adapter=source,
        digest=adapter.digest,
        triggers=lora.trigger_words(adapter)[:_WORDS],
        tags=dict(list(lora.tag_counts(adapter).items())[:_WORDS]),
        layers=layers,
        unmatched=unmatched if base is not None else [],
        forecasts=[_forecast(key, total) for key, total in sums.items() if total.layers],
    )


def _denoiser_weights(base: str) -> dict[str, Path]:
    found = _weights(bases.locate(base) / "unet")
    if not found:
        raise UserError(
            f"base {base!r} has no unet in safetensors", "Give a pipeline with a UNet saved as safetensors."
        )
    return found


def _bare(name: str, pair: dict[str, torch.Tensor], scale: float) -> LayerReport:
    rank = pair["A"].shape[0]
    return LayerReport(
        name=name, rank=rank, scale=scale, relative=None, step_growth=None, hot_columns=None, intruders=None
    )


def _layer(
    name: str, pair: dict[str, torch.Tensor], scale: float, before: torch.Tensor, change: torch.Tensor
) -> LayerReport:
    columns = change.flatten(1).norm(dim=0)
    rows = (before.flatten(1).abs().amax(1), (before + change).flatten(1).abs().amax(1))
    return LayerReport(
        name=name,
        rank=pair["A"].shape[0],
        scale=scale,
        relative=float(change.norm() / before.norm()),
        step_growth=float((20 * torch.log10(rows[1] / rows[0].clamp(min=1e-30))).max()),
        hot_columns=int((columns > _HOT * columns.median()).sum()),
        intruders=intruders(before.flatten(1), (before + change).flatten(1)),
    )


def _grid(weight: torch.Tensor, found: Scheme) -> plan.Grid:
    return plan.make_layer(weight, found, plan.Input(1.0)).weight


def _add(sums: dict[tuple[str, Order], _Sums], found: Scheme, before: torch.Tensor, change: torch.Tensor) -> None:
    for order in MERGES:
        on_grid = order == "merge-quantize" and torch.equal(_grid(before, found).fake(before), before)
        met: Order = "quantize-merge" if on_grid else order
        merged = before + change if order == "merge-quantize" else before
        kept, noise = arrival(change, _grid(merged, found).spacing(merged), met)
        total = sums[found.name, order]
        total.kept += kept
        total.noise += noise
        total.whole += float(change.square().sum())
        total.layers += 1


def _forecast(key: tuple[str, Order], total: _Sums) -> Forecast:
    whole = torch.tensor(total.whole, dtype=torch.float64)
    snr = float(10 * torch.log10(whole / total.noise)) if total.noise else float("inf")
    return Forecast(
        scheme=key[0], order=key[1], survival=total.kept / max(total.whole, 1e-300), snr=snr, layers=total.layers
    )
