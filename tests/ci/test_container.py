"""Containerfile: what it copies is there and is all that the wheel is built from, and it runs as nobody special."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from qcheck.core.values import PACKAGE

ROOT = PACKAGE.parent
FILE = ROOT / "Containerfile"
HADOLINT = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")  # of `[dev]`
STEPS = [line.split(maxsplit=1) for line in FILE.read_text("utf-8").splitlines() if line and not line.startswith("#")]


def _of(instruction: str) -> list[str]:
    return [rest for name, rest in STEPS if name == instruction]


def test_every_step_is_known_and_the_first_names_a_version() -> None:
    assert {name for name, _ in STEPS} <= {"FROM", "RUN", "WORKDIR", "COPY", "ENV", "USER", "ENTRYPOINT", "CMD"}
    assert STEPS[0][0] == "FROM"
    assert re.fullmatch(r"docker\.io/\S+:\d\S+", STEPS[0][1])
    assert json.loads(_of("ENTRYPOINT")[0]) == ["qcheck"]
    user = _of("USER")[-1]  # a number, so that a host that forbids root can tell that it is not
    assert any(f"--uid {user} " in run for run in _of("RUN"))
    assert all("--no-cache-dir" in run for run in _of("RUN") if "pip install" in run)


def test_what_the_wheel_is_built_from_is_copied() -> None:
    copied = {name for rest in _of("COPY") for name in rest.split()[:-1]}
    assert all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    files = {"pyproject.toml", "constraints.txt", project["project"]["readme"]}
    assert files | {*wheel["packages"], *wheel["force-include"]} <= copied
    (extras,) = re.findall(r"'\.\[([\w,]+)\]'", " ".join(_of("RUN")))
    assert set(extras.split(",")) <= set(project["project"]["optional-dependencies"])


@pytest.mark.skipif(HADOLINT is None, reason="no hadolint")
def test_hadolint_finds_nothing() -> None:
    done = subprocess.run([str(HADOLINT), str(FILE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
