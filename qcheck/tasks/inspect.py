"""An adapter inspected without inference: its contents, its change of the base's weights, and the order that loses it.

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
from safetensors import safe_open

from qcheck.core.errors import UserError
from qcheck.core.progress import Progress, Silent
from qcheck.model import load as bases
from qcheck.model import lora
from qcheck.model.lora.layout import Factors, Names
from qcheck.quantize import merge, plan
from qcheck.result.inspection import Arrival, Forecast, Inspection, LayerReport
from qcheck.spec import order as orders
from qcheck.spec.order import MERGES, Merged, Order
from qcheck.spec.recipe import Recipe
from qcheck.spec.scheme import Scheme
from qcheck.spec.use import Use

_WORDS = 20
_TOP, _SAME = 10, 0.6  # arXiv 2410.21228: directions compared, and the cosine below which one is new
_WIDEST = 2048  # of a weight's smaller side: beyond, the two decompositions for intruders take seconds a layer
_READ = 2**20  # weights of a layer that a forecast reads: its sums over weights are those of many alike
_HOT = 5.0  # a column of D this many times as long as the median column


@dataclass(frozen=True)
class _LayerForecast:
    """Forecast of one layer in one order: <arrived, D>, |D|^2, the noise energy, and the share of unchanged codes."""

    order: Order
    projection: float
    energy: float
    noise: float
    same_codes: float

    @property
    def survival(self) -> float:
        """The share of D that arrives; 1 where there is no D."""
        return self.projection / self.energy if self.energy else 1.0


@dataclass
class _Sums:
    """Running inner products of one forecast: <arrived, D>, |D|^2 and noise energy."""

    projection: float = 0.0
    energy: float = 0.0
    noise: float = 0.0
    layers: int = 0


def arrival(change: torch.Tensor, step: torch.Tensor, merged: Merged) -> tuple[float, float]:
    """Expected <arrived, D> and noise energy of a change of weights; ``step`` is the quantizer's, at each weight."""
    step = step.clamp(min=1e-30)  # the step is 0 where nothing is rounded, or where all weights are 0
    ratio = change / step
    if merged == "beside":
        return float(change.square().sum()), 0.0
    if merged == "after":
        rounded = torch.round(ratio) * step
        return float((rounded * change).sum()), float((rounded - change).square().sum())
    fraction = ratio.abs() % 1
    return float(change.square().sum()), float((fraction * (1 - fraction) * step.square()).sum())


def _with_progress(factors: dict[str, Factors], progress: Progress) -> Iterator[tuple[str, Factors]]:
    with progress.stage("layers", len(factors)) as advance:
        for item in factors.items():
            yield item
            advance(1)


def _weights(folder: Path) -> dict[str, Path]:
    """The file of every tensor below ``folder``, by its name."""
    paths = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as stream:
            paths.update(dict.fromkeys(stream.keys(), path))
    return paths


def _left_vectors(weight: torch.Tensor) -> torch.Tensor:
    """Left singular vectors [out, k] of a weight [out, n], the strongest first, k = min(out, n)."""
    wide = weight.shape[0] <= weight.shape[1]
    vectors = torch.linalg.eigh(weight @ weight.t() if wide else weight.t() @ weight).eigenvectors.flip(1)
    return vectors if wide else torch.nn.functional.normalize(weight @ vectors, dim=0)


def intruders(before: torch.Tensor, merged: torch.Tensor) -> int | None:
    """Intruder dimensions: the number of the ten strongest left singular vectors of W + D that are near none of W's.

    Both weights are [out, n]. Near is a cosine of at least .6 (arXiv 2410.21228). Many intruders mean that the adapter
    adds strong directions of its own instead of adjusting the base's, as an excessive alpha / rank does. None, which is
    not counted, where both sides are longer than 2048.
    """
    if min(before.shape) > _WIDEST:
        return None
    cosines = (_left_vectors(before).t() @ _left_vectors(merged)[:, :_TOP]).abs().amax(0)
    return int((cosines < _SAME).sum())


def inspect(
    source: str,
    base: str | None,
    weight: float,
    schemes: list[Scheme],
    recipe: Recipe,
    progress: Progress | None = None,
) -> Inspection:
    """Inspect the adapter ``source``, and its change of the weights of ``base`` where there is one.

    Raises:
        UserError: an adapter that cannot be read, or a base without a denoiser in safetensors.
    """
    adapter = lora.read(Use(source=source, weight=weight))
    lora.require_plain(adapter)
    names, stored = (Names(), {}) if base is None else stored_layers(base)
    factors = lora.factors_of(names, adapter)
    sums: dict[tuple[str, Order], _Sums] = {(s.name, order): _Sums() for s in schemes for order in MERGES}
    layers, unmatched = [], []
    for name, factor in _with_progress(factors, progress or Silent()):
        layer = name.removeprefix(f"{names.denoiser}.")
        path = stored.get(f"{layer}.weight")
        if path is None:
            if not name.startswith("text_encoder"):
                unmatched.append(name)
            layers.append(_unmatched_layer(name, factor))
            continue
        with safe_open(path, "pt") as stream:
            before = stream.get_tensor(f"{layer}.weight").float()
        lora.require_shape(name, before, factor)
        change = weight * factor.change().view(before.shape)
        some = _some_outputs(before)
        share = before[some].numel() / before.numel()
        quantizing = [scheme for scheme in schemes if plan.quantizes(layer, before[some], scheme, recipe)]
        forecasts = [(s.name, forecast) for s in quantizing for forecast in arrivals(s, before[some], change[some])]
        for key, forecast in forecasts:
            _add(sums[key, forecast.order], forecast, share)
        layers.append(_layer(name, factor, before, change, [_as_arrival(key, forecast) for key, forecast in forecasts]))
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


