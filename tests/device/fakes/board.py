"""Makes a fake board in a folder: ``site`` for Python, ``lib`` for CUDA's runtime, ``bin`` for trtexec.

    made = board.make(tmp_path, "10.3.0")
    made.use(monkeypatch)                # this process, its children, and its dynamic linker's path
    made.fail(kill_from=2)               # the builder is killed at optimization levels 2 and above
    subprocess.run([made.python(), "-I", "verify.pyz", ...])  # a Python that has the board's packages as its own

Faults: refuse=NODE, kill_from, crash_from and no_plan_from=LEVEL, build_seconds, run_seconds; types={binding: TYPE},
no_context, fails, silent (outputs are not written), late (another thread writes them), nan, fell_back, fused;
compute_ms. Variables: FAKE_CUDA_ERROR=CODE of cudaMalloc, FAKE_CUDA_MAJOR=11 for a GPU of capability 11.0.
"""

import atexit
import functools
import json
import os
import shutil
import site
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qcheck.build import script

FACES = ("8.6.1", "10.3.0", "10.16.2", "11.1.0")
_FAKES = Path(__file__).parent
_ROOT = _FAKES.parents[2]
needs_compiler = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc here: CUDA's runtime is compiled")


@dataclass(frozen=True)
class FakeBoard:
    """A fake board in ``folder`` with TensorRT ``version``."""

    folder: Path
    version: str

    @property
    def site(self) -> Path:
        return self.folder / "site"

    @property
    def trtexec(self) -> Path:
        return self.folder / "bin" / "trtexec"

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a shell on the board."""
        return {
            "PYTHONPATH": os.pathsep.join([str(self.site), str(_ROOT)]),
            "LD_LIBRARY_PATH": str(self.folder / "lib"),
            "TRTEXEC": str(self.trtexec),
        }

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make this process one of the board."""
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.syspath_prepend(str(self.site))
        for name in ("tensorrt", "tensorrt.graph"):
            monkeypatch.setitem(sys.modules, name, sys)  # so that what is imported is gone after the test
            del sys.modules[name]

    def fail(self, **faults: Any) -> None:
        """Let things go wrong from now on, in the ways that the module lists, and in no other."""
        for folder in (self.site / "tensorrt", self.folder / "bin"):
            if folder.exists():
                (folder / "faults.json").write_text(json.dumps(faults), "utf-8")

    @property
    def seen(self) -> list[dict[str, Any]]:
        """What the builder was asked, one entry a build."""
        path = self.site / "tensorrt" / "seen.json"
        return json.loads(path.read_text("utf-8")) if path.exists() else []

    @property
    def calls(self) -> list[str]:
        """The command lines of trtexec."""
        path = self.folder / "bin" / "calls.txt"
        return path.read_text("utf-8").splitlines() if path.exists() else []

    def python(self) -> Path:
        """A Python whose own packages are the board's, so that ``python -I`` has them too."""
        place = self.folder / "python"
        if not place.exists():
            venv.EnvBuilder(symlinks=True, with_pip=False).create(place)
            packages = next(place.glob("lib/python*/site-packages"))
            (packages / "board.pth").write_text("\n".join([str(self.site), *site.getsitepackages()]) + "\n", "utf-8")
        return place / "bin" / "python"


def make(folder: Path, version: str) -> FakeBoard:
    """A board with everything; ``version`` is one of ``FACES``."""
    board = FakeBoard(folder, version)
    library = cudart(folder / "lib")
    tensorrt(board.site, version, library)
    trtexec(folder / "bin", version)
    return board


def tensorrt(place: Path, version: str, library: Path) -> None:
    """The package ``tensorrt`` of a release in a folder of packages."""
    package = place / "tensorrt"
    package.mkdir(parents=True)
    shutil.copy(_FAKES / "tensorrt_fake.py", package / "__init__.py")
    shutil.copy(_FAKES / "graph.py", package / "graph.py")
    (package / "face.json").write_text(json.dumps({"version": version, "cudart": str(library)}), "utf-8")


def trtexec(place: Path, version: str) -> None:
    """The program ``trtexec`` of a release, with the options that its source has."""
    place.mkdir(parents=True)
    major, minor, patch = map(int, version.split("."))
    code = major * 10000 + minor * 100 + patch if major >= 10 else major * 1000 + minor * 100 + patch
    known = {release.name: release for release in script.releases()}.get(f"{major}.{minor}")
    options = [name for name in known.options if name not in known.removed] if known else ["--help"]
    face = {"version": version, "code": code, "options": options}
    (place / "trtexec.json").write_text(json.dumps(face), "utf-8")
    shutil.copy(_FAKES / "graph.py", place / "graph.py")
    program = place / "trtexec"
    program.write_text(f"#!{sys.executable}\n{(_FAKES / 'trtexec_fake.py').read_text('utf-8')}", "utf-8")
    program.chmod(0o755)


def cudart(place: Path) -> Path:
    """The library of CUDA's runtime."""
    place.mkdir(parents=True)
    return Path(shutil.copy(_compiled(), place / "libcudart.so"))


@functools.cache
def _compiled() -> Path:
    folder = tempfile.mkdtemp(prefix="qcheck-cudart-")
    atexit.register(shutil.rmtree, folder)
    place = Path(folder) / "libcudart.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", place, _FAKES / "cudart.c"], check=True)
    return place
