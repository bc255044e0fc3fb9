"""Files of strangers: each that means harm ends in one error, writes nothing, and takes neither memory nor time."""

import io
import json
import os
import sys
import zlib
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from rich.control import Control
from rich.text import Text

from qcheck.api.inspection import inspect
from qcheck.calibration import pictures
from qcheck.cli import app, terminal
from qcheck.cli.progress import Bars
from qcheck.core import files, folder
from qcheck.device import main as verifier
from qcheck.device import page
from qcheck.model import tensor_file
from qcheck.quantize import given
from qcheck.report import html, junit, markdown, text
from qcheck.result.report import Report
from qcheck.spec import probe
from tests import hostile, reports
from tests.conftest import run
from tests.hostile import harmless, refused, safetensors, written

RED, TITLE, TURNED = "\x1b[31mred", "\x1b]0;title\x07", "\u202egnp.exe"
SEQUENCES = f"{RED}{TITLE}\x9b31m{TURNED}\x00<script>alert(1)</script>"
UNSEEN = ("\x1b", "\x07", "\x9b", "\u202e", "\x00")


def _error(*arguments: str) -> BaseException:
    result = run(*arguments)
    assert result.exception is not None
    raise result.exception


# Adapters


@pytest.mark.parametrize("name", hostile.ADAPTERS)
def test_an_adapter_that_means_harm_is_refused(name: str, tmp_path: Path) -> None:
    content, said = hostile.ADAPTERS[name]
    path = written(tmp_path / "lora.safetensors", content)
    refused(lambda: inspect(path), tmp_path, said)


@pytest.mark.parametrize("name", hostile.IGNORED)
def test_metadata_that_is_no_list_of_tags_is_none(name: str, tmp_path: Path) -> None:
    path = written(tmp_path / "lora.safetensors", hostile.IGNORED[name])
    with harmless(tmp_path):
        found = inspect(path)
    assert found.tags == {}
    assert len(found.layers) == 1