def stored_layers(base: str) -> tuple[Names, dict[str, Path]]:
    """The base's layer names, and the file of every tensor of its denoiser."""
    folder = bases.locate(base)
    denoiser = next((name for name in lora.DENOISERS if (folder / name).is_dir()), lora.DENOISERS[0])
    paths = _weights(folder / denoiser)
    if not paths:
        raise UserError(
            f"base {base!r} has no denoiser in safetensors",
            f"Give a pipeline with a {' or a '.join(lora.DENOISERS)} saved as safetensors.",
        )
    parts = [denoiser, *sorted(path.name for path in folder.glob("text_encoder*"))]
    keys = [f"{part}.{key}" for part in parts for key in _weights(folder / part)]
    layers = frozenset(key.removesuffix(".weight") for key in keys if key.endswith(".weight"))
    config = json.loads((folder / denoiser / "config.json").read_text("utf-8"))
    return Names(denoiser, layers, lora.layers_per_block(config)), paths


def _unmatched_layer(name: str, factors: Factors) -> LayerReport:
    return LayerReport(
        name=name,
        rank=len(factors.down),
        scale=factors.scale,
        relative=None,
        step_growth=None,
        hot_columns=None,
        intruders=None,
        arrivals=[],
    )


def _layer(
    name: str, factors: Factors, before: torch.Tensor, change: torch.Tensor, arrivals: list[Arrival]
) -> LayerReport:
    columns = change.flatten(1).norm(dim=0)
    rows = (before.flatten(1).abs().amax(1), (before + change).flatten(1).abs().amax(1))
    return LayerReport(
        name=name,
        rank=len(factors.down),
        scale=factors.scale,
        relative=float(change.norm() / before.norm()),
        step_growth=float((20 * torch.log10(rows[1] / rows[0].clamp(min=1e-30))).max()),
        hot_columns=int((columns > _HOT * columns.median()).sum()),
        intruders=intruders(before.flatten(1), (before + change).flatten(1)),
        arrivals=arrivals,
    )


def _grid(weight: torch.Tensor, scheme: Scheme) -> plan.Grid:
    return plan.make_layer(weight, scheme, plan.Input(1.0)).weight


def arrivals(scheme: Scheme, before: torch.Tensor, change: torch.Tensor) -> Iterator[_LayerForecast]:
    """The forecast of one layer in every order, of a weight [out, in, ...] and its change."""
    base = _grid(before, scheme)
    codes, rounded = base.codes(before), base.fake(before)
    adapted = before + change
    for order in MERGES:
        merging = orders.merge(order).merged
        merged = adapted if merging == "before" else before
        on_grid = merging == "before" and torch.equal(rounded, before)
        projection, noise = arrival(change, _grid(merged, scheme).spacing(merged), "after" if on_grid else merging)
        stored = merge.stored(order, before, adapted, change, lambda: rounded)
        same_codes = (_grid(stored, scheme).codes(stored) == codes).float().mean()
        yield _LayerForecast(order, projection, float(change.square().sum()), noise, float(same_codes))


def _some_outputs(weight: torch.Tensor) -> slice:
    """The outputs of a layer that its forecast reads: all, or of a large weight [out, in, ...] evenly spaced ones."""
    return slice(0, None, math.ceil(weight.numel() / _READ))


def _add(total: _Sums, forecast: _LayerForecast, share: float) -> None:
    """Add the forecast of a layer that was made from a ``share`` of its weights."""
    total.projection += forecast.projection / share
    total.noise += forecast.noise / share
    total.energy += forecast.energy / share
    total.layers += 1


def _as_arrival(scheme: str, forecast: _LayerForecast) -> Arrival:
    return Arrival(
        scheme=scheme,
        order=forecast.order,
        survival=forecast.survival,
        delta_snr=_decibels(forecast.energy, forecast.noise),
        same_codes=forecast.same_codes,
    )


def _decibels(power: float, against: float) -> float:
    """10 log10(power / against); infinite where ``against`` is 0."""
    if not against:
        return float("inf")
    return float(10 * torch.log10(torch.tensor(power, dtype=torch.float64) / against))


def _forecast(key: tuple[str, Order], total: _Sums) -> Forecast:
    return Forecast(
        scheme=key[0],
        order=key[1],
        survival=total.projection / max(total.energy, 1e-300),
        snr=_decibels(total.energy, total.noise),
        layers=total.layers,
    )
