"""Shared parts: the shipped pipeline and adapters, one exported graph, one finished check. Nothing here trains."""

import gc
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from filelock import FileLock
from playwright.sync_api import Browser, sync_playwright
from typer.testing import CliRunner, Result

from qcheck.api import functions, request
from qcheck.calibration.histogram import Histogram
from qcheck.cli.app import app
from qcheck.core import cache
from qcheck.core.cache import Cache
from qcheck.demo import library
from qcheck.model import arms, load, lora
from qcheck.model.arms import Arms
from qcheck.model.inputs import observed
from qcheck.quantize import plan
from qcheck.quantize.artifact import Exporter
from qcheck.spec import recipe, scheme
from qcheck.spec.use import Use

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def demo_arms() -> Arms:
    """The demo base with the shipped adapter "flat" at weight 1."""
    return adapted_by("flat")


def adapted_by(name: str) -> Arms:
    """The demo base with one of the shipped adapters at weight 1."""
    used = Use(source=str(library.ADAPTERS / f"{name}.safetensors"), weight=1.0)
    return arms.apply(load.load(str(library.PIPELINE)), [lora.read(used)])


@pytest.fixture(scope="session", autouse=True)
def cache_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tests share a cache of their own, never the user's; so do the processes of one run."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    root.mkdir(exist_ok=True)
    os.environ[cache.VARIABLE] = str(root)
    os.environ["QCHECK_THREADS"] = "1"  # there is a process a core
    return root


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """A call without ``threads`` takes one too: with all cores each, the processes' threads wait for one another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(request, "CORES", 1)
        patch.setattr(functions, "CORES", 1)
        yield


# The longest files first, so that no process is left alone with one of them (of `--no-loadscope-reorder`).
_FIRST = (
    "cli/test_cli.py",
    "test_families.py",
    "api/test_examples.py",
    "device/test_boards.py",
    "test_faults.py",
    "test_others.py",
    "device/test_bundle.py",
    "test_realised.py",
    "test_export.py",
    "test_again.py",
    "test_artifact.py",
    "test_device.py",
    "test_few_steps.py",
    "test_inspect.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files; tests of one file stay together in their order."""
    places = {name: place for place, name in enumerate(_FIRST)}
    folder = Path(__file__).parent
    items.sort(key=lambda item: places.get(item.path.relative_to(folder).as_posix(), len(places)))
    gc.freeze()  # what was imported stays: the collector need not look through it


@pytest.fixture
def graphs_alone(cache_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of a test's own that holds the exported graphs that there are already, and nothing else."""
    root = tmp_path / "cache"
    with suppress(FileNotFoundError):
        shutil.copytree(cache_root / "qcheck" / "graph", root / "qcheck" / "graph", ignore=shutil.ignore_patterns(".*"))
    monkeypatch.setenv(cache.VARIABLE, str(root))
    return root


@dataclass(frozen=True)
class Prepared:
    """The demo's adapted denoiser, a plan for INT8, an exported graph and inputs that the plan's ranges come from."""

    unet: torch.nn.Module
    state: dict[str, torch.Tensor]
    plan: dict[str, plan.LayerPlan]
    graph: ir.Model
    exporter: Exporter
    ranges: dict[str, plan.Input]
    inputs: dict[str, np.ndarray]


@pytest.fixture
def prepared(demo_arms: Arms, exported: Prepared) -> Iterator[Prepared]:
    """The session's export, with the adapted weights in place whatever another test left there."""
    with demo_arms.held("adapted"):
        yield exported


@pytest.fixture(scope="session")
def exported(demo_arms: Arms, cache_root: Path) -> Prepared:
    """Export once; every artifact test fills or rewrites a copy of this graph."""
    generator = torch.Generator().manual_seed(3)
    sample, hidden = torch.randn(4, 4, 16, 16, generator=generator), torch.randn(4, 16, 128, generator=generator)
    chosen = scheme.find("int8")
    seen = Histogram()
    inputs = {
        "sample": sample.numpy(),
        "timestep": np.array([500.0], np.float32),
        "encoder_hidden_states": hidden.numpy(),
    }
    exporter = Exporter(demo_arms, Cache(cache_root / "qcheck"), inputs)  # where checks find their graphs
    with demo_arms.held("adapted") as family, torch.no_grad():
        unet = family.module
        with observed(unet, dict(plan.linear_layers(unet)), seen):
            unet(sample, torch.tensor([500.0]), hidden)
    layers = plan.chosen_layers(unet, chosen, recipe.find("emoji"))
    ranges = {layer: plan.Input(found.absmax) for layer, found in seen.seen().items()}
    return Prepared(
        unet=unet,
        state=demo_arms.state("adapted"),
        plan=plan.make(layers, demo_arms.state("adapted"), chosen, ranges),
        graph=exporter.graph("float32"),
        exporter=exporter,
        ranges=ranges,
        inputs=inputs,
    )


def run(*arguments: str) -> Result:
    """The command line in this process."""
    return CliRunner().invoke(app, list(arguments), catch_exceptions=True)


@dataclass(frozen=True)
class Printed:
    """How a command ended, and what it printed."""

    exit_code: int
    output: str
    stdout: str


def once(folder: Path, *arguments: str) -> Printed:
    """Run a command that fills ``folder``; all processes of a test run share the first one's outcome.

    No test may change ``folder``.
    """
    told = folder / "printed.json"
    with FileLock(folder.with_suffix(".lock")):
        if not told.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            result = run(*arguments)
            told.write_text(json.dumps([result.exit_code, result.output, result.stdout]), "utf-8")
    return Printed(*json.loads(told.read_text("utf-8")))


@dataclass(frozen=True)
class Finished:
    """A whole check of the demo's "flat" adapter under int8, as a user gets it."""

    folder: Path
    result: Printed
    report: dict[str, Any]


@pytest.fixture(scope="session")
def finished(cache_root: Path) -> Finished:
    """``qcheck check demo --lora flat --scheme int8`` with the engine build."""
    root = cache_root.with_name("check")
    folder = root / "out"
    result = once(root, "check", "demo", "--lora", "flat", "--scheme", "int8", "--out", str(folder))
    return Finished(folder, result, json.loads((folder / "report.json").read_text()))


@pytest.fixture
def pipeline_copy(tmp_path: Path) -> Path:
    """A copy of the shipped pipeline that a test may damage."""
    return Path(shutil.copytree(library.PIPELINE, tmp_path / "pipeline"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One headless Chromium of the system for all tests of a module."""
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()
