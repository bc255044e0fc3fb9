"""qcheck beside its peers on one model and the same samples: time, memory and quality of all of them in one run.

``python -m benchmarks.peers --python .venv-peers/bin/python`` exports the demo's denoiser with the adapter "flat" to
float32 ONNX and gives each tool, one after the other, a process of its own with one thread. Costs are in bare forwards
of the same process, memory is the peak above what the process held when the tool began. A tool that fails, or takes
longer than --limit, has the reason in the record, from which ``python -m benchmarks.readme`` writes docs/peers.md.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from scipy.stats import spearmanr

from benchmarks.peers import metered, ours
from benchmarks.peers.metered import Layer, Rows, Work
from benchmarks.peers.tables import RECORD
from benchmarks.quantizers import states
from qcheck.model.arms import Arms
from qcheck.spec import recipe

ROOT = Path(__file__).parents[2]
OURS, THEIRS = "benchmarks.peers.ours", "benchmarks.peers.theirs"
QUANTIZERS = {  # what the table calls a tool, the module that has it, its name there
    "qcheck `int8`": (OURS, "qcheck-int8"),
    "qcheck `int8`, every layer": (OURS, "qcheck-int8-every"),
    "ModelOpt `INT8_DEFAULT_CFG`": (OURS, "modelopt-int8"),
    "ModelOpt `INT8_SMOOTHQUANT_CFG`": (OURS, "modelopt-int8-sq"),
    "ONNX Runtime `quantize_static`, MinMax": (THEIRS, "static"),
    "ONNX Runtime `quantize_static`, Percentile": (THEIRS, "static-percentile"),
    "ONNX Runtime `quantize_static`, Entropy": (THEIRS, "static-entropy"),
    "AIMET `QuantizationSimModel`, INT8": (THEIRS, "aimet"),
    "NNCF `quantize`": (THEIRS, "nncf"),
    "NNCF `quantize`, `TRANSFORMER`": (THEIRS, "nncf-transformer"),
    "qcheck `fp8`": (OURS, "qcheck-fp8"),
    "qcheck `fp8`, every layer": (OURS, "qcheck-fp8-every"),
    "ModelOpt `FP8_DEFAULT_CFG`": (OURS, "modelopt-fp8"),
    "ONNX Runtime `quantize_static`, FP8": (THEIRS, "static-fp8"),
    "AIMET `QuantizationSimModel`, FP8": (THEIRS, "aimet-fp8"),
    "NNCF `quantize`, FP8": (THEIRS, "nncf-fp8"),
}
EXACT = "each layer quantized alone, exactly"
DIAGNOSES = {
    EXACT: (OURS, "exact"),
    "qcheck sensitivity, 1 draw": (OURS, "qcheck-1"),
    "qcheck sensitivity, 4 draws as in a check": (OURS, "qcheck-4"),
    "ModelOpt `auto_quantize`, gradients": (OURS, "modelopt-auto"),
    "AIMET `QuantAnalyzer`, enabling": (THEIRS, "aimet-enabling"),
    "AIMET `QuantAnalyzer`, disabling": (THEIRS, "aimet-disabling"),
    "NNCF accuracy control, ranking": (THEIRS, "nncf-ranking"),
    "ONNX Runtime `qdq_loss_debug`": (THEIRS, "ort-debug"),
    "Polygraphy, every tensor compared": (THEIRS, "polygraphy"),
}
_PACKAGES = {
    OURS: ("torch", "diffusers", "nvidia-modelopt", "onnxruntime-gpu"),
    THEIRS: ("onnxruntime", "aimet-onnx", "nncf", "polygraphy"),
}


def prepare(both: Arms, work: Work, prompts: int, points: int) -> dict[str, Any]:
    """Leave the file, the samples and the names of layers in the work's folder; says what they are."""
    words = list(recipe.find("emoji").prompts.prompts)
    with both.held("adapted"):
        calibration = states(both.base.pipe, words[:prompts], 1000)
        judged = states(both.base.pipe, words[prompts : 2 * prompts], 2000)
    for name, rows in (("calibration", calibration), ("judged", judged), ("points", single(judged, points))):
        metered.write(work.folder / f"{name}.npz", rows)
    exporter = ours.exporter(both, work)
    model = onnx.load(exporter.full("adapted", "float32"))
    del model.graph.value_info[:]  # symbolic shapes, which not every tool takes
    onnx.save(model, work.model)
    layers = {name: asdict(layer(site.node, site.weight)) for name, site in exporter.sites("float32").items()}
    (work.folder / "layers.json").write_text(json.dumps(layers))
    return {
        "parameters": sum(value.numel() for value in both.base.denoiser.parameters()),
        "layers": len(layers),
        "nodes": len(model.graph.node),
        "megabytes": round(work.model.stat().st_size / 1e6, 1),
        "calibration": len(calibration),
        "judged": len(judged),
        "rows": len(calibration[0]["sample"]),
        "points": points,
    }


