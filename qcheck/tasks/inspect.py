"""An adapter inspected without inference: its contents, and the fate of its change of the base's weights by order.

Some outputs of every layer are read, as many as the words need: the standard error of a survival is known, and more are
read where a limit between two words lies within three of it. Details need every weight.
"""

import glob
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcheck.core import files
from qcheck.core.errors import UserError, listed
from qcheck.core.progress import Progress, Silent
from qcheck.diagnose import change as changes
from qcheck.model import bases, lora, tensor_file
from qcheck.model.lora import Contents
from qcheck.model.lora.layout import Factors, Names
from qcheck.quantize import forecast, plan
from qcheck.quantize.forecast import Total
from qcheck.quantize.sample import StoredWeight, StoredWeights
from qcheck.result.inspection import Details, Forecast, Inspection, LayerReport
from qcheck.spec import order as orders
from qcheck.spec.fate import fates
from qcheck.spec.order import Order
from qcheck.spec.recipe import Recipe
from qcheck.spec.scheme import Scheme
from qcheck.spec.use import Use

_WORDS = 20
_COUNTS = (2**14, 2**20, None)  # weights of a layer that are read: at first, then, and at last all
_DETAILED = 2**20  # weights of a layer that its arrivals are forecast from
_SURE = 3.0  # standard errors between a survival and a limit
Key = tuple[str, Order]


@dataclass(frozen=True)
class Question:
    """What is asked of an adapter: its weight, the schemes and orders that it ships in, and whose kept layers count."""

    weight: float
    schemes: Sequence[Scheme]
    orders: Sequence[Order]
    recipe: Recipe
    details: bool = False

    def quantizing(self, layer: str, weight: StoredWeight) -> list[Scheme]:
        """The schemes that quantize a layer."""
        return [scheme for scheme in self.schemes if plan.quantizes(layer, weight.meta, scheme, self.recipe)]


@dataclass(frozen=True)
class _Match:
    """An adapter's contents, its factors in the base's denoiser, and its layers that the base does not have."""

    contents: Contents
    here: Mapping[str, Factors]
    unmatched: Sequence[str]

    @property
    def every(self) -> Mapping[str, Factors]:
        """All factors by layer."""
        return self.contents.factors

    def silence(self, weight: float) -> str | None:
        """Why the adapter does nothing on this base under any scheme, if it does not."""
        layers, shifts = self.contents.layers, self.contents.shifts
        if len(self.unmatched) == len(layers):
            return f"none of its {len(layers)} layers is in this base: {listed(self.unmatched)}"
        if not weight:
            return "its weight is 0"
        present = [factors for name, factors in self.every.items() if name not in self.unmatched]
        added = [values for name, values in shifts.items() if lora.layer_of(name) not in self.unmatched]
        if all(factors.idle() for factors in present) and not any(values.any() for values in added):
            return f"the factors of all its {len(layers) - len(self.unmatched)} layers are zero"
        return None

    def missing(self) -> float:
        """|D|^2 of the layers of a denoiser that the base does not have."""
        lacking = [factors for name, factors in self.every.items() if name in self.unmatched and not _is_encoder(name)]
        return sum(factors.energy() for factors in lacking)


def _is_encoder(layer: str) -> bool:
    return layer.startswith("text_encoder")


def inspect(source: str, base: str | None, asked: Question, progress: Progress | None = None) -> Inspection:
    """Inspect the adapter ``source``, and its change of the weights of ``base`` where there is one.

    Raises:
        UserError: an adapter that cannot be read or does not fit, a base without a denoiser in safetensors, or a DoRA
            in an order that keeps it beside the weights.
    """
    adapter = lora.read(Use(source=source, weight=asked.weight))
    names, stored = (Names(), {}) if base is None else stored_layers(base)
    contents, weights = lora.contents_of(names, adapter), StoredWeights(names.denoiser, stored)
    here = {name: factors for name, factors in contents.factors.items() if name in weights}
    for name, factors in here.items():
        lora.require_shape(name, weights[name].meta, factors)
    match = _Match(contents, here, [name for name in contents.layers if base is not None and name not in names.layers])
    keys = [] if base is None else _keys(source, match.every.values(), asked)
    silent, watch = match.silence(asked.weight), progress or Silent()
    totals, relative = ({}, {}) if silent else _totals(match, weights, keys, asked, watch)
    details = _details(match, weights, asked, watch) if asked.details else {}
    return Inspection(
        adapter=source,
        digest=adapter.digest,
        weight=asked.weight,
        triggers=lora.trigger_words(adapter)[:_WORDS],
        tags=dict(list(lora.tag_counts(adapter).items())[:_WORDS]),
        layers=[_layer(name, factors, relative.get(name), details.get(name)) for name, factors in match.every.items()],
        shifted=[*contents.shifts],
        unmatched=[*match.unmatched],
        silent=silent,
        forecasts=[_silent(key, silent) if silent else _forecast(key, totals[key], match) for key in keys],
    )


