"""The device's build script: what it calls trtexec with, for each release whose options are documented."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qcheck.build import script as device
from qcheck.build.script import Trtexec
from qcheck.spec import target

SHAPES = {
    "unet": {"sample": ([1, 4, 8, 16], [2, 4, 16, 16], [2, 4, 32, 16]), "encoder_hidden_states": ([1, 77, 768],) * 3},
    "text_encoder": {"input_ids": ([1, 77], [2, 77], [2, 77])},
}
ORIN = target.find("jetson-agx-orin-64gb")
FAKE = """#!/usr/bin/env bash
if [[ "$1" == --help ]]; then
    echo "&&&& RUNNING TensorRT.trtexec [TensorRT v{code}] [b9] # trtexec --help"
    exit 0
fi
printf '%s\\n' "$@" >> "{log}"
"""


def _run(folder: Path, code: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """The script beside a trtexec that says it is of that version and writes down what it is called with."""
    script, log, fake = folder / device.SCRIPT, folder / "log", folder / "trtexec"
    script.write_text(device.script(ORIN, SHAPES), "utf-8")
    fake.write_text(FAKE.format(code=code, log=log), "utf-8")
    fake.chmod(0o755)
    env = {"TRTEXEC": str(fake), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["bash", str(script)], check=False, env=env, capture_output=True, text=True)
    return done, log.read_text("utf-8").splitlines() if log.exists() else []


def _greeting(release: Trtexec) -> str:
    return str(release.version[0] * 10000 + release.version[1] * 100)


@pytest.mark.parametrize("release", device.releases(), ids=lambda release: release.name)
def test_every_option_is_documented_for_the_release_and_does_something(release: Trtexec, tmp_path: Path) -> None:
    done, called = _run(tmp_path, _greeting(release))
    assert done.returncode == 0, done.stderr
    used = {argument.partition("=")[0] for argument in called}
    assert used <= set(release.options)
    assert not used & set(release.removed)
    assert ("--stronglyTyped" in used) == (release.version < (11,))
    assert {"--onnx=unet/model.onnx", "--saveEngine=engines/unet.engine"} <= set(called)
    assert "--minShapes=sample:1x4x8x16,encoder_hidden_states:1x77x768" in called
    assert "--maxShapes=sample:2x4x32x16,encoder_hidden_states:1x77x768" in called
    assert called.count("--timingCacheFile=engines/timing.cache") == len(SHAPES)


@pytest.mark.parametrize("code", ["100305", "101602", "110401", "120000"])
def test_releases_between_and_after_the_documented_ones_are_built_like_the_last_before(
    code: str, tmp_path: Path
) -> None:
    done, called = _run(tmp_path, code)
    assert done.returncode == 0
    assert ("--stronglyTyped" in called) == (code < "110000")


def test_the_denoiser_of_a_shared_engine_is_built_to_be_refitted() -> None:
    text = device.script(ORIN, SHAPES, ["unet"])
    assert [line for line in text.splitlines() if "--refit" in line] == ["    --refit \\"]
    assert text.index("build unet") < text.index("--refit") < text.index("build text_encoder")
    assert "--refit" not in device.script(ORIN, SHAPES)


@pytest.mark.parametrize("code", ["8502", "100001", "x"])
def test_a_release_without_strongly_typed_networks_or_unknown_is_an_error(code: str, tmp_path: Path) -> None:
    done, called = _run(tmp_path, code)
    assert (done.returncode, called) == (2, [])
    assert "is not 10.3 or newer" in done.stderr
    assert not (tmp_path / "engines").exists()


def test_no_trtexec_is_an_error_that_says_what_to_set(tmp_path: Path) -> None:
    script = tmp_path / device.SCRIPT
    script.write_text(device.script(ORIN, SHAPES), "utf-8")
    env = {"TRTEXEC": str(tmp_path / "absent"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["bash", str(script)], check=False, env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert "set TRTEXEC" in done.stderr


def test_the_script_passes_linters(tmp_path: Path) -> None:
    script = tmp_path / device.SCRIPT
    script.write_text(device.script(ORIN, SHAPES), "utf-8")
    linters = [["bash", "-n"], [sys.executable, "-m", "bashate.bashate", "--max-line-length=200"]]
    if shellcheck := shutil.which("shellcheck"):
        linters.append([shellcheck, "--enable=all", "--severity=style"])
    for linter in linters:
        done = subprocess.run([*linter, str(script)], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_release_of_every_target_that_builds_has_documented_options_before_it() -> None:
    oldest = device.releases()[0].version
    for found in target.every_target():
        for release in found.releases:
            if release.strongly_typed:
                assert tuple(map(int, release.tensorrt.split(".")))[:2] >= oldest[:2]
