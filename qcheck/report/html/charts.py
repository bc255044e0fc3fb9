"""Vega-Lite specifications of the page's plots: pure functions of the report and its evidence.

Colours are the page's own CSS variables, so that one plot serves light, dark and paper. Arms differ by colour and by
shape, full precision and quantized by colour and by dash.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qcheck.result.evidence import Arrival, CaseEvidence, Evidence, Spread
from qcheck.result.report import Case, Report
from qcheck.spec import measurement
from qcheck.spec.measurement import Limit

Spec = dict[str, Any]
Records = list[dict[str, Any]]
TITLES = {"base": "base", "adapted": "with LoRA", "both": "LoRA beside base"}
_ARMS = ("base", "with LoRA")
_LINES = {
    "f0": ("base", "full precision"),
    "q0": ("base", "quantized"),
    "f1": ("with LoRA", "full precision"),
    "q1": ("with LoRA", "quantized"),
    "e0": ("base", "their difference"),
    "e1": ("with LoRA", "their difference"),
}
_KINDS = ("full precision", "quantized", "their difference")
_COLOURS = ("var(--base)", "var(--lora)")
_ARRIVES = 0.9  # from this survival on, a layer counts as one whose change arrives


@dataclass(frozen=True)
class Chart:
    """A plot with its title and a caption in words."""

    title: str
    caption: str
    spec: Spec


def finite(value: float) -> float | None:
    """JSON has no NaN or infinity; a plot leaves them out."""
    return value if math.isfinite(value) else None


def _spec(description: str, records: Records, layers: Sequence[Spec], height: int = 220) -> Spec:
    return {
        "description": description,
        "width": "container",
        "height": height,
        "autosize": {"type": "fit", "contains": "padding"},
        "data": {"values": records},
        "layer": list(layers),
    }


def _x(field: str, title: str, **more: Any) -> Spec:
    return {"field": field, "type": "quantitative", "title": title, "axis": {"tickMinStep": 1, "grid": False}} | more


def _y(field: str, title: str, zero: bool = False, **more: Any) -> Spec:
    return {"field": field, "type": "quantitative", "title": title, "scale": {"zero": zero}} | more


def _arm(name: str = "colour") -> Spec:
    legend = {"title": None, "orient": "top", "symbolSize": 80, "symbolOpacity": 1}
    values = {"colour": list(_COLOURS), "shape": ["circle", "triangle-up"]}
    return {"field": "arm", "type": "nominal", "scale": {"domain": _ARMS, "range": values[name]}, "legend": legend}


def _rules(limit: Limit | None) -> list[Spec]:
    """A dashed line with its value at each end of the allowed range."""
    bounds = () if limit is None else (limit.low, limit.high)
    return [
        spec
        for bound in bounds
        if bound is not None
        for spec in (
            {
                "data": {"values": [{"y": bound}]},
                "mark": "rule",
                "encoding": {"y": {"field": "y", "type": "quantitative"}},
            }
            | {"mark": {"type": "rule", "strokeDash": [2, 3], "color": "var(--ink)"}},
            {
                "data": {"values": [{"y": bound, "text": f"limit {bound:g}"}]},
                "mark": {"type": "text", "align": "right", "baseline": "bottom", "dy": -2, "color": "var(--ink)"},
                "encoding": {
                    "x": {"value": "width"},
                    "y": {"field": "y", "type": "quantitative"},
                    "text": {"field": "text"},
                },
            },
        )
    ]


def _banded(title: str, unit: str, spreads: Mapping[str, Spread], axis: Records, limit: Limit | None) -> Spec:
    """A line for each arm over ``axis``: the mean over probes, with a band from the lowest to the highest."""
    records = [
        place | {"arm": TITLES[arm], "mean": finite(mean), "low": finite(low), "high": finite(high)}
        for arm, spread in spreads.items()
        for place, mean, low, high in zip(axis, spread.mean, spread.low, spread.high, strict=True)
    ]
    x = _x("step", "denoising step")
    tips = [
        {"field": name, "type": "quantitative", "format": ".3~g"}
        for name in ("step", "timestep", "mean", "low", "high")
    ]
    return _spec(
        title,
        records,
        [
            {
                "mark": {"type": "area", "opacity": 0.16},
                "encoding": {"x": x, "y": _y("low", unit), "y2": {"field": "high"}, "color": _arm()},
            },
            *_rules(limit),
            {
                "mark": {"type": "line", "strokeWidth": 2},
                "encoding": {"x": x, "y": _y("mean", unit), "color": _arm()},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
                "encoding": {
                    "x": x,
                    "y": _y("mean", unit),
                    "color": _arm(),
                    "shape": _arm("shape"),
                    "tooltip": [{"field": "arm"}, *tips],
                },
            },
        ],
    )


def steps(
    report: Report, evidence: Evidence, case: Case, case_evidence: CaseEvidence, limits: Mapping[tuple[str, str], Limit]
) -> list[Chart]:
    """The gap along the denoising steps."""
    axis: Records = [
        {"step": step, "timestep": t} for step, t in zip(evidence.strata, report.probes.timesteps, strict=True)
    ]
    sqnr: dict[str, Spread] = {along.arm: along.sqnr for along in case_evidence.along}
    apart: dict[str, Spread] = {along.arm: along.apart for along in case_evidence.along if along.apart is not None}
    sqnr_title = "Signal to noise along the steps"
    charts = [
        Chart(
            sqnr_title,
            f"Both asked at the states full precision walks through; higher is better. {_lowest(sqnr, evidence, 'dB')}",
            _banded(sqnr_title, "SQNR, dB", sqnr, axis, limits.get(("stratum_sqnr", "adapted"))),
        )
    ]
    if case_evidence.survival is not None:
        spread: dict[str, Spread] = {"adapted": case_evidence.survival}
        title = "Survival of the adapter's effect along the steps"
        limit = limits.get(("effect_survival", "adapted"))
        words = (
            f"1: all of it is there, 0: erased. {_lowest(spread, evidence, '')} The limits hold for the sum over steps."
        )
        charts.append(Chart(title, words, _banded(title, "effect survival", spread, axis, limit)))
    title = "Free runs part from full precision"
    words = "Distance of the latents of runs left to themselves before each step, relative to their size."
    charts.append(Chart(title, words, _banded(title, "relative distance", apart, axis, None)))
    return [*charts, *_profiles(case)]


def _lowest(spreads: Mapping[str, Spread], evidence: Evidence, unit: str) -> str:
    parts = []
    for arm, spread in spreads.items():
        known = [(mean, step) for mean, step in zip(spread.mean, evidence.strata, strict=True) if math.isfinite(mean)]
        if known:
            mean, step = min(known)
            parts.append(f"{mean:.3g} {unit}".strip() + f" at step {step} ({TITLES[arm]})")
    return f"Lowest: {', '.join(parts)}." if parts else "Not finite at any step."


_PROFILES = {
    "step_jitter": (
        "Flicker between one step and the next",
        "What quantization adds to 1 - cos of the angle between outputs of neighbouring steps.",
        1,
    ),
    "latent_kl_excess": (
        "Drift of mean and variance",
        "KL of the latents from full precision beyond what exchanged pairs differ by anyway.",
        0,
    ),
}


def _profiles(case: Case) -> list[Chart]:
    charts = []
    for name, (title, words, first) in _PROFILES.items():
        records: Records = [
            {"step": first + place, "arm": TITLES[arm], "value": finite(value)}
            for arm in ("base", "adapted")
            for place, value in enumerate(case.steps.get(f"{name} {arm}", []))
        ]
        if records:
            x, y = _x("step", "denoising step"), _y("value", measurement.find(name).unit, zero=True)
            tips = [{"field": "arm"}, {"field": "step"}, {"field": "value", "type": "quantitative", "format": ".3~g"}]
            layers = [
                {"mark": {"type": "line", "strokeWidth": 2}, "encoding": {"x": x, "y": y, "color": _arm()}},
                {
                    "mark": {"type": "point", "filled": True, "size": 45, "opacity": 1},
                    "encoding": {"x": x, "y": y, "color": _arm(), "shape": _arm("shape"), "tooltip": tips},
                },
            ]
            charts.append(Chart(title, words, _spec(title, records, layers)))
    return charts


def spectra(evidence: Evidence, case_evidence: CaseEvidence) -> list[Chart]:
    """Radial spectra of reference and artifact, one plot for each arm."""
    charts = []
    for number, arm in (("0", "base"), ("1", "with LoRA")):
        if f"q{number}" in case_evidence.spectra:
            records = _rings(evidence, {name: case_evidence.spectra[f"{name}{number}"] for name in "fqe"}, number)
            title = f"Radial spectrum, {arm}"
            words = (
                "Power of the final latents by spatial frequency, mean over probes and channels. Lines on each other: "
                "the same texture. The difference is what quantization put there or took away."
            )
            encoding = {
                "x": _x("frequency", "cycles per latent pixel", axis={"grid": False}),
                "y": _y("level", "power, dB"),
                "color": _kind("color", _COLOURS[int(number)]),
                "strokeDash": _kind("strokeDash", ""),
                "tooltip": [
                    {"field": "what"},
                    *({"field": f, "type": "quantitative", "format": ".3~g"} for f in ("frequency", "level")),
                ],
            }
            layers = [{"mark": {"type": "line", "strokeWidth": 2, "point": {"size": 30}}, "encoding": encoding}]
            charts.append(Chart(title, words, _spec(title, records, layers)))
    return charts


def _kind(channel: str, colour: str) -> Spec:
    ranges: dict[str, list[Any]] = {
        "color": ["var(--ink)", colour, "var(--muted)"],
        "strokeDash": [[1, 0], [6, 3], [1, 3]],
    }
    return {
        "field": "what",
        "type": "nominal",
        "scale": {"domain": _KINDS, "range": ranges[channel]},
        "legend": {"title": None, "orient": "top", "symbolType": "stroke", "symbolSize": 300},
    }


def _rings(evidence: Evidence, levels: Mapping[str, Sequence[float]], number: str) -> Records:
    return [
        {"frequency": frequency, "level": finite(level), "what": _LINES[f"{name}{number}"][1]}
        for name, values in levels.items()
        for frequency, level in zip(evidence.frequencies, values, strict=True)
    ]


def latents(case_evidence: CaseEvidence) -> list[Chart]:
    """Distributions of the final latents, one plot for each channel."""
    return [
        Chart(
            f"Channel {histogram.channel}",
            "",
            _spec(
                f"Distribution of the final latents of channel {histogram.channel}",
                _bins(histogram.low, histogram.high, histogram.shares),
                [{"mark": {"type": "line", "interpolate": "step", "strokeWidth": 1.8}, "encoding": _distribution()}],
                180,
            ),
        )
        for histogram in case_evidence.histograms
    ]


def _bins(low: float, high: float, shares: Mapping[str, Sequence[float]]) -> Records:
    return [
        {
            "value": low + (place + 0.5) * (high - low) / len(values),
            "share": 100 * share,
            "arm": _LINES[name][0],
            "what": _LINES[name][1],
        }
        for name, values in shares.items()
        for place, share in enumerate(values)
    ]


def _distribution() -> Spec:
    dash = {"domain": _KINDS[:2], "range": [[1, 0], [4, 3]]}
    legend = {"title": None, "orient": "top", "symbolType": "stroke", "symbolSize": 300}
    return {
        "x": _x("value", "latent", axis={"grid": False}),
        "y": _y("share", "% of values", zero=True),
        "color": _arm() | {"legend": legend},
        "strokeDash": {"field": "what", "type": "nominal", "scale": dash, "legend": legend},
        "tooltip": [
            {"field": "arm"},
            {"field": "what"},
            *({"field": f, "type": "quantitative", "format": ".3~g"} for f in ("value", "share")),
        ],
    }


_MATCHES = {"test": "query === '' || indexof(lower(datum.layer), query) >= 0", "value": 1}


def arrivals(layers: Sequence[Arrival]) -> Chart:
    """How much of each layer's change arrives, in the network's order; ``query`` dims the layers it does not match."""
    records: Records = [
        {
            "order": place + 1,
            "layer": arrival.layer,
            "snr": finite(arrival.snr),
            "survival": finite(arrival.survival),
            "what": "arrives" if arrival.survival >= _ARRIVES else f"less than {_ARRIVES:g} of it arrives",
        }
        for place, arrival in enumerate(layers)
    ]
    lost_layers = sum(not arrival.survival >= _ARRIVES for arrival in layers)
    title = "Delta survival by layer"
    words = (
        f"The adapter's change of each layer's weight over the noise that rounding it adds, in the network's order. In "
        f"{len(layers) - lost_layers} of {len(layers)} layers at least {_ARRIVES:g} of the change arrives on average."
    )
    domain = ["arrives", f"less than {_ARRIVES:g} of it arrives"]
    shared = {"field": "what", "type": "nominal", "legend": {"title": None, "orient": "top", "symbolSize": 80}}
    encoding = {
        "x": _x("order", "layer, in the network's order"),
        "y": _y("snr", "change over noise, dB"),
        "color": shared | {"scale": {"domain": domain, "range": ["var(--base)", "var(--bad)"]}},
        "shape": shared | {"scale": {"domain": domain, "range": ["circle", "cross"]}},
        "opacity": {"condition": _MATCHES, "value": 0.12},
        "tooltip": [
            {"field": "layer"},
            *({"field": f, "type": "quantitative", "format": ".3~g"} for f in ("snr", "survival")),
        ],
    }
    marks = [{"mark": {"type": "point", "filled": True, "size": 45}, "encoding": encoding}]
    return Chart(title, words, _spec(title, records, marks) | _QUERY)


_QUERY: Spec = {"params": [{"name": "query", "value": ""}]}


def shares(rows: Iterable[Mapping[str, Any]]) -> Chart:
    """Each layer's share of the gap, from its weight and its input; ``query`` dims the layers it does not match."""
    records: Records = [
        {"order": place + 1, "layer": row["layer"], "part": part, "share": 100 * row[part]}
        for place, row in enumerate(rows)
        for part in ("weight", "activation")
        if row.get(part) is not None
    ]
    title = "Sensitivity by layer"
    words = "How much of the gap each layer causes by itself, by rounding its weight alone and its input alone."
    encoding = {
        "x": _x("order", "layer, most of the gap first"),
        "y": _y("share", "% of the gap", zero=True),
        "color": {
            "field": "part",
            "type": "nominal",
            "scale": {"domain": ["weight", "activation"], "range": list(_COLOURS)},
            "legend": {"title": None, "orient": "top"},
        },
        "opacity": {"condition": _MATCHES, "value": 0.12},
        "tooltip": [
            {"field": "layer"},
            {"field": "part"},
            {"field": "share", "type": "quantitative", "format": ".3~g"},
        ],
    }
    return Chart(title, words, _spec(title, records, [{"mark": {"type": "bar"}, "encoding": encoding}]) | _QUERY)


def lines(title: str, caption: str, records: Records, axes: tuple[str, str], limit: Limit | None) -> Chart:
    """Lines over ``x``, one for each ``what`` of the records {x, y, what}, under a limit; ``axes`` titles both."""
    several = len({record["what"] for record in records}) > 1
    encoding = {
        "x": _x("x", axes[0]),
        "y": _y("y", axes[1], zero=True),
        "color": {
            "field": "what",
            "type": "nominal",
            "legend": {"title": None, "orient": "top", "columns": 6} if several else None,
        },
    }
    mark = {"type": "line", "strokeWidth": 2, "point": {"size": 30}}
    return Chart(title, caption, _spec(title, records, [{"mark": mark, "encoding": encoding}, *_rules(limit)]))