@pytest.mark.parametrize("name", ["lora.safetensors", "lora.bin", "adapter_model.safetensors"])
def test_a_pipe_is_no_adapter(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    refused(lambda: inspect(str(tmp_path / name)), tmp_path, "does not exist")
    refused(lambda: tensor_file.tensors(tmp_path / name), tmp_path, "no such file")


# ONNX


@pytest.mark.parametrize("name", hostile.ONNX)
def test_an_onnx_file_that_means_harm_is_refused(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made, said = hostile.ONNX[name]
    path = hostile.saved(made, tmp_path)
    refused(lambda: given.read(path, 1), tmp_path, said)
    assert capfd.readouterr().err == ""  # the runtime's own log would be a second error


def test_a_model_of_the_hub_cache_is_read_through_its_links(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "a").write_bytes(hostile.model(tensors=[hostile.outside("w.bin")]).SerializeToString())
    (blobs / "b").write_bytes(bytes(16))
    for name, blob in (("model.onnx", "a"), ("w.bin", "b")):
        (snapshot / name).symlink_to(f"../../blobs/{blob}")
    assert given.read(snapshot / "model.onnx", 1).parts == (snapshot / "model.onnx", snapshot / "w.bin")


def test_a_place_that_no_tensor_is_read_from_is_not_read(tmp_path: Path) -> None:
    """A tensor inside of the file with a location would have put /etc/passwd into the digest."""
    tensor = hostile.outside("/dev/zero")
    tensor.ClearField("data_location")
    tensor.raw_data = bytes(16)
    path = hostile.saved(hostile.model(tensors=[tensor]), tmp_path)
    with harmless(tmp_path):
        assert given.read(path, 1).parts == (path,)


@pytest.mark.parametrize("rows", [2**40, 1025])
def test_a_batch_that_nothing_fills_is_refused(rows: int, tmp_path: Path) -> None:
    made = hostile.model(tensors=[])
    made.graph.node[0].input[1] = "sample"
    made.graph.input[0].type.tensor_type.shape.dim[0].dim_value = rows
    made.graph.output[0].type.tensor_type.shape.dim[0].dim_value = rows
    path = hostile.saved(made, tmp_path)

    def fit() -> object:
        inputs = {"sample": np.zeros((2, 4), np.float32), "timestep": np.ones(2, np.float32)}
        return given.fitted(given.read(path, 1), inputs, "sample", [1.0], 1)

    refused(fit, tmp_path, "fixed to 1025 rows" if rows == 1025 else "fits no memory")


def test_a_file_that_fails_when_it_runs_is_refused(tmp_path: Path) -> None:
    node = hostile.helper.make_node("Reshape", ["sample", "w"], ["y"])
    shape = hostile.TensorProto(name="w", data_type=hostile.TensorProto.INT64, dims=(2,), int64_data=[7, 7])
    path = hostile.saved(hostile.model([node], [shape]), tmp_path)
    file = given.Given(**vars(given.read(path, 1)), feeds=(), compute="float32")
    inputs = {"sample": np.zeros((2, 4), np.float32)}
    refused(lambda: given.require_runs(file, inputs, "sample", frozenset()), tmp_path, "does not run")


# TOML and JSON


@pytest.mark.parametrize("option", ["--scheme", "--target", "--recipe", "--limits", "--probes", "--config"])
@pytest.mark.parametrize("name", hostile.TOML)
def test_toml_that_means_harm_is_refused(name: str, option: str, tmp_path: Path) -> None:
    path = written(tmp_path / "hostile.toml", hostile.TOML[name])
    asked = ("check", "demo", "--lora", "flat", option, path, "--out", str(tmp_path / "out"))
    refused(lambda: _error(*asked), tmp_path, hostile.TOML_SAID.get(name, path))


@pytest.mark.parametrize("name", hostile.TOML)
def test_a_plan_that_means_harm_is_refused(name: str, tmp_path: Path) -> None:
    path = written(tmp_path / "plan.toml", hostile.TOML[name])
    refused(lambda: _error("sweep", path, "--out", str(tmp_path / "out")), tmp_path, "plan")


@pytest.mark.parametrize("name", hostile.JSON)
def test_json_that_means_harm_is_refused(name: str, tmp_path: Path) -> None:
    path, out = written(tmp_path / "report.json", hostile.JSON[name]), str(tmp_path / "out")
    written(tmp_path / "lines.jsonl", hostile.JSON[name])
    check = ("check", "demo", "--lora", "flat")
    for asked in (
        ("compare", path, path),
        ("report", path),
        ("report", "--merge", path, "tests/report/folder"),
        ("advise", path),
        (*check, "--ranges", path, "--out", out),
        (*check, "--overwrite", "--out", str(tmp_path)),
        ("sweep", "demo", "--lora", str(tmp_path / "lines.jsonl"), "--out", out),
    ):
        refused(lambda asked=asked: _error(*asked), tmp_path, str(tmp_path))  # type: ignore[misc]


@pytest.mark.parametrize("command", ["report", "compare"])
def test_a_pipe_in_place_of_a_report_is_not_waited_for(command: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "report.json")
    refused(lambda: _error(command, str(tmp_path / "report.json")), tmp_path, "report.json")
    assert not folder.ours(tmp_path / "report.json")


def test_a_file_larger_than_any_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    with path.open("wb") as stream:
        stream.truncate(2**40)  # a hole, which takes no disk
    refused(lambda: _error("compare", str(path), str(path)), tmp_path, "larger than")
    with pytest.raises(OSError, match="larger than"):
        files.read_toml(path)


# Prompts and pictures


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a cat\x00", "control character"),
        ("a \x1b[31mcat", "control character"),
        ("a\x9bcat", "control character"),
        ("\ud800", "control character"),
        ("x" * 10**6, "of at most"),
    ],
)
def test_a_prompt_that_no_encoder_reads_is_refused(prompt: str, said: str, tmp_path: Path) -> None:
    general = probe.find("general")
    refused(lambda: probe.from_prompts(["a dog", prompt], general), tmp_path, said)
    refused(lambda: probe.triggered(general, prompt), tmp_path, said)
    for wrong in ({"prompts": [prompt]}, {"negative": prompt}):
        with pytest.raises(ValueError, match=said):
            probe.ProbeSet.model_validate(general.model_dump() | wrong)
    if not prompt.startswith("\ud800"):
        path = Path(written(tmp_path / "prompts.txt", f"a dog\n{prompt}"))
        refused(lambda: probe.from_text(path, general), tmp_path, "prompts")


