""".pre-commit-hooks.yaml: what pre-commit accepts, and what its entry says of the files that are given."""

import re
import shlex
from pathlib import Path
from typing import Any

import yaml
from typer.testing import Result

from qcheck.core.values import PACKAGE
from qcheck.demo import library
from tests.conftest import run

ROOT = PACKAGE.parent
(HOOK,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text("utf-8"))
KEYS = {"id", "name", "description", "entry", "language", "additional_dependencies", "files", "require_serial"}


def _configured() -> dict[str, Any]:
    """The hook of the configuration in docs/ci.md."""
    blocks = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs" / "ci.md").read_text("utf-8"), re.M | re.S)
    (hook,) = next(one["repos"][0]["hooks"] for one in map(yaml.safe_load, blocks) if "repos" in one)
    return dict(hook)


def _hooked(*files: Path) -> Result:
    """What pre-commit runs: the entry, the page's arguments with the demo's base, the files."""
    arguments = [{"./pipeline": "demo"}.get(one, one) for one in _configured()["args"]]
    command, *words = shlex.split(HOOK["entry"])
    assert command == "qcheck"
    return run(*words, *arguments, *map(str, files))


def test_the_hook_has_what_pre_commit_asks_for() -> None:
    assert set(HOOK) == KEYS
    assert HOOK["id"] == _configured()["id"]
    for name, taken in (("a/b.safetensors", True), ("b.safetensors.json", False), ("report.json", False)):
        assert bool(re.search(HOOK["files"], name)) == taken


def test_a_healthy_and_an_unreadable_adapter_are_told_apart(tmp_path: Path) -> None:
    flat, faint = (library.ADAPTERS / f"{name}.safetensors" for name in ("flat", "faint"))
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    healthy = _hooked(flat, faint)
    assert healthy.exit_code == 0, healthy.output
    assert "flat" in healthy.output
    assert "faint" in healthy.output
    assert _hooked(flat, broken).exit_code == 2
