"""Small things under the names that the documentation uses: adapters, bases, reports, pictures, configurations."""

import itertools
import json
import re
import shutil
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from PIL import Image

from qcheck.core.values import DATA
from qcheck.demo import library
from qcheck.result import store
from tests import audits, documented
from tests.conftest import Finished
from tests.test_calibrate import _ranges


def _adapter(path: Path, _: Finished) -> None:
    shutil.copy(library.ADAPTERS / "flat.safetensors", path)


def _base(path: Path, _: Finished) -> None:
    shutil.copytree(library.PIPELINE, path)


def _report(path: Path, finished: Finished) -> None:
    shutil.copytree(finished.folder, path)


def _verified(path: Path, finished: Finished) -> None:
    path.write_text(json.dumps(audits.verified(store.read(finished.folder))), "utf-8")


def _engine(path: Path, finished: Finished) -> None:
    path.write_bytes(b"an engine")
    file = store.read(finished.folder).cases[0].artifact[0]
    record = {"sha256": audits.digest_of_bytes(b"an engine"), "digest": file.digest}
    record |= {"tensorrt": "10.3.0", "board": "Orin", "mode": "MAXN"}
    path.with_name(f"{path.name}.json").write_text(json.dumps(record), "utf-8")


def _limits(path: Path, _: Finished) -> None:
    shutil.copy(DATA / "limits" / "default.toml", path)


def _pictures(path: Path, _: Finished) -> None:
    path.mkdir()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(path / "0.png")


def _run(path: Path, finished: Finished) -> None:
    (path / "checkpoint-10").mkdir(parents=True)
    _adapter(path / "checkpoint-10" / "pytorch_lora_weights.safetensors", finished)


def _library(path: Path, finished: Finished) -> None:
    path.mkdir(exist_ok=True)
    _adapter(path / "a.safetensors", finished)


def _several(path: Path, finished: Finished) -> None:
    for name in ("1", "2"):
        place = path.with_name(path.name.replace("*", name))
        (_adapter if place.suffix == ".safetensors" else _report)(place, finished)


def _text(content: str) -> Callable[[Path, Finished], None]:
    def make(path: Path, _: Finished) -> None:
        path.write_text(content, "utf-8")

    return make


def _folder(path: Path, _: Finished) -> None:
    path.mkdir()


def _network(path: Path, _: Finished) -> None:
    path.mkdir()
    (path / "config.json").write_text("{}")


PLACES: dict[str, Callable[[Path, Finished], None]] = {
    "qcheck-out/[*]": _several,
    "*[*].safetensors": _several,
    "loras": _library,
    "*.safetensors": _adapter,
    "my-pipeline": _base, "pipeline": _base, "sd15*": _base, "sdxl": _base,
    "qcheck-out/*-[0-9]*": _report,
    "qcheck-out/new": _report, "report": _report, "baseline": _report, "first": _report, "second": _report,
    "lost": _report,
    "runs/style": _run,
    "verify.json": _verified, "unet.engine": _engine, "ours.toml": _limits,
    "base": _pictures, "lora": _pictures, "lora-q4": _pictures, "my-pictures": _pictures,
    "clip-vit-*": _network, "dinov2-base": _network, "lpips-alex.pth": _text(""),
    "optimum-folder": _folder, "adapters": _folder,
    "my-prompts.txt": _text("a red apple\n"), "probes.txt": _text("a red apple\n"),
    "list.jsonl": _text('{"lora": "flat"}\n'),
    "ranges.json": _text(_ranges().to_json()),
    "*.onnx": _text(""), ".venv/bin/activate": _text(""), "qcheck/spec/*": _limits,
}  # fmt: skip


def prepare(name: str, folder: Path, finished: Finished) -> None:
    """Put something small where ``name`` is, if it is one of ``PLACES``."""
    path = folder / name
    make = next((make for pattern, make in PLACES.items() if fnmatch(name, pattern)), None)
    if make is not None and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path, finished)


def written(words: Sequence[str]) -> list[str]:
    return [after for word, after in itertools.pairwise(words) if word in ("-o", "--out", "--bundle", "mkdir")]


def furnish(page: Path, text: str, folder: Path, finished: Finished) -> None:
    """What a page's script finds: what its commands name and do not write, and the configurations that it shows."""
    folder.mkdir()
    for block in documented.blocks(page, "toml"):
        text += block
        (folder / ("qcheck.toml" if "[check]" in block else "plan.toml")).write_text(block)
    words = re.findall(r"[\w.*/-]+", text)
    for name in dict.fromkeys(word.removeprefix("./").rstrip("/") for word in words):
        if not Path(name).is_absolute() and not any(Path(name).is_relative_to(one) for one in written(words)):
            prepare(name, folder, finished)
