"""Attention in exported graphs: one Transpose for the keys, and ONNX Runtime's operator where nothing is masked."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qcheck.model import attention
from qcheck.model.components import Component
from qcheck.model.graph import export

HEADS, WIDTH = 3, 8


class Attending(nn.Module):
    """Attention of queries [n, q, heads * d] to keys and values [n, k, heads * d]."""

    def __init__(self, masked: bool, scale: float | None) -> None:
        super().__init__()
        self.masked, self.scale = masked, scale

    def forward(self, queries: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        q, k, v = (x.unflatten(-1, (HEADS, WIDTH)).transpose(1, 2) for x in (queries, context, context.flip(-1)))
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril() if self.masked else None
        output = F.scaled_dot_product_attention(q, k, v, mask, scale=self.scale)
        return output.transpose(1, 2).flatten(2)


def _inputs(rows: int) -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(rows)
    sizes = {"queries": 12, "context": 7}
    return {name: torch.randn(rows, size, HEADS * WIDTH, generator=draws) for name, size in sizes.items()}


def _graph(module: nn.Module) -> ir.Model:
    return export(Component("attending", module, _inputs(2), ("output",)), "float32")


def _run(model: ir.Model, inputs: dict[str, torch.Tensor], path: Path) -> np.ndarray:
    ir.save(model, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    output: np.ndarray = session.run(None, {name: value.numpy() for name, value in inputs.items()})[0]
    return output


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scale", [None, 1.0, 0.3])
def test_values_stay_and_only_what_is_not_masked_is_fused(masked: bool, scale: float | None, tmp_path: Path) -> None:
    module, inputs = Attending(masked, scale), _inputs(5)
    model = _graph(module)
    kinds = [node.op_type for node in model.graph]
    assert "Shape" not in kinds
    assert len(list(attention.find(model.graph))) == (0 if masked else 1)
    simple = _run(model, inputs, tmp_path / "simple.onnx")
    fused = attention.fuse(model)
    assert [node.op_type for node in fused.graph].count("MultiHeadAttention") == (0 if masked else 1)
    assert ("Softmax" in [node.op_type for node in fused.graph]) == masked
    for values in (simple, _run(fused, inputs, tmp_path / "fused.onnx")):
        np.testing.assert_allclose(values, module(**inputs).numpy(), atol=1e-6)


def test_keys_are_turned_as_the_exporter_turned_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, inputs = Attending(masked=False, scale=None), _inputs(3)
    simple = _graph(module)
    monkeypatch.setattr(attention, "simplify", lambda _: None)
    written_out = _graph(module)
    assert len(simple.graph) < len(written_out.graph)
    assert not list(attention.find(written_out.graph))
    values = [_run(model, inputs, tmp_path / f"{len(model.graph)}.onnx") for model in (simple, written_out)]
    np.testing.assert_array_equal(*values)
