"""Attention in the files that ONNX Runtime runs here: written out as torch exports it, fused, and by opset 23.

``python -m benchmarks.attention`` runs 2 rows of 8 heads of 40 numbers at 1024, 2048 and 4096 tokens, each form in a
process of its own with one thread, and prints the memory that a call took beyond its session, and its time.
"""

import argparse
import subprocess
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import onnx_ir as ir
import onnxruntime
import psutil
import torch
from onnx import helper
from torch import nn
from torch.nn import functional as F

from qcheck.model import attention
from qcheck.model.components import Component
from qcheck.model.graph import export

_ROWS, _HEADS, _WIDTH = 2, 8, 40
_FORMS = ("written out", "fused", "opset 23")


class _Attending(nn.Module):
    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v)


def _write(form: str, tokens: int, path: Path) -> None:
    shape = (_ROWS, _HEADS, tokens, _WIDTH)
    if form == "opset 23":
        tensors = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in "qkvo"]
        node = helper.make_node("Attention", ["q", "k", "v"], ["o"])
        graph = helper.make_graph([node], "attention", tensors[:3], tensors[3:])
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path)
        return
    model = export(Component("attention", _Attending(), {n: torch.randn(shape) for n in "qkv"}, ("o",)), "float32")
    ir.save(attention.fuse(model) if form == "fused" else model, path)


def _measure(path: Path, tokens: int) -> tuple[float, float]:
    """Seconds of the quickest of three calls, and MB that they took at most."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = {name: torch.randn(_ROWS, _HEADS, tokens, _WIDTH).numpy() for name in "qkv"}
    process = psutil.Process()
    start, peak, spent = process.memory_info().rss, 0, []

    def watch() -> None:
        nonlocal peak
        while True:
            peak = max(peak, process.memory_info().rss)
            time.sleep(0.002)

    threading.Thread(target=watch, daemon=True).start()
    for _ in range(3):
        began = time.perf_counter()
        session.run(None, given)
        spent.append(time.perf_counter() - began)
    return min(spent), (peak - start) / 1e6


def main() -> None:
    """Print a line for each form and number of tokens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--here", nargs=2, metavar=("FORM", "TOKENS"), help="run one of them in this process")
    asked = parser.parse_args().here
    if asked is None:
        for tokens in (1024, 2048, 4096):
            for form in _FORMS:
                command = [sys.executable, "-m", "benchmarks.attention", "--here", form, str(tokens)]
                subprocess.run(command, check=True)
        return
    form, tokens = asked[0], int(asked[1])
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        _write(form, tokens, path)
        seconds, size = _measure(path, tokens)
    print(f"{form:12s} {tokens:5d} tokens {1e3 * seconds:7.0f} ms {size:7.0f} MB", flush=True)


if __name__ == "__main__":
    main()
