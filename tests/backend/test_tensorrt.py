"""Real TensorRT-RTX builds, and what a refusal looks like."""

import importlib.util
from pathlib import Path

import onnx_ir as ir
import pytest

from qcheck.build import builder as tensorrt
from qcheck.build.builder import Builder
from qcheck.quantize import sites
from tests import builder
from tests.conftest import Finished, Prepared


@builder.needed
def test_the_check_built_a_real_engine_for_the_targets_proxy_and_read_it(finished: Finished) -> None:
    (made,) = finished.report["cases"][0]["builds"]
    assert (made["status"], made["capability"], made["proxy"]) == ("built", "8.6", True)
    assert made["realised"]["operands"] == {"int8 x int8": 198}
    assert made["bytes"] > 4_500_000
    assert made["peak_memory_mb"] > 100


@builder.needed
def test_a_capability_that_the_builder_does_not_know_is_no_verdict_on_the_file(finished: Finished) -> None:
    model = finished.folder / "artifacts" / "int8" / "merge-quantize" / "unet" / "model.onnx"
    built = builder.build(model, "8.7")
    assert (built.status, built.engine) == ("not run", None)
    assert "cannot compile for SM87" in built.problems[0].text


@builder.needed
def test_what_the_parser_says_comes_back_with_the_node_and_its_module(tmp_path: Path, prepared: Prepared) -> None:
    model = sites.fill(prepared.graph, prepared.state)
    site = sites.find(model.graph)["down_blocks.0.resnets.0.conv1"]
    site.node.op_type = "NoSuchOperator"
    ir.save(model, tmp_path / "odd.onnx")
    built = builder.build(tmp_path / "odd.onnx", "8.6")
    assert (built.status, built.engine) == ("refused", None)
    (problem,) = built.problems
    assert "NoSuchOperator" in problem.text
    assert problem.node == site.node.name
    assert problem.module == "denoiser.down_blocks.0.resnets.0.conv1"
    assert not (tmp_path / "odd.engine").exists()


@builder.needed
def test_a_builder_that_dies_is_a_crash_with_its_last_words(tmp_path: Path) -> None:
    odd = {"sample": ([1], [1], "x")}
    built = tensorrt.build(Builder(tensorrt.RTX, "8.6"), tmp_path / "no.onnx", odd, tmp_path / "engine")  # type: ignore[arg-type]
    refused = tensorrt.build(Builder("no_such_builder", "8.6"), tmp_path / "no.onnx", {}, tmp_path / "engine")
    assert built.status == "refused"  # the parser said so, in good order
    assert refused.status == "crashed"
    assert "ModuleNotFoundError" in refused.problems[0].text
    assert not (tmp_path / "engine").exists()


@builder.needed
def test_a_timing_cache_is_written_and_taken_again(tmp_path: Path, finished: Finished) -> None:
    model = finished.folder / "artifacts" / "int8" / "merge-quantize" / "unet" / "model.onnx"
    kept = tmp_path / "timing.cache"
    for _ in range(2):
        made = tensorrt.build(Builder(tensorrt.RTX, "8.6"), model, builder.SHAPES, tmp_path / "engine", kept)
        assert made.status == "built"
        assert kept.stat().st_size > 0


def test_without_a_device_the_proxy_is_built_and_without_a_proxy_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {tensorrt.RTX}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in here else None)
    assert tensorrt.choose("8.7", "8.6") == Builder(tensorrt.RTX, "8.6")
    assert "SM 7.2" in str(tensorrt.choose("7.2", None))
    here.add(tensorrt.FULL)
    assert tensorrt.choose("8.7", "8.6") == Builder(tensorrt.RTX, "8.6")
    monkeypatch.setattr(tensorrt, "_DEVICES", ("/",))
    assert tensorrt.local_capability() == ""  # no driver here
    assert tensorrt.choose("8.7", "8.6") == Builder(tensorrt.RTX, "8.6")
    monkeypatch.setattr(tensorrt, "local_capability", lambda: "8.9")
    assert tensorrt.choose("8.7", "8.6") == Builder(tensorrt.RTX, "8.6")
    monkeypatch.setattr(tensorrt, "local_capability", lambda: "8.7")
    assert tensorrt.choose("8.7", "8.6") == Builder(tensorrt.FULL, "8.7")
    here.clear()
    assert "not installed" in str(tensorrt.choose("8.7", "8.6"))
