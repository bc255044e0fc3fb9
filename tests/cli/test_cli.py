"""The command line: help, errors, exit codes, and a folder that is whole or not there."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from qcheck.cli.app import app
from qcheck.core.digest import digest_of
from qcheck.core.errors import UserError
from qcheck.demo import library
from qcheck.sampling import sampler
from tests.conftest import Finished, run

FLAT = str(library.ADAPTERS / "flat.safetensors")
SHORT = ("--steps", "2", "--max-probes", "2")  # where an outcome does not depend on them


@pytest.mark.parametrize(
    "command", [(), ("check",), ("demo",), ("compare",), ("inspect",), ("doctor",), ("cache",), ("cache", "prune")]
)
def test_help_teaches(command: tuple[str, ...]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("check", "./missing", "--lora", FLAT), "does not exist"),
        (("check", "tests", "--lora", FLAT), "not a diffusers pipeline"),
        (("check", "demo", "--lora", "missing.safetensors"), "does not exist"),
        (("check", "demo", "--lora", "flot"), "Did you mean 'flat'"),
        (("check", "demo", "--lora", "flat", "--scheme", "int9"), "Did you mean 'int8'"),
        (("check", "demo", "--lora", "flat", "--target", "jetson-agx-orin-64"), "Did you mean 'jetson-agx-orin-64gb'"),
        (("check", "demo", "--lora", "flat", "--probes", "emojis"), "Did you mean 'emoji'"),
        (("check", "demo", "--lora", "flat", "--recipe", "emojis"), "Did you mean 'emoji'"),
        (("check", "demo", "--lora", "flat", "--order", "merge-quantise"), "Did you mean 'merge-quantize'"),
        (("check", "demo", "--lora", "flat", "--scheme", "int8", "--prompts", "none.txt"), r"none\.txt"),
        (("check", "demo", "--lora", "flat", "--probes", "emoji", "--prompts", "x"), "both --probes"),
        (("check", "demo", "--lora", "flat", "--weight", "1", "--weight", "2"), "1 adapters and 2 weights"),
        (("check", "demo", "--lora", "flat", "--with-lora", "ink=much"), "'much' is no number"),
        (("check", "demo", "--lora", "flat", "--max-probes", "65"), "beyond the last look"),
        (("check", "demo", "--lora", "flat", "--weight", "nan"), "finite number"),
        (("check", "demo", "--lora", "flat", "--weight", "0", *SHORT), "too small|only 0"),
        (("check", "demo", "--lora", "flat", "--weight", "0.0005", *SHORT), "of its size on these probes"),
    ],
)
def test_bad_input_is_one_error_and_leaves_nothing(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(*arguments, "--out", str(out), "--no-build")
    assert isinstance(result.exception, UserError)
    assert _matches(message, str(result.exception))
    assert list(tmp_path.iterdir()) == []


def _matches(message: str, text: str) -> bool:
    import re

    return re.search(message, text) is not None


def test_an_error_is_two_lines_exit_code_2_and_no_traceback() -> None:
    arguments = [sys.executable, "-m", "qcheck", "check", "demo", "--lora", "flot"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "error: unknown demo adapter 'flot'",
        "fix:   Did you mean 'flat'? Known: faint, few, flat, ink.",
    ]


@pytest.mark.parametrize("command", ["check", "demo", "export", "advise", "qat", "calibrate"])
def test_every_command_that_writes_can_replace(command: str) -> None:
    shown = run(command, "--help").output
    assert "--overwrite" in shown


def test_a_corrupt_adapter_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(Path(FLAT).read_bytes()[:1000])
    result = run("check", "demo", "--lora", str(path), "--out", str(tmp_path / "out"))
    assert isinstance(result.exception, UserError)
    assert not (tmp_path / "out").exists()


def test_a_demo_check_ends_in_files_and_a_verdict(finished: Finished) -> None:
    assert finished.result.exit_code == 0, finished.result.output
    written = {"report.json", "report.html", "report.md", "junit.xml", "evidence.json", "pictures", "contact.png"}
    written |= {"artifacts", "SHA256SUMS", "report.intoto.json"}
    assert {p.name for p in finished.folder.iterdir()} == written
    assert "PASS" in finished.result.stdout
    assert "limits: set on" in finished.result.stdout


def test_the_artifact_says_its_scheme_and_order(finished: Finished) -> None:
    import onnx

    folder = finished.folder / "artifacts" / "int8" / "merge-quantize"
    stored = onnx.load(folder / "unet" / "model.onnx")
    assert {p.key: p.value for p in stored.metadata_props}["qcheck.order"] == "merge-quantize"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["order"] == "merge-quantize"
    assert all(digest_of(folder / name) == digest for name, digest in manifest["files"].items())
    onnx.checker.check_model(stored, full_check=True)


def test_the_deployed_file_and_its_twin_hold_the_same_codes_and_scales(finished: Finished) -> None:
    import numpy as np
    import onnx_ir as ir

    folder = finished.folder / "artifacts" / "int8" / "merge-quantize"
    constants = [
        {
            name: value.const_value.numpy()
            for name, value in ir.load(path).graph.initializers.items()
            if value.const_value
        }
        for path in (folder / "unet" / "model.onnx", folder / "q1.twin.onnx")
    ]
    shared = [name for name in constants[0] if name.endswith(("/codes", "/scale")) and ".weight" in name]
    assert len(shared) > 300
    for name in shared:
        assert np.array_equal(constants[0][name].astype(np.float32), constants[1][name].astype(np.float32)), name
    assert {constants[0][name].dtype.name for name in shared} == {"int8", "float16"}
    steps = [sorted(float(v) for n, v in c.items() if n.endswith("/scale") and ".weight" not in n) for c in constants]
    assert steps[0] == steps[1]


def test_json_goes_alone_to_standard_output(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """On an adapter that is not finite, so that no artifact needs to be made."""
    tensors = {k: v.float() for k, v in load_file(FLAT).items()}
    path = tmp_path / "loud.safetensors"
    from safetensors import safe_open

    with safe_open(FLAT, "pt") as stream:
        metadata = stream.metadata()
    save_file({k: 3e37 * v if "lora_B" in k else v for k, v in tensors.items()}, path, metadata=metadata)
    arguments = ["check", "demo", "--lora", str(path), "--scheme", "int8", "--json", *SHORT]
    with pytest.raises(SystemExit) as ended:
        app([*arguments, "--out", str(tmp_path / "out")])
    printed = capfd.readouterr().out  # of the process, whoever wrote it
    found = json.loads(printed)
    assert found["cases"][0]["verdict"] == "FAIL-ADAPTER"
    assert found["cases"][0]["artifact"] == []
    assert ended.value.code == 1
    assert printed == (tmp_path / "out" / "report.json").read_text()
    audited = run("audit", str(tmp_path / "out"))
    assert audited.exit_code == 0, audited.output  # the verdict follows, of numbers that are not finite too


BARE = """
import importlib.abc, sys
class Nothing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {blocked}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Nothing())
from qcheck.cli.app import app
from typer.testing import CliRunner
for command in ([], ['check'], ['demo'], ['compare'], ['inspect'], ['doctor']):
    assert CliRunner().invoke(app, [*command, '--help']).exit_code == 0
