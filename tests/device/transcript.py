"""Writes docs/board.md's transcript: the demo's bundle on a stand-in for an AGX Orin.

``python -m tests.device.transcript`` exports the bundle, makes the stand-in (the files of its /sys and /proc, TensorRT
10.3 whose engines ONNX Runtime runs, a libcudart that counts time) and runs the verifier on it, two probes long.
"""

import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path

import qcheck
from qcheck.device import backends, main, page
from tests.device import trees
from tests.device.fakes import board

_PAGE = Path(__file__).parents[2] / "docs" / "board.md"
_START, _END = "<!-- transcript -->", "<!-- end of transcript -->"


def transcript(place: Path) -> str:
    """What the verifier prints, with the paths that it has on a board."""
    folder, root = place / "style-int8", trees.agx_orin(place / "root")
    qcheck.bundle("demo", "flat", out=folder, scheme="int8", target="jetson-agx-orin-64gb", build=False)
    made = board.make(place / "board", "10.3.0")
    os.environ.update(made.environment)
    sys.path.insert(0, str(made.site))
    backends.IDLE_SECONDS = 4.0
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        found = main.run(folder, None, None, "tensorrt", True, root)
    json.loads(main.as_json(found))
    lines = [line for line in said.getvalue().splitlines() if "probe" not in line and "free run" not in line]
    text = "\n".join(["$ python3 style-int8/verify.pyz style-int8", *lines, page.text(found)])
    return text.replace(f"{place}/", "")


def write(text: str) -> None:
    """Put the transcript into the page."""
    before, rest = _PAGE.read_text("utf-8").split(_START)
    after = rest.split(_END)[1]
    _PAGE.write_text(f"{before}{_START}\n```console\n{text.strip()}\n```\n{_END}{after}", "utf-8")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        write(transcript(Path(name)))
