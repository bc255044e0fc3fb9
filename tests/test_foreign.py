"""Files that someone else made: found, fed by rule, refused clearly, judged without a base artifact."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

import qcheck
from qcheck.core.errors import UserError
from qcheck.model.arms import Arms
from qcheck.quantize import given, qdq, sites
from qcheck.runtime.ort_runner import OnnxRunner, feeds, session
from qcheck.spec import measurement
from tests.conftest import Prepared, run


@pytest.fixture
def plain(prepared: Prepared, tmp_path: Path) -> Path:
    """The adapted denoiser as an unquantized file."""
    path = tmp_path / "plain" / "model.onnx"
    path.parent.mkdir()
    qdq.save(sites.fill(prepared.graph, prepared.state), path)
    return path


def _renamed(path: Path, names: dict[str, str], rows: int | None, scalar: bool) -> Path:
    """The file with other names for its inputs, a fixed batch, or a timestep of int64 without axes."""
    model = onnx.load(path)
    for value in model.graph.input:
        axis = value.type.tensor_type.shape.dim
        if rows and len(axis) > 1:
            axis[0].dim_value = rows
        if scalar and len(axis) == 1:
            _cast(model, value.name)
            value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.INT64, []))
    for old, new in names.items():
        for node in model.graph.node:
            node.input[:] = [new if name == old else name for name in node.input]
        next(value for value in model.graph.input if value.name == old).name = new
    out = path.parent.parent / "renamed.onnx"
    onnx.save(model, out)
    return out


def _cast(model: ModelProto, name: str) -> None:
    for node in model.graph.node:
        node.input[:] = ["timestep_float" if found == name else found for found in node.input]
    shape = helper.make_tensor("one", TensorProto.INT64, [1], [1])
    model.graph.initializer.append(shape)
    model.graph.node.insert(0, helper.make_node("Cast", ["timestep_flat"], ["timestep_float"], to=TensorProto.FLOAT))
    model.graph.node.insert(0, helper.make_node("Reshape", [name, "one"], ["timestep_flat"]))


@pytest.mark.parametrize("rows", [None, 2])
@pytest.mark.parametrize("scalar", [False, True])
def test_inputs_are_fed_by_rank_whatever_they_are_called_and_batches_as_they_are_fixed(
    plain: Path, prepared: Prepared, rows: int | None, scalar: bool
) -> None:
    other = _renamed(plain, {"sample": "latent", "timestep": "t", "encoder_hidden_states": "text"}, rows, scalar)
    inputs = {name: value[:3] for name, value in prepared.inputs.items()}
    wanted, found = OnnxRunner(plain, 1)(inputs), OnnxRunner(other, 1)(inputs)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() < 1e-4


def test_a_file_is_found_where_pipelines_keep_it(plain: Path, tmp_path: Path) -> None:
    assert given.read(plain, 1).path == plain
    assert given.read(plain.parent, 1).path == plain
    (tmp_path / "pipeline").mkdir()
    plain.parent.rename(tmp_path / "pipeline" / "unet")
    found = given.read(tmp_path / "pipeline", 1)
    assert (found.name, found.bytes()) == ("pipeline", found.path.stat().st_size)
    assert found.path == tmp_path / "pipeline" / "unet" / "model.onnx"


def test_inputs_that_are_not_the_denoisers_are_refused_with_what_was_seen(
    plain: Path, prepared: Prepared, tmp_path: Path
) -> None:
    model, path = onnx.load(plain), tmp_path / "more.onnx"
    model.graph.input.append(helper.make_tensor_value_info("time_ids", TensorProto.FLOAT, [1, 6]))
    onnx.save(model, path)
    with pytest.raises(
        UserError, match=r"input 'time_ids' tensor\(float\) \[1, 6\] may be none of these; .* fed sample"
    ):
        feeds(session(path, 1), path, prepared.inputs)
    more = {**prepared.inputs, "text_embeds": np.zeros((4, 32), np.float32)}
    with pytest.raises(UserError, match="has no input for text_embeds"):
        feeds(session(plain, 1), plain, more)


def test_two_inputs_alike_are_told_apart_by_name_alone(plain: Path, tmp_path: Path) -> None:
    asked = {name: np.zeros((2, 32), np.float32) for name in ("text_embeds", "time_ids")}
    for names in (("text_embeds", "time_ids"), ("text_embeds", "b"), ("a", "b")):
        inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "d"]) for name in names]
        output = helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["n", "d"])
        graph = helper.make_graph([helper.make_node("Add", names, ["sum"])], "two", inputs, [output])
        path = tmp_path / "two.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
        if "text_embeds" in names:
            assert [feed.role for feed in feeds(session(path, 1), path, asked)] == ["text_embeds", "time_ids"]
        else:
            with pytest.raises(UserError, match="may be text_embeds or time_ids"):
                feeds(session(path, 1), path, asked)


def test_what_is_no_file_to_judge_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    (tmp_path / "empty").mkdir()
    for name, said in (
        ("broken.onnx", "does not load in ONNX Runtime"),
        ("empty", "holds 0 ONNX files"),
        ("absent", "does not exist"),
    ):
        with pytest.raises(UserError, match=said):
            given.read(tmp_path / name, 1)


def test_the_measurements_that_need_no_base_decide(plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = ("check", "demo", "--lora", "flat", "--artifact", str(plain), "--max-probes", "4")
    result = run(*asked, "--no-build", "--json", "--out", str(out))
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    (case,) = report["cases"]
    assert (case["verdict"], case["order"], case["quantized_layers"]) == ("PASS", "as given", None)
    assert not [m for m in case["measurements"] if measurement.find(m["name"]).compares(m["arm"])]
    seen = {(m["name"], m["arm"]): m for m in case["measurements"]}
    assert seen["effect_survival", "adapted"]["value"] == pytest.approx(1.0, abs=1e-3)
    assert any("no base artifact" in item["reason"] for item in report["not_measured"])
    assert report["spec"]["artifacts"] == [str(plain)]
    assert qcheck.audit(out).code == 0


def test_the_base_itself_as_an_artifact_has_lost_the_adapter(
    prepared: Prepared, demo_arms: Arms, tmp_path: Path
) -> None:
    path = tmp_path / "base.onnx"
    qdq.save(sites.fill(prepared.graph, demo_arms.state("base")), path)
    result = run("check", "demo", "--lora", "flat", "--artifact", str(path), "--no-build", "--out", str(tmp_path / "o"))
    assert result.exit_code == 1
    assert "NEEDS-QAT" in result.output
    assert "effect_survival (adapted)" in " ".join(result.output.split()).split("because", 1)[1]


def test_tensors_outside_the_file_are_part_of_it(plain: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one" / "a.onnx", tmp_path / "two" / "a.onnx"
    for path in (one, two):
        path.parent.mkdir()
        onnx.save(
            onnx.load(plain), path, save_as_external_data=True, all_tensors_to_one_file=False, size_threshold=1024
        )
    assert given.read(one, 1).digest == given.read(two, 1).digest
    part = given.read(two, 1).parts[-1]
    part.write_bytes(bytes(part.stat().st_size))
    assert given.read(one, 1).digest != given.read(two, 1).digest
    assert given.read(one, 1).bytes() > 15e6


def test_a_file_of_another_size_or_with_whole_timesteps_is_refused_before_anything_runs(
    plain: Path, tmp_path: Path
) -> None:
    shapes = {"sample": ["b", 4, 16, 24], "timestep": [1], "encoder_hidden_states": ["b", 16, 128]}
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    output = helper.make_tensor_value_info("out_sample", TensorProto.FLOAT, shapes["sample"])
    node = helper.make_node("Identity", ["sample"], ["out_sample"])
    graph = helper.make_graph([node], "denoiser", inputs, [output])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "wide.onnx"
    )
    asked = ("check", "demo", "--lora", "flat", "--no-build", "--out", str(tmp_path / "out"), "--artifact")
    result = run(*asked, str(tmp_path / "wide.onnx"))
    assert "is fixed to 4 x 16 x 24, the probes ask 4 x 16 x 16" in str(result.exception)
    assert "is named twice" in str(run(*asked, str(plain), "--artifact", str(plain)).exception)
    assert not (tmp_path / "out").exists()