found = CliRunner().invoke(app, ['doctor'])
assert found.exit_code == 0 and 'missing' in found.output and "'.[host]'" in found.output, found.output
from qcheck.core.errors import UserError
found = CliRunner().invoke(app, ['check', 'demo', '--lora', 'flat', '--out', 'never-made'])
assert isinstance(found.exception, UserError) and "'.[host" in found.exception.fix, found
import pathlib
assert not pathlib.Path('never-made').exists()
import qcheck.report.markdown, qcheck.report.junit, qcheck.report.text, qcheck.report.next_command
import qcheck.result.schema, qcheck.result.report, qcheck.judge.compare, qcheck.judge.verdict, qcheck.spec.command
from qcheck.spec import scheme, target
assert scheme.every() and target.every_target()
"""


def test_help_and_reports_work_without_any_heavy_library() -> None:
    blocked = {"torch", "diffusers", "transformers", "peft", "onnx", "onnx_ir", "onnxruntime", "tensorrt_rtx", "scipy"}
    subprocess.run([sys.executable, "-c", BARE.replace("{blocked}", repr(blocked))], check=True)


def test_an_interrupted_check_says_so_and_the_same_command_goes_on(
    tmp_path: Path, graphs_alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of q1's probes: nothing of the output stays, everything finished is found again."""
    from qcheck.diagnose import sensitivity

    calls, last = [0], [10**9]
    original = sampler.call

    def counted(*arguments: Any) -> Any:
        if calls[0] >= last[0]:
            raise KeyboardInterrupt
        calls[0] += 1
        return original(*arguments)

    monkeypatch.setattr(sampler, "call", counted)
    command = ("check", "demo", "--lora", "flat", "--scheme", "int4-g32", "--steps", "3", "--max-probes", "4")
    command = (*command, "--batch", "1", "--no-build", "--threads", "1")
    whole = run(*command, "--out", str(tmp_path / "whole"))
    needed = calls[0]
    for entries in (graphs_alone / "qcheck").iterdir():
        if entries.name != "graph":
            shutil.rmtree(entries)
    assert sensitivity.STATES > 4 * 3
    ahead = needed - 4 + 4 * 3  # four more to time one; sensitivity calls its own, at every state that there is
    assert f"1 case, 4 probes each, {ahead} denoiser calls; at " in whole.stderr
    calls[0], last[0] = 0, needed - 10
    stopped = run(*command, "--out", str(tmp_path / "out"))
    assert stopped.exit_code == 130
    assert "run the same command again to go on" in " ".join(stopped.output.split())
    assert not (tmp_path / "out").exists()
    calls[0], last[0] = 0, 10**9
    resumed = run(*command, "--out", str(tmp_path / "out"))
    assert 0 < calls[0] <= 10 + 6  # what was left, and at most the probe that was under way
    calls[0] = 0
    again = run(*command, "--out", str(tmp_path / "again"))
    assert calls[0] == 0
    assert "less what the cache holds" in again.stderr
    measured = [
        json.loads((tmp_path / name / "report.json").read_text())["cases"][0]["measurements"]
        for name in ("whole", "out", "again")
    ]
    assert measured[0] == measured[1] == measured[2]
    assert whole.exit_code == resumed.exit_code == again.exit_code


def test_a_demo_adapter_is_known_by_name_with_or_without_a_base() -> None:
    assert run("inspect", "faint").exit_code == 0


def test_a_size_the_autoencoder_cannot_decode_is_an_error(tmp_path: Path) -> None:
    found = run("check", "demo", "--lora", "flat", "--width", "70", "--no-build", "--out", str(tmp_path / "o"))
    assert isinstance(found.exception, UserError)
    assert "Take 68" in found.exception.fix


def test_numbers_from_decoded_values_are_named_as_not_measured_natively(tmp_path: Path) -> None:
    out = tmp_path / "o"
    given = ("demo", "flat", "--scheme", "nvfp4-wo", "--target", "jetson-thor-t5000", "--no-build", "--max-probes", "2")
    run(*given, "--out", str(out))
    report = json.loads((out / "report.json").read_text())
    assert report["cases"][0]["ran_as"] == "decoded twin"
    reasons = {item["name"]: item["reason"] for item in report["not_measured"]}
    assert "decoded values" in reasons["nvfp4-wo in its own arithmetic"]
