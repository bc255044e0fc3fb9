"""A bundle on stand-ins of boards: its engines are built and run by TensorRT's faces and by trtexec."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qcheck.device import backends, main, page
from qcheck.device import bundle as bundles
from qcheck.device.bundle import Component
from qcheck.device.errors import CannotVerify
from qcheck.device.verify import Opened, Verification
from qcheck.result import verified
from tests.conftest import Finished, run
from tests.device import trees
from tests.device.fakes import board as fakes
from tests.device.fakes.board import FakeBoard

pytestmark = fakes.needs_compiler
Make = Callable[[str], FakeBoard]


@pytest.fixture
def use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes this process one of a board with a release of TensorRT."""

    def used(version: str) -> FakeBoard:
        made = fakes.make(tmp_path / "board", version)
        made.use(monkeypatch)
        monkeypatch.setattr(backends, "RUNS", 3)
        monkeypatch.setattr(backends, "IDLE_SECONDS", 0.0)
        monkeypatch.setattr(backends, "ENERGY_MS", 0.0)
        return made

    return used


def tree(folder: Path) -> Path:
    """The files of an AGX Orin with 40 GB available."""
    root = folder / "root"
    trees.agx_orin(root)
    return root


def judge(folder: Path, work: Path, runner: str, root: Path) -> Any:
    """The bundle without free runs, as JSON."""
    return main.run(folder, work, None, runner, False, root)


def numbers(found: Any) -> dict[tuple[str, str], float]:
    """The measurements by name and arm."""
    return {(one["name"], one["arm"]): one["value"] for one in found["measurements"]}


@pytest.mark.parametrize("version", ["10.3.0", "10.16.2", "11.1.0"])
def test_every_release_gives_the_files_numbers_and_the_boards_cost(
    small: Path, use: Make, tmp_path: Path, version: str
) -> None:
    use(version)
    found = judge(small, tmp_path / "work", "tensorrt", tree(tmp_path))
    plain = judge(small, tmp_path / "plain", "onnxruntime", tree(tmp_path))
    assert numbers(found) == pytest.approx(numbers(plain), abs=1e-6)
    assert found["runner"] == {"name": f"TensorRT {version}", "deployed": True}
    assert found["board"]["model"].startswith("NVIDIA Jetson AGX Orin")
    denoiser = found["components"][0]
    assert denoiser["precision"]["status"] == "as asked", denoiser["precision"]
    assert denoiser["cost"]["latency"]["count"] >= 1
    assert denoiser["build"]["tensorrt"] == version
    assert "precision as asked" in page.text(found)


def test_a_second_run_takes_the_engines_again_and_the_host_reads_the_result(
    small: Path, use: Make, tmp_path: Path
) -> None:
    use("10.3.0")
    found = judge(small, tmp_path / "work", "tensorrt", tree(tmp_path))
    again = judge(small, tmp_path / "work", "tensorrt", tree(tmp_path))
    assert all(one["build"]["reused"] for one in again["components"])
    assert numbers(again) == numbers(found)
    read = verified.Verified.model_validate(json.loads(main.as_json(found)))
    doubted = any(one.cost.doubts for one in read.components)  # a busy machine's stand-in may seem throttled
    assert (read.image_ms is None) == doubted
    assert "engine" in [row[0] for row in read.forecasts()]


def test_trtexec_gives_the_same_numbers(small: Path, use: Make, tmp_path: Path) -> None:
    use("10.3.0")
    found = judge(small, tmp_path / "work", "trtexec", tree(tmp_path))
    plain = judge(small, tmp_path / "plain", "onnxruntime", tree(tmp_path))
    assert numbers(found) == pytest.approx(numbers(plain), abs=1e-6)
    assert found["runner"]["name"] == "trtexec of TensorRT 10.3.0"
    cost = found["components"][0]["cost"]
    assert cost["missing"]["memory"] == "this runner does not say how much the engine takes"
    assert "starts a process for every measurement" in cost["missing"]["energy"]
    assert "not under load" in cost["doubts"][-1]


def test_a_release_without_strong_typing_is_refused(small: Path, use: Make, tmp_path: Path) -> None:
    use("8.6.1")
    for runner in ("tensorrt", "trtexec"):
        with pytest.raises(CannotVerify, match="has no strong typing"):
            judge(small, tmp_path / "work", runner, tree(tmp_path))


