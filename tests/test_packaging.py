"""The wheel: it carries the data that stands at the top of the repository, the weights and the licences."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from qcheck.core.values import PACKAGE, data_folder
from qcheck.demo import library

ROOT = PACKAGE.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True)
    return next(folder.glob("*.whl"))


def test_targets_and_calibration_are_found_in_an_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "from qcheck.spec import target, recipe, scheme, probe; from qcheck.demo import library;"
        "print(target.FOLDER, len(target.every_target()), recipe.find('emoji').name, len(library.adapters()))"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    count = len(list((ROOT / "targets").glob("*.toml")))
    assert done.stdout.split() == [
        str(tmp_path / "qcheck" / "spec" / "data" / "targets"),
        str(count),
        "emoji",
        str(len(library.adapters())),
    ]


def test_targets_and_calibration_are_found_in_a_checkout() -> None:
    assert data_folder("targets") == ROOT / "targets"
    assert data_folder("calibration") == ROOT / "calibration"


def test_the_wheel_carries_weights_and_licences_within_the_budget(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert sum(entry.compress_size for entry in archive.infolist()) <= 12_000_000
    assert "qcheck/demo/licenses/ATTRIBUTION.md" in names
    assert {
        f"qcheck/report/html/{n}"
        for n in (
            "page.html.jinja",
            "pictures.html.jinja",
            "macros.html.jinja",
            "probes.html.jinja",
            "page.js",
            "divider.js",
            "probes.js",
            "style.css",
        )
    } <= names
    assert {f"qcheck/demo/licenses/{n}.txt" for n in ("Apache-2.0", "MIT", "CC-BY-4.0")} <= names
    assert {f"qcheck/demo/adapters/{n}.safetensors" for n in ("flat", "ink", "faint", "few")} <= names
