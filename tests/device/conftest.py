"""A bundle of the demo, made once; tests that damage it take a copy."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qcheck.tasks import pack
from tests.conftest import Finished, once


@dataclass(frozen=True)
class Bundled:
    """A bundle as a user gets it, with what the command printed."""

    folder: Path
    told: dict[str, Any]

    @property
    def facts(self) -> dict[str, Any]:
        """bundle.json."""
        facts: dict[str, Any] = json.loads((self.folder / "bundle.json").read_text("utf-8"))
        return facts


@pytest.fixture(scope="session")
def bundled(finished: Finished, cache_root: Path) -> Bundled:
    """``qcheck export demo --lora flat --scheme int8 --bundle``, of the case that ``finished`` checked."""
    assert finished.result.exit_code == 0
    root = cache_root.with_name("bundle")
    folder = root / "flat-int8"
    asked = ("export", "demo", "--lora", "flat", "--scheme", "int8", "--base-arm", "--json")
    result = once(root, *asked, "--bundle", str(folder))
    assert result.exit_code == 0, result.output
    return Bundled(folder, json.loads(result.stdout))


@pytest.fixture
def bundle_copy(bundled: Bundled, tmp_path: Path) -> Path:
    """A copy of the bundle that a test may damage; what is not damaged is shared with the original."""
    return Path(shutil.copytree(bundled.folder, tmp_path / "flat-int8", copy_function=_linked))


def _linked(source: str, destination: str) -> str:
    Path(destination).hardlink_to(source)
    return destination


def rewritten(path: Path, content: bytes) -> None:
    """Give a linked file another content, without changing the original."""
    path.unlink()
    path.write_bytes(content)


@pytest.fixture
def small(bundle_copy: Path) -> Path:
    """The bundle with two probes at two timesteps, without twin and base arm: what a slow stand-in can take."""
    facts = json.loads((bundle_copy / "bundle.json").read_text("utf-8"))
    count, varying = len(facts["strata"]), [f"{name}.bin" for name in facts["denoiser"]["varying"]]
    facts["probes"], facts["strata"] = facts["probes"][:2], facts["strata"][:2]
    facts["components"] = [one for one in facts["components"] if one["role"] not in ("twin", "base")]
    facts["solver"], facts["no_solver"] = None, "left out"
    facts["limits"]["gates"] = [one for one in facts["limits"]["gates"] if one["name"] != "endpoint_error"]
    arms = [f"{arm}.bin" for arm in ("f0", "f1", "q0", "q1")]
    for pattern, names in (("probes/00[01]", varying), ("reference/00[01]", arms)):
        for path in (folder / name for folder in bundle_copy.glob(pattern) for name in names):
            content = path.read_bytes()
            rewritten(path, content[: 2 * len(content) // count])
    rewritten(bundle_copy / "bundle.json", json.dumps(facts).encode())
    signed(bundle_copy)
    return bundle_copy


def signed(folder: Path) -> None:
    """Write the digests of a bundle that was changed, as someone would who knows how."""
    (folder / "SHA256SUMS").unlink()
    pack.sums(folder)