@pytest.mark.parametrize(
    ("faults", "verdict", "reason"),
    [
        ({"fell_back": True}, "FAIL", "unet: the engine fell back to other types than the scheme asks"),
        ({"nan": True}, "FAIL", "is not finite"),
        ({"fused": True}, None, ""),
    ],
)
def test_what_an_engine_does_wrong_is_named(
    small: Path, use: Make, tmp_path: Path, faults: dict[str, Any], verdict: str | None, reason: str
) -> None:
    use("10.3.0").fail(**faults)
    found = judge(small, tmp_path / "work", "tensorrt", tree(tmp_path))
    assert verdict is None or (found["verdict"], True) == (verdict, any(reason in text for text in found["reasons"]))
    if "fused" in faults:
        assert found["components"][0]["precision"]["status"] == "fused, cannot be told"
        assert "cannot be told" in page.text(found)


def test_a_builder_that_is_killed_is_tried_at_a_lower_level_and_the_page_says_so(
    small: Path, use: Make, tmp_path: Path
) -> None:
    use("10.3.0").fail(kill_from=3)
    text = page.text(judge(small, tmp_path / "work", "tensorrt", tree(tmp_path)))
    assert "not at optimization level 3: " in text
    assert "probably out of memory" in text


def test_a_twin_that_cannot_be_built_says_why_and_the_verdict_stays(
    bundle_copy: Path, use: Make, tmp_path: Path
) -> None:
    """And the host reads the result."""
    use("10.3.0")
    verification = Verification(bundles.read(bundle_copy), Refusing(), tmp_path, lambda _: None)
    twin = verification.bundle.component("twin")
    assert twin is not None
    described = verification._timed(twin)
    read = verified.Component.model_validate(described)
    assert read.cost.missing == {"latency": "needs more memory"}
    assert read.build is None


class Refusing:
    """A board on which nothing fits."""

    name, deployed = "refusing", True

    def open(self, component: Component) -> Opened:
        raise CannotVerify("needs more memory", "get some")

    def cost(self, opened: Opened, inputs: Any) -> dict[str, Any]:
        raise AssertionError(opened)

    def warnings(self) -> list[str]:
        return []


def test_an_unread_clock_makes_the_latency_inconclusive(small: Path, use: Make, tmp_path: Path) -> None:
    """A board whose files say nothing of clocks and temperatures, as a container has them."""
    use("10.3.0")
    root = tmp_path / "blind"
    trees.meminfo(root, 60_000_000, 40_000_000)
    found = judge(small, tmp_path / "work", "tensorrt", root)
    cost = found["components"][0]["cost"]
    assert "throttling could not be observed" in cost["doubts"][0]
    assert cost["states"]["after"]["missing"]["gpu_clock"]
    assert "latency inconclusive: throttling could not be observed" in page.text(found)
    read = verified.Verified.model_validate(json.loads(main.as_json(found)))
    assert read.image_ms is None
    assert "is no Jetson: its engines are not the target's" in found["warnings"][0]


def test_a_board_with_too_little_memory_builds_nothing(small: Path, use: Make, tmp_path: Path) -> None:
    made, root = use("10.3.0"), tree(tmp_path)
    trees.meminfo(root, 60_000_000, 10_000)
    with pytest.raises(CannotVerify, match=r"needs 0\.0 GB, 4 times its size, and only 0\.0 GB are available"):
        judge(small, tmp_path / "work", "tensorrt", root)
    assert made.seen == []


def test_the_archive_builds_in_children_and_the_report_shows_the_board(
    small: Path, finished: Finished, tmp_path: Path
) -> None:
    """By the bundle's own archive, in a Python that has the board's packages."""
    made = fakes.make(tmp_path / "board", "10.16.2")
    work, out = tmp_path / "work", tmp_path / "verify.json"
    command = [str(made.python()), "-I", str(small / "verify.pyz"), str(small)]
    command += ["--work", str(work), "--out", str(out), "--no-free-run", "--runner", "tensorrt"]
    environment = {"PATH": "/nowhere", "LD_LIBRARY_PATH": str(made.folder / "lib")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode in (0, 3), done.stderr  # two probes may leave it open
    found = json.loads(out.read_text("utf-8"))
    assert [one["role"] for one in found["components"]] == ["denoiser", "encoder", "decoder"]
    assert numbers(found)["effect_survival", "adapted"] == pytest.approx(1, abs=0.05)
    report = shutil.copytree(finished.folder, tmp_path / "report", ignore=shutil.ignore_patterns("artifacts"))
    merged = run("report", "--merge", str(out), str(report))
    assert merged.exit_code == done.returncode, merged.output
    assert "precision as asked" in merged.stdout
    assert "a call on the board, inconclusive; estimated" in (report / "report.html").read_text("utf-8")