def layer(node: ir.Node, weight: ir.Value) -> Layer:
    """The names of a layer's node and tensors."""
    given = node.inputs[0]
    return Layer(str(node.name), str(weight.name), str(given.name if given else ""), str(node.outputs[0].name))


def single(rows: Rows, count: int) -> Rows:
    """``count`` samples of one row each: another prompt at every step, with its own branch of guidance."""
    half = len(rows[0]["sample"]) // 2

    def one(place: int) -> metered.Row:
        row, at = rows[place % len(rows)], half + place % half
        return {name: value if len(value) == 1 else value[at : at + 1] for name, value in row.items()}

    return [one(place) for place in range(count)]


def run(python: str, module: str, name: str, work: Work, limit: int) -> dict[str, Any]:
    """What a tool's process measured, or why it did not."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NNCF_CI": "1", "PYTHONPATH": str(ROOT)}  # NNCF: no telemetry
    command = [python, "-m", module, name, str(work.folder)]
    with (work.folder / f"{name}.log").open("w+") as log:
        try:
            code = subprocess.run(
                command, stdout=log, stderr=log, env=environment, timeout=limit, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            return {"reason": f"not ready after {limit} s"}
        if code == 0:
            measured: dict[str, Any] = json.loads((work.folder / f"{name}.json").read_text())
            return measured
        if code < 0:
            return {"reason": f"ended by {signal.Signals(-code).name}"}
        log.seek(0)
        lines = log.read().strip().splitlines() or [f"exit status {code}"]
        return {"reason": lines[-1].replace(str(work.folder), "FOLDER")[:200]}


def row(measured: Mapping[str, Any], exact: Mapping[str, float]) -> dict[str, Any]:
    """What the record keeps of a tool: costs in forwards a sample by engine, peak memory, quality."""
    if "reason" in measured:
        return dict(measured)
    cost = {engine: measured["seconds"] / one / measured["samples"] for engine, one in measured["forward"].items()}
    kept = {
        "forwards": {engine: round(value, 2) for engine, value in cost.items()},
        "forward_ms": {engine: round(1e3 * value, 2) for engine, value in measured["forward"].items()},
        "seconds": round(measured["seconds"], 2),
        "peak_mb": round(measured["peak_mb"]),
        "facts": measured["facts"],
    }
    ranks = {name: rank(scores, exact) for name, scores in measured["scores"].items()}
    return kept | ({"sqnr": round(measured["sqnr"], 1)} if "sqnr" in measured else {"ranks": ranks})


def rank(scores: Mapping[str, float], exact: Mapping[str, float]) -> dict[str, Any]:
    """Spearman's correlation with the exact cost over the layers that have both, and how many these are."""
    shared = [name for name in exact if name in scores]
    if len(shared) < 3 or len({scores[name] for name in shared}) == 1:
        return {"layers": len(shared), "spearman": None}
    rho = float(spearmanr([scores[name] for name in shared], [exact[name] for name in shared]).statistic)
    return {"layers": len(shared), "spearman": round(rho, 3) if np.isfinite(rho) else None}


def versions(python: str, packages: tuple[str, ...]) -> dict[str, str]:
    """The versions of packages in an environment."""
    code = (
        "import sys, json; from importlib.metadata import version as v; print(json.dumps([v(p) for p in sys.argv[1:]]))"
    )
    done = subprocess.run([python, "-c", code, *packages], capture_output=True, text=True, check=True)
    return dict(zip(packages, json.loads(done.stdout), strict=True))


def main() -> None:
    """Prepare, run every tool, keep the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=".venv-peers/bin/python", help="of the peers' environment")
    parser.add_argument("--prompts", type=int, default=2, help="rows of a sample are twice as many")
    parser.add_argument("--points", type=int, default=4, help="samples of one row on which layers are ranked")
    parser.add_argument("--limit", type=int, default=240, help="seconds for one tool")
    parser.add_argument("--only", nargs="+", metavar="TOOL", help="print these, and keep no record")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    pythons = {OURS: sys.executable, THEIRS: asked.python}
    with tempfile.TemporaryDirectory() as folder:
        work = Work(Path(folder))
        model = prepare(ours.model(), work, asked.prompts, asked.points)
        tables: dict[str, dict[str, Any]] = {"quantize": {}, "diagnose": {}}
        exact: dict[str, float] = {}
        for table, tools in (("quantize", QUANTIZERS), ("diagnose", DIAGNOSES)):
            for title, (module, name) in tools.items():
                if asked.only and name not in asked.only:
                    continue
                measured = run(pythons[module], module, name, work, asked.limit)
                exact = measured.get("scores", {}).get("cost", exact) if title == EXACT else exact
                tables[table][title] = row(measured, exact)
                print(title, json.dumps(tables[table][title]), flush=True)
    installed = {module: versions(python, _PACKAGES[module]) for module, python in pythons.items()}
    about = {"model": model, "versions": {"python": platform.python_version()} | installed[OURS] | installed[THEIRS]}
    if not asked.only:
        RECORD.write_text(json.dumps(about | tables, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
