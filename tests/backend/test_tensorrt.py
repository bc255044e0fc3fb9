"""Real TensorRT-RTX builds, and what a refusal looks like."""

from pathlib import Path

import onnx_ir as ir
import pytest

from qcheck.backend import tensorrt
from qcheck.quantize import onnx as rewrite
from tests.conftest import Finished, Prepared

SHAPES = {
    "sample": ([1, 4, 16, 16], [2, 4, 16, 16], [2, 4, 16, 16]),
    "encoder_hidden_states": ([1, 16, 128], [2, 16, 128], [2, 16, 128]),
}
needs_builder = pytest.mark.skipif(tensorrt.available() is not None, reason="tensorrt-rtx is not installed here")


@needs_builder
def test_the_check_built_a_real_engine_for_the_targets_proxy(finished: Finished) -> None:
    (made,) = finished.report["cases"][0]["builds"]
    assert (made["status"], made["capability"], made["proxy"]) == ("built", "8.6", True)
    engine = finished.folder / "artifacts" / "int8" / "merge-quantize" / "model.sm86.engine"
    assert engine.stat().st_size == made["bytes"]
    assert b"int8" in engine.read_bytes().lower()


@needs_builder
def test_a_capability_that_the_builder_does_not_know_is_refused_by_name(tmp_path: Path, finished: Finished) -> None:
    model = finished.folder / "artifacts" / "int8" / "merge-quantize" / "unet" / "model.onnx"
    built = tensorrt.build(model, "8.7", SHAPES, tmp_path / "engine")
    assert built.engine is None
    assert "cannot compile for SM87" in built.detail


@needs_builder
def test_what_the_parser_says_comes_back(tmp_path: Path, prepared: Prepared) -> None:
    model = rewrite.fill(prepared.graph, prepared.state)
    next(iter(model.graph)).op_type = "NoSuchOperator"
    ir.save(model, tmp_path / "odd.onnx")
    built = tensorrt.build(tmp_path / "odd.onnx", "8.6", SHAPES, tmp_path / "engine")
    assert built.engine is None
    assert "NoSuchOperator" in built.detail
    assert not (tmp_path / "engine").exists()


@needs_builder
def test_a_builder_that_dies_is_an_error_message(tmp_path: Path) -> None:
    built = tensorrt.build(tmp_path / "missing.onnx", "8.6", {"sample": ([1], [1], "x")}, tmp_path / "engine")  # type: ignore[dict-item]
    assert built.engine is None
    assert built.detail
