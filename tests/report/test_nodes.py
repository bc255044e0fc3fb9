"""Node data for Model Explorer: keys are nodes of the graph, values the report's shares, the form is the package's."""

import errno
import json
import os
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from qcheck.core import files
from qcheck.core.errors import UserError
from qcheck.model.components import MODULE
from qcheck.quantize import sites
from qcheck.result.report import REPORT, Case
from qcheck.tasks import nodes
from tests import reports
from tests.conftest import Finished, run
from tests.hostile import ONNX, harmless, refused, saved

SHARES = {"down.attn.to_q": 0.75, "mid.conv": 0.25}


def _case(*shares: tuple[str, float]) -> Case:
    common = {"block": "b", "kind": "k", "standard_error": 0.0, "weight": 0.0, "activation": 0.0}
    layers = [common | {"name": name, "share": share} for name, share in shares]
    path = "artifacts/int8/merge-quantize/unet/model.onnx"
    file = {"path": path, "arm": "adapted", "compute": "float16", "digest": "0", "bytes": 1}
    return Case.model_validate(reports.case(layers=layers, artifact=[file]))


def _graph(folder: Path) -> Path:
    """A graph with a MatMul of one layer, a Conv of another and a MatMul of no layer."""
    made = [
        onnx.helper.make_node(kind, ["x", "w"], [name], name=name)
        for kind, name in (("MatMul", "q"), ("MatMul", "scores"), ("Conv", "c"), ("Relu", "r"))
    ]
    for node, layer in zip(made, ("down.attn.to_q", "down.attn", "mid.conv", "mid.conv"), strict=True):
        property_ = node.metadata_props.add()
        property_.key, property_.value = sites.SCOPES, str(["", MODULE, f"{MODULE}.{layer}", "op"])
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("x", "w", "q")]
    path = folder / "artifacts" / "int8" / "merge-quantize" / "unet" / "model.onnx"
    path.parent.mkdir(parents=True)
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(made, "g", values[:2], values[2:])), path)
    return path


def test_a_layers_share_is_on_the_node_that_computes_it(tmp_path: Path) -> None:
    path = _graph(tmp_path)
    data = nodes.node_data(_case(*SHARES.items(), ("not.in.the.graph", 0.0)), tmp_path)
    assert data["results"] == {"q": {"value": 75.0}, "c": {"value": 25.0}}
    assert set(data["results"]) <= {node.name for node in ir.load(path).graph}
    assert [stop["stop"] for stop in data["gradient"]] == [0, 1]


def test_the_form_is_that_of_the_package(tmp_path: Path) -> None:
    builder = pytest.importorskip("model_explorer.node_data_builder")
    _graph(tmp_path)
    data = nodes.node_data(_case(*SHARES.items()), tmp_path)
    results = {name: builder.NodeDataResult(**one) for name, one in data["results"].items()}
    gradient = [builder.GradientItem(**one) for one in data["gradient"]]
    theirs = json.loads(builder.GraphNodeData(results=results, gradient=gradient).to_json_string())
    assert {name: theirs[name] for name in data} == data


def test_what_has_no_shares_or_no_graph_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no shares"):
        nodes.node_data(_case(), tmp_path)
    with pytest.raises(UserError, match=r"no model\.onnx"):
        nodes.node_data(_case(*SHARES.items()), tmp_path)
    _graph(tmp_path)
    with pytest.raises(UserError, match="none of the layers"):
        nodes.node_data(_case(("other", 1.0)), tmp_path)


def _error(folder: Path, out: Path) -> None:
    error = run("nodes", str(folder), "-o", str(out)).exception
    assert error is not None
    raise error


def _folder(place: Path, *cases: Case) -> Path:
    """The folder of a report of those cases, with the graph of each."""
    _graph(place)
    made = reports.report(*(case.model_dump(mode="json") for case in cases))
    (place / REPORT).write_text(made.to_json(), "utf-8")
    return place


def test_the_command_takes_a_folder_or_its_report_and_writes_a_file_of_each_case(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "check", _case(*SHARES.items()))
    (tmp_path / "empty").mkdir()
    for given, out in ((folder, tmp_path / "deep" / "new"), (folder / REPORT, tmp_path / "empty")):
        result = run("nodes", str(given), "--out", str(out))
        assert result.exit_code == 0, result.output
        (path,) = out.iterdir()
        assert " ".join(result.stdout.split()) == f"{path} 2 layers"
        assert json.loads(path.read_text())["results"] == {"q": {"value": 75.0}, "c": {"value": 25.0}}


@pytest.mark.parametrize("name", ONNX)
def test_a_graph_that_means_harm_is_one_error_or_none_of_the_layers(name: str, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "check", _case(*SHARES.items()))
    path = folder / "artifacts" / "int8" / "merge-quantize" / "unet" / "model.onnx"
    model = saved(ONNX[name][0], tmp_path)
    for beside in model.parent.iterdir():
        beside.rename(path if beside == model else path.parent / beside.name)
    refused(lambda: _error(folder, tmp_path / "out"), tmp_path, "model.onnx")


@pytest.mark.parametrize("scheme", ["../../elsewhere", "/elsewhere", "a\0b", "x" * 300])
def test_a_scheme_of_a_report_leads_to_no_other_folder(scheme: str, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "check", _case(*SHARES.items()).model_copy(update={"scheme": scheme}))
    refused(lambda: _error(folder, tmp_path / "out"), tmp_path, "no name for a file")


def test_what_is_there_already_stays_and_what_breaks_off_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = _case(*SHARES.items())
    folder = _folder(tmp_path / "check", case, case.model_copy(update={"scheme": "int8-all"}))
    written: list[Path] = []

    def write(path: Path, content: str) -> None:
        if written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        path.write_text(content)
        written.append(path)

    for out in (tmp_path / "file", tmp_path / "full" / "x"):
        out.parent.mkdir(exist_ok=True)
        out.write_text("mine")
    for name, said in (("file", "is a file"), ("full", "is not empty")):
        refused(lambda name=name: _error(folder, tmp_path / name), tmp_path, said)  # type: ignore[misc]
    monkeypatch.setattr(files, "write", write)
    with harmless(tmp_path), pytest.raises(OSError, match="No space"):
        _error(folder, tmp_path / "out")
    assert len(written) == 1


@pytest.mark.slow  # a whole check
def test_every_layer_of_a_real_check_is_a_node(finished: Finished, tmp_path: Path) -> None:
    result = run("nodes", str(finished.folder), "--out", str(tmp_path / "nodes"))
    assert result.exit_code == 0, result.output
    (path,) = (tmp_path / "nodes").iterdir()
    assert path.name == "int8-merge-quantize.json"
    shares = [layer["share"] for layer in finished.report["cases"][0]["layers"]]
    values = [one["value"] for one in json.loads(path.read_text())["results"].values()]
    assert sorted(values) == pytest.approx(sorted(100 * share for share in shares))
