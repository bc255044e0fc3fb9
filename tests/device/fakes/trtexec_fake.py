"""The program trtexec with its traps; ``board.trtexec`` copies it with trtexec.json: its release and options."""

import json
import re
import sys
import time
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_FACE = json.loads((_HERE / "trtexec.json").read_text("utf-8"))
_MAJOR = int(_FACE["version"].split(".")[0])
_RAW = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT64": "int64", "INT32": "int32", "BOOL": "bool"}


def _fail(*lines: str) -> None:
    print("\n".join(f"[11/27/2026-10:00:00] [E] {line}" for line in lines), file=sys.stderr)  # noqa: T201
    print("&&&& FAILED TensorRT.trtexec")  # noqa: T201
    sys.exit(1)


def main() -> None:
    words = sys.argv[1:]
    print(f"&&&& RUNNING TensorRT.trtexec [TensorRT v{_FACE['code']}] # trtexec {' '.join(words)}", flush=True)  # noqa: T201
    options = {word.partition("=")[0]: word.partition("=")[2] for word in words}
    unknown = [option for option in options if option not in _FACE["options"]]
    if unknown:
        _fail(f"Unknown option: {unknown[0]}")
    with (_HERE / "calls.txt").open("a") as calls:
        calls.write(" ".join(words) + "\n")
    if "--help" in options:
        return
    sys.path.insert(0, str(_HERE))
    if "--onnx" in options:
        _build(options)
    else:
        _run(options)


def _build(options: dict[str, str]) -> None:
    import graph

    faults, level, path = graph.read_faults(_HERE), int(options["--builderOptimizationLevel"]), options["--onnx"]
    if faults.get("refuse"):
        _fail("ModelImporter.cpp:836: ERROR: Unsupported weight type INT4", "Failed to parse onnx file")
    if level >= faults.get("crash_from", 9):
        _fail("Error Code 2: OutOfMemory", "Engine could not be created from network")
    if _MAJOR == 10 and "--stronglyTyped" not in options:
        _fail("this fake builds strongly typed networks only")
    dynamic = {name: shape for side, name, _, shape in graph.bindings(path) if side == "INPUT" and -1 in shape}
    if "--shapes" in options and not dynamic:
        _fail("Static model does not take explicit shapes since the shape of inference tensors will be determined")
    automatic = {name: [1 if size == -1 else size for size in shape] for name, shape in dynamic.items()}
    shapes = {**automatic, **{name: list(shape) for name, shape in _shapes(options).items()}}
    detailed = options.get("--profilingVerbosity") == "detailed"
    Path(options["--timingCacheFile"]).write_bytes(b"timings")
    plan = {"onnx": path, "detailed": detailed, "shapes": shapes, "version": _FACE["version"]}
    Path(options["--saveEngine"]).write_text(json.dumps(plan), "utf-8")


def _shapes(options: dict[str, str]) -> dict[str, tuple[int, ...]]:
    pairs = [pair.rpartition(":") for pair in options.get("--shapes", "").split(",") if pair]
    return {name: tuple(map(int, shape.split("x"))) for name, _, shape in pairs}


def _run(options: dict[str, str]) -> None:
    import graph
    import numpy as np

    faults, plan = graph.read_faults(_HERE), json.loads(Path(options["--loadEngine"]).read_text("utf-8"))
    if "--exportLayerInfo" in options:
        text = graph.inspector(plan["onnx"], _MAJOR, plan["detailed"], faults)
        Path(options["--exportLayerInfo"]).write_text(text, "utf-8")
    if "--skipInference" in options:
        return
    if any(list(shape) != plan["shapes"].get(name, list(shape)) for name, shape in _shapes(options).items()):
        _fail("IExecutionContext::setInputShape: Error Code 3: Supplied dimension is not in the profile")
    time.sleep(faults.get("run_seconds", 0))
    files = dict(pair.rpartition(":")[::2] for pair in options["--loadInputs"].split(","))
    shapes, inputs = graph.resolved(plan["onnx"], _shapes(options)), {}
    for side, name, kind, _ in graph.bindings(plan["onnx"]):
        if side == "INPUT":
            inputs[name] = _loaded(Path(files[name]), np.dtype(graph.NUMPY[kind]), shapes[name])
    outputs = graph.run(plan["onnx"], inputs)
    if faults.get("nan"):
        outputs = {name: np.full_like(values, np.nan) for name, values in outputs.items()}
    if "--exportTimes" in options:
        _times(options, faults)
    if "--exportOutput" in options:
        _rounded(Path(options["--exportOutput"]), outputs)
    if "--dumpRawBindingsToFile" in options:
        stale = _MAJOR >= 11 and "--includeDataTransfers" not in options
        shown = {name: np.zeros_like(values) if stale else values for name, values in outputs.items()}
        _dump(plan["onnx"], {**inputs, **shown}, faults)


def _dump(path: str, values: dict, faults: dict) -> None:
    import graph

    for side, name, kind, _ in graph.bindings(path):
        raw = _RAW[faults.get("types", {}).get(name, kind)]
        place = f"{name}.{side.lower()}.{'.'.join(map(str, values[name].shape))}.{raw}.raw"
        values[name].tofile(re.sub(r"[^A-Za-z0-9._,-]", "_", place))


def _loaded(path: Path, dtype: "np.dtype", shape: tuple[int, ...]) -> "np.ndarray":  # noqa: F821
    """A file of inputs; of twice the size it is read by half, as in the real program."""
    import numpy as np

    content, size = path.read_bytes(), int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if len(content) not in {size, 2 * size}:
        _fail(f"Unexpected file size for input file: {path}. Note: Input binding size is: {size} bytes")
    return np.frombuffer(content[:size], dtype).reshape(shape).copy()


def _times(options: dict[str, str], faults: dict) -> None:
    compute = faults.get("compute_ms", 2.5)
    row = {"startEnqMs": 0.1, "h2dMs": 1.5, "computeMs": compute, "d2hMs": 1.25, "latencyMs": compute + 40}
    Path(options["--exportTimes"]).write_text(json.dumps([row] * int(options["--iterations"])), "utf-8")


def _rounded(path: Path, outputs: dict) -> None:
    """Six digits, and no JSON where a value is NaN."""
    texts = []
    for name, values in outputs.items():
        numbers = ", ".join(f"{value:.6g}" for value in values.astype(float).ravel())
        texts.append(f'{{ "name" : "{name}", "values" : [ {numbers} ] }}')
    path.write_text(f"[ {', '.join(texts)} ]", "utf-8")


if __name__ == "__main__":
    main()