def test_letters_of_every_direction_are_prompts() -> None:
    prompts = ["חתול\u200f", "قطة", "👩\u200d🚀", TURNED, "two\nlines"]
    assert probe.from_prompts(prompts, probe.find("general")).prompts == tuple(prompts)


@pytest.mark.parametrize("caption", [b"\xff\xfe", b"a \x1b[31mcat", b"x" * 10**6])
def test_a_caption_that_no_encoder_reads_is_refused(caption: bytes, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    written(tmp_path / "a.txt", caption)
    refused(lambda: pictures.find(tmp_path), tmp_path, "caption")


@pytest.mark.parametrize("sides", [(30_000, 30_000), (2**31 - 1, 2**31 - 1)])
def test_a_picture_that_claims_to_be_huge_is_not_unpacked(sides: tuple[int, int], tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    content = bytearray(stream.getvalue())
    content[16:24] = b"".join(side.to_bytes(4, "big") for side in sides)
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path = Path(written(tmp_path / "a.png", bytes(content)))
    refused(lambda: pictures.read(path), tmp_path, "a.png")


# What is shown


def _report() -> Report:
    case = reports.case(next=SEQUENCES, reasons=[SEQUENCES], warnings=[SEQUENCES])
    return reports.report(case, target=SEQUENCES, not_measured=[{"name": SEQUENCES, "reason": SEQUENCES}])


def test_a_report_of_sequences_changes_no_terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text.render(_report(), tmp_path, terminal.console(width=100))
    shown = capsys.readouterr().out
    assert "red" in shown
    assert not [mark for mark in UNSEEN if mark in shown]


def test_colours_of_the_console_itself_arrive(capsys: pytest.CaptureFixture[str]) -> None:
    console = terminal.console(force_terminal=True, color_system="standard")
    console.print(Control.home(), Text(RED, "bold green"))
    shown = capsys.readouterr().out
    assert "\x1b[H" in shown
    assert "\x1b[1;32m" in shown
    assert "\ufffd[31mred" in shown


def test_an_adapter_of_sequences_changes_no_terminal(tmp_path: Path) -> None:
    tags = json.dumps({"a": {SEQUENCES: 2, "x" * 10**6: 1}})
    layers = {f"{RED}.lora_A.weight": hostile.entry(), f"{RED}.lora_B.weight": hostile.SECOND}
    path = written(tmp_path / "lora.safetensors", safetensors({"__metadata__": {"ss_tag_frequency": tags}, **layers}))
    result = run("inspect", path, "--details")
    assert result.exit_code == 0, result.output
    assert "trigger words" in result.output
    assert len(result.output) < 10_000
    assert not [mark for mark in UNSEEN if mark in result.output]


def test_an_error_of_sequences_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(
        tmp_path / "lora.safetensors", safetensors({f"{SEQUENCES}{'x' * 10**6}": hostile.entry()}, bytes(32))
    )
    monkeypatch.setattr(sys, "argv", ["qcheck", "inspect", path])
    with pytest.raises(SystemExit) as ended:
        app.main()
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.startswith("error: ")
    assert error.count("fix:") == 1
    assert "Traceback" not in error
    assert len(error) < 10_000
    assert not [mark for mark in UNSEEN if mark in error]


def test_a_page_and_an_xml_of_sequences_hold_what_their_formats_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "_vega", lambda: "")  # megabytes of the library's own
    report = _report()
    page_text = html.render(html.Source(report, None, [], {}, {}))
    document = junit.render(report)
    ElementTree.fromstring(document)  # noqa: S314  # our own
    for shown in (page_text, document, markdown.render(report)):
        assert not [mark for mark in UNSEEN if mark in shown and mark != "\u202e"]
        assert "<script>alert" not in shown


def test_a_stage_of_sequences_changes_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Bars(terminal.console()).stage(SEQUENCES, 1) as advance:
        advance(1)
    shown = capsys.readouterr().out
    assert "red" in shown
    assert not [mark for mark in UNSEEN if mark in shown]


def test_a_board_shows_no_sequences(capsys: pytest.CaptureFixture[str]) -> None:
    verifier.say(SEQUENCES)
    assert not [mark for mark in UNSEEN if mark in capsys.readouterr().err]
    assert page.visible(SEQUENCES).startswith("\ufffd[31mred")