def files_of(source: str) -> list[str]:
    """The adapters that ``source`` stands for: itself, or all in a folder, or all that match a pattern.

    Raises:
        UserError: there are none.
    """
    path = Path(source)
    if path.is_dir() and lora.file_in(path) == path:
        paths = sorted(one for one in path.iterdir() if one.suffix in {".safetensors", *lora.PICKLES})
    elif glob.has_magic(source) and not path.exists():
        paths = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    else:
        return [source]
    if not paths:
        raise UserError(f"no adapter in {source!r}", "Give a folder or a pattern of .safetensors files.")
    return [str(one) for one in paths]


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
    config = _config(folder / denoiser / "config.json")
    return Names(denoiser, layers, lora.layers_per_block(config)), paths


def _config(path: Path) -> dict[str, Any]:
    try:
        return files.read_object(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)!r}: {error}", "Take the config.json that belongs to the weights.") from error


def _weights(folder: Path) -> dict[str, Path]:
    """The file of every tensor below ``folder``, by its name."""
    paths = {}
    for path in sorted(folder.glob("*.safetensors")):
        with tensor_file.opened(path) as stream:
            paths.update(dict.fromkeys(stream.keys(), path))
    return paths


def _keys(source: str, every: Iterable[Factors], asked: Question) -> list[Key]:
    """The schemes and orders of the forecasts: a DoRA cannot run beside the weights, which it rescales."""
    merged = any(factors.sizes is not None for factors in every)
    possible = [order for order in asked.orders if not (merged and orders.merge(order).keeps_factors)]
    if not possible:
        raise UserError(
            f"adapter {source!r} is a DoRA, which rescales whole weights: it cannot run {asked.orders[0]}",
            "Leave that --order out.",
        )
    return [(scheme.name, order) for scheme in asked.schemes for order in possible]


def _layer(name: str, factors: Factors, relative: float | None, details: Details | None) -> LayerReport:
    return LayerReport(
        name=name,
        rank=len(factors.down),
        scale=factors.scale,
        idle=factors.idle(),
        relative=relative,
        details=details,
    )


def _with_progress(title: str, match: _Match, progress: Progress) -> Iterator[tuple[str, Factors]]:
    with progress.stage(title, len(match.here)) as advance:
        for item in match.here.items():
            yield item
            advance(1)


def _totals(
    match: _Match, weights: StoredWeights, keys: Sequence[Key], asked: Question, progress: Progress
) -> tuple[dict[Key, Total], dict[str, float]]:
    """The sums of every forecast over layers, and |D| / |W| by layer, from as many weights as the words need."""
    missing = match.missing() * asked.weight**2
    for count in _COUNTS:
        totals, relative = {key: Total(missing) for key in keys}, {}
        for name, factors in _with_progress("layers", match, progress):
            rows = weights[name].rows(factors, asked.weight, asked.schemes, count)
            relative[name] = float(rows.change.norm() / rows.before.norm())
            quantizing = {one.name: one for one in asked.quantizing(weights.layer(name), weights[name])}
            intact = forecast.intact(rows)
            for (scheme, order), total in totals.items():
                quantized = quantizing.get(scheme)
                total.add(intact if quantized is None else forecast.of_rows(quantized, order, rows))
        if all(total.far_from(fates().limits, _SURE) for total in totals.values()):
            break
    return totals, relative


def _details(match: _Match, weights: StoredWeights, asked: Question, progress: Progress) -> dict[str, Details]:
    details = {}
    for name, factors in _with_progress("details", match, progress):
        weight = weights[name]
        rows = weight.rows(factors, asked.weight, asked.schemes, _DETAILED)
        schemes = asked.quantizing(weights.layer(name), weight)
        arrivals = [one for scheme in schemes for one in changes.arrivals(scheme, asked.orders, rows)]
        before = weight.whole()
        change = factors.shaped(before.shape).added(before, asked.weight)
        details[name] = changes.details(before, change, arrivals)
    return details


def _silent(key: Key, why: str) -> Forecast:
    return Forecast(
        scheme=key[0], order=key[1], fate="does nothing", reason=why, survival=0, error=0, snr=float("inf"), layers=0
    )


def _forecast(key: Key, total: Total, match: _Match) -> Forecast:
    lacking = f"; {len(match.unmatched)} of its {len(match.contents.layers)} layers are not in this base"
    return Forecast(
        scheme=key[0],
        order=key[1],
        fate=fates().of(total.survival),
        reason=_reason(key[1], total, match) + (lacking if match.unmatched else ""),
        survival=total.survival,
        error=total.error,
        snr=total.snr,
        layers=total.quantized,
    )


def _reason(order: Order, total: Total, match: _Match) -> str:
    """What becomes of the change in the layers that the base has."""
    if not match.here:
        return "all that it changes stays in float: text encoders, biases or norms"
    if not total.quantized:
        return "the scheme quantizes none of the layers that it changes"
    if orders.merge(order).keeps_factors:
        return "it stays beside the quantized weights"
    if orders.merge(order).merged == "before" and total.kept > fates().arrives:
        side = "below" if total.snr >= 0 else "above"
        return f"rounding takes nothing from it on average; the noise is {abs(total.snr):.0f} dB {side} it"
    return f"{1 - total.kept:.0%} of its change is lost below half a quantization step"
