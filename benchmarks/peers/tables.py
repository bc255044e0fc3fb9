"""What docs/peers.md and README show of the record of ``python -m benchmarks.peers``."""

import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

RECORD = Path(__file__).with_name("record.json")
Record = Mapping[str, Any]
_COSTS = ("tool", "its own forwards a sample", "ONNX forwards a sample", "peak memory, MB")
_QUANTIZED = {  # what the sentence calls a tool, its row in the table
    "ONNX Runtime's `quantize_static`": "ONNX Runtime `quantize_static`, MinMax",
    "ModelOpt": "ModelOpt `INT8_DEFAULT_CFG`",
    "AIMET": "AIMET `QuantizationSimModel`, INT8",
    "NNCF": "NNCF `quantize`, `TRANSFORMER`",
}
_RANKED = {
    "ModelOpt's `auto_quantize`, which calibrates too,": "ModelOpt `auto_quantize`, gradients",
    "ONNX Runtime's `qdq_loss_debug`": "ONNX Runtime `qdq_loss_debug`",
    "quantizing each layer alone": "each layer quantized alone, exactly",
    "AIMET's `QuantAnalyzer`": "AIMET `QuantAnalyzer`, enabling",
    "Polygraphy": "Polygraphy, every tensor compared",
    "NNCF's accuracy control": "NNCF accuracy control, ranking",
}


def record() -> Record:
    """The record of the last run."""
    kept: Record = json.loads(RECORD.read_text("utf-8"))
    return kept


def setting(kept: Record) -> str:
    """On what the tools were measured, and in which versions."""
    m, quantize, diagnose = kept["model"], kept["quantize"], kept["diagnose"]
    model = (
        f"The model is the demo's denoiser with the adapter `flat` merged: {m['parameters'] / 1e6:.1f} M parameters, "
        f"{m['layers']} layers, a float32 ONNX file of {m['nodes']} nodes and {m['megabytes']:g} MB. Ranges are read "
        f"from {m['calibration']} samples of {m['rows']} rows, signal to noise from {m['judged']} samples of "
        f"{m['rows']} rows of other prompts; layers are ranked on {m['points']} samples of one row. Versions: "
        + ", ".join(f"{name} {version}" for name, version in kept["versions"].items())
    )
    noise = (
        "The bare forward of one sample, median of ten, differed between the processes of this run by a factor of up "
        f"to {_spread(quantize):.1f} in the first table and {_spread(diagnose):.1f} in the second: smaller ratios of "
        "costs mean nothing."
    )
    return f"{_wrapped(model)}.\n\n{_wrapped(noise)}"


def _spread(tools: Mapping[str, Any]) -> float:
    """The largest over the smallest bare forward of one sample: how far the unit of a table is certain."""
    forwards = [one["forward_ms"]["onnx"] for one in tools.values() if "reason" not in one]
    return float(max(forwards) / min(forwards))


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 125, break_long_words=False, break_on_hyphens=False)


def quantizers(kept: Record) -> str:
    """What it costs to quantize, and the signal to noise that it gives."""
    return _table((*_COSTS, "signal to noise, dB"), kept["quantize"], lambda one: f"{one['sqnr']:.1f}")


def rankings(kept: Record) -> str:
    """What it costs to rank layers, and the rank correlation of a tool's numbers with the exact costs."""
    return _table((*_COSTS, "Spearman with the exact cost"), kept["diagnose"], lambda one: _ranks(one["ranks"]))


def _table(head: Sequence[str], tools: Mapping[str, Any], quality: Callable[[Any], str]) -> str:
    rows = [[name, *_cells(one, quality, len(head) - 1)] for name, one in tools.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _cells(one: Mapping[str, Any], quality: Callable[[Any], str], count: int) -> list[str]:
    """A tool's costs and quality, or the reason why there are none."""
    if "reason" in one:
        return [*["-"] * (count - 1), f"not measured: {one['reason']}"]
    onnx = one["forwards"]["onnx"]
    return [_short(one["forwards"].get("torch", onnx)), _short(onnx), f"{one['peak_mb']}", quality(one)]


def _ranks(ranks: Mapping[str, Any]) -> str:
    return ", ".join(f"{_rank(one['spearman'])} ({name}, {one['layers']} layers)" for name, one in ranks.items())


def _rank(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"


def _short(value: float) -> str:
    """Two digits; larger numbers as they are."""
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def ratios(kept: Record) -> str:
    """What peers cost in time beside qcheck, in one sentence."""
    every, check = (
        kept["quantize"]["qcheck `int8`, every layer"],
        kept["diagnose"]["qcheck sensitivity, 4 draws as in a check"],
    )
    return _wrapped(
        "Beside other tools, on one model and the same samples in one run (`make bench`), with qcheck's time as 1: to "
        f"quantize to INT8 takes {_times(every, kept['quantize'], _QUANTIZED)}; to rank the layers takes "
        f"{_times(check, kept['diagnose'], _RANKED)}. [What each gives for that](docs/peers.md)."
    )


def _times(ours: Mapping[str, Any], tools: Mapping[str, Any], named: Mapping[str, str]) -> str:
    """The costs of the named tools that were measured, in those of ours; about 1 where the unit is no more certain."""
    costs = {name: tools[row]["forwards"]["onnx"] for name, row in named.items() if "reason" not in tools[row]}
    ratios = {name: cost / ours["forwards"]["onnx"] for name, cost in costs.items()}
    spread = _spread(tools)
    return ", ".join(
        f"{name} {'about 1' if 1 / spread < ratio < spread else _short(ratio)}" for name, ratio in ratios.items()
    )
