"""What reads files of strangers, with files that each reads: seeds of the fuzzers.

The law: a changed file ends in a value or in one error that says what to do, soon, and nothing is written.
"""

import functools
import itertools
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import typer

from qcheck.api import auditing, plan
from qcheck.build import engine
from qcheck.cli import config
from qcheck.cli.app import app
from qcheck.core.errors import UserError
from qcheck.core.values import DATA
from qcheck.device import bundle, inspector, sums, trtexec
from qcheck.device.errors import CannotVerify
from qcheck.model import lora
from qcheck.result import store, verified
from qcheck.result.report import REPORT
from qcheck.spec import limits, probe, recipe, scheme, target
from qcheck.spec.use import Use
from qcheck.tasks import trust
from tests import audits, families, hostile, layouts, reports

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Parser:
    """A reader of the file ``name`` in a folder, with contents that it reads; its errors are ``told``."""

    name: str
    read: Callable[[Path], object]
    seeds: Callable[[], Sequence[bytes]]

    def accepts(self, path: Path) -> bool:
        """Whether the file is read; False where one error tells why not.

        Raises:
            Exception: any other error, which is a fault of the reader.
        """
        try:
            self.read(path)
        except (UserError, CannotVerify):
            return False
        return True


def _files(*folders: Path) -> Callable[[], Sequence[bytes]]:
    return lambda: [path.read_bytes() for folder in folders for path in sorted(folder.glob("*.toml"))]


def _named(find: Callable[[str], object]) -> Callable[[Path], object]:
    return lambda path: find(str(path))


@functools.cache
def _context() -> typer.Context:
    commands: Any = typer.main.get_command(app)
    context: typer.Context = commands.commands["check"].make_context("check", [], resilient_parsing=True)
    context.resilient_parsing = False
    return context


def _settings(path: Path) -> None:
    config.load(_context(), path)


_SETTINGS = b'[check]\nscheme = ["int8", "int4-g128"]\nsteps = 4\nguidance = 3.5\nbuild = false\nlimits = "default"\n'
_PLAN = b'base = "demo"\nlora = ["flat", "ink"]\nscheme = ["int8"]\nsteps = 4\nmax-probes = 8\nbuild = false\n'


def _plan(path: Path) -> object:
    return plan.requests(plan.read(path))


@functools.cache
def _pipe() -> Any:
    return families.FAMILIES["sd1"]()


def _adapted(path: Path) -> object:
    return lora.fit(_pipe(), lora.read(Use(source=str(path), weight=1.0)), allow_unmatched=True)


def _adapters() -> Sequence[bytes]:
    """Two layers in three layouts."""
    written = []
    for layout in (layouts.diffusers, layouts.kohya, layouts.peft):
        parts = dict(itertools.islice(layouts.known(_pipe(), "unet").items(), 2))
        with tempfile.TemporaryDirectory() as folder:
            written.append(layout(parts, Path(folder) / "a.safetensors").read_bytes())
    return written


@functools.cache
def _report() -> Sequence[bytes]:
    stored = ROOT / "tests" / "report" / "folder" / REPORT
    return [reports.report().to_json().encode(), stored.read_bytes()]


def _audited(path: Path) -> object:
    with mock.patch.object(trust, "RERUNS", 2):  # of a hundred alike
        return auditing.audit(path.parent)


def _inspected(text: str) -> object:
    try:
        return inspector.inspected(text)
    except ValueError:  # which callers expect
        return None


@functools.cache
def _boards() -> Sequence[bytes]:
    return [json.dumps(audits.verified(audits.report(audits.case(0.1)))).encode()]


_LAYERS = [
    {
        "Name": "a",
        "LayerType": "gemm",
        "ParameterType": "Convolution",
        "Inputs": [{"Name": "x", "Dimensions": [2, 4], "Format/Datatype": "Row major linear FP16 format"}],
        "Outputs": [{"Name": "y", "Dimensions": [2, 4], "Datatype": "Half"}],
        "Constants": [{"Name": "w", "Dimensions": [4, 4], "DataType": "Int8"}, {"Name": "s", "Dimensions": [4]}],
        "Weights": {"Type": "Int8", "Count": 16},
        "Metadata": "[ONNX Layer: /unet/a]\u001e[ONNX Layer: /unet/b]",
    },
    "a name alone",
]
_PROGRAM = (
    b'x\n  tensor={ const_payload_size=16 name="w" type=int8 }\n  sub_tensor={ a name="x" type=half }\n'
    b'  corrltn={ name="c" input={"x","w"} layers="[ONNX Layer: /unet/a]" }\n\x00\xff'
)
_TIMES = [{"startComputeMs": 1.0, "computeMs": 2.5}, {"computeMs": 3}]


def _text(read: Callable[[str], object]) -> Callable[[Path], object]:
    return lambda path: read(path.read_text("utf-8", "replace"))


PARSERS: dict[str, Parser] = {
    "adapter": Parser("a.safetensors", _adapted, functools.cache(_adapters)),
    "scheme": Parser("a.toml", _named(scheme.find), _files(DATA / "schemes")),
    "target": Parser("a.toml", _named(target.find), _files(ROOT / "targets")),
    "recipe": Parser("a.toml", _named(recipe.find), _files(ROOT / "calibration" / "recipes")),
    "limits": Parser("a.toml", _named(limits.find), _files(DATA / "limits")),
    "probes": Parser("a.toml", _named(probe.find), _files(DATA / "probes")),
    "qcheck.toml": Parser("qcheck.toml", _settings, lambda: [_SETTINGS]),
    "plan": Parser("plan.toml", _plan, lambda: [_PLAN]),
    "report": Parser(REPORT, store.read, _report),
    "audit": Parser(REPORT, _audited, functools.cache(lambda: [audits.report(audits.case(0.1)).to_json().encode()])),
    "verified": Parser("verify.json", verified.read, _boards),
    "bundle": Parser(bundle.NAME, lambda path: bundle.read(path.parent), lambda: [json.dumps(hostile.FACTS).encode()]),
    "sums": Parser("sums", lambda path: sums.parsed(path.read_bytes()), lambda: [sums.text({"a": "0" * 64})]),
    "inspector": Parser("a.json", _text(_inspected), lambda: [json.dumps({"Layers": _LAYERS}).encode()]),
    "engine": Parser("a.engine", engine.read, lambda: [_PROGRAM]),
    "times": Parser("times.json", _text(trtexec.milliseconds), lambda: [json.dumps(_TIMES).encode()]),
    "banner": Parser("log", _text(trtexec.release), lambda: [b"&&&& RUNNING TensorRT.trtexec [TensorRT v100300]\n"]),
}
