"""What docs/peers.md and README show of the record of ``python -m benchmarks.peers``."""

import json
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
    "ModelOpt's `auto_quantize`": "ModelOpt `auto_quantize`, gradients",
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
    m = kept["model"]
    lines = (
        f"The model is the demo's denoiser with the adapter `flat` merged: {m['parameters'] / 1e6:.1f} M parameters, "
        f"{m['layers']} layers,",
        f"a float32 ONNX file of {m['nodes']} nodes and {m['megabytes']:g} MB. Ranges are read from {m['calibration']} "
        f"samples of {m['rows']} rows, signal to noise",
        f"from {m['judged']} samples of {m['rows']} rows of other prompts; layers are ranked on {m['points']} samples "
        "of one row. Versions:",
        ", ".join(f"{name} {version}" for name, version in kept["versions"].items()) + ".",
    )
    return "\n".join((*lines, "", _noise(kept)))


def _noise(kept: Record) -> str:
    """How far the unit itself is certain."""
    spread = max(
        max(forwards) / min(forwards)
        for tools in (kept["quantize"], kept["diagnose"])
        for forwards in [[one["forward_ms"]["onnx"] for one in tools.values() if "reason" not in one]]
    )
    return (
        f"The bare forward of a sample, median of ten, differed between processes of this run by a factor of up to "
        f"{spread:.1f}: smaller\nratios of costs mean nothing."
    )


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
    return (
        "Beside other tools, on one model and the same samples in one run (`make bench`): to quantize to INT8 takes "
        f"{_times(every, kept['quantize'], _QUANTIZED)} times qcheck's time; to rank the layers takes "
        f"{_times(check, kept['diagnose'], _RANKED)} times its time. [What each gives for that](docs/peers.md)."
    )


def _times(ours: Mapping[str, Any], tools: Mapping[str, Any], named: Mapping[str, str]) -> str:
    """The costs of the named tools that were measured, in those of ours."""
    costs = {name: tools[row] for name, row in named.items() if "reason" not in tools[row]}
    unit = ours["forwards"]["onnx"]
    return ", ".join(f"{name} {_short(one['forwards']['onnx'] / unit)}" for name, one in costs.items())
