"""The parts of a bundle that are no data: the verifier, digests, what a person reads first, and one file to send."""

import io
import json
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qcheck import __version__, device
from qcheck.core import sbom as bill
from qcheck.core.errors import UserError
from qcheck.core.files import whole
from qcheck.core.sbom import Part
from qcheck.device import sums as sums_file

VERIFIER, DISTRIBUTION = "verify.pyz", "qcheck-edge"
_ASKED = ("scheme", "order", "target", "verdict")
_PACKAGE = "qcheck_verify"
_MAIN = f"""from __future__ import print_function

import sys

if sys.version_info < (3, 8):
    print("error: this Python is older than 3.8; fix: run /usr/bin/python3", file=sys.stderr)
    sys.exit(2)

try:
    from {_PACKAGE}.main import main
except Exception as error:
    print("error: verify.pyz cannot start: %s" % error, file=sys.stderr)
    print("fix:   sudo apt install python3-numpy, or copy the bundle again", file=sys.stderr)
    sys.exit(2)

sys.exit(main())
"""
_EPOCH = (2020, 1, 1, 0, 0, 0)  # equal sources give equal bytes


def verifier(path: Path) -> None:
    """Write the verifier as one file that Python runs: the modules of ``qcheck.device``."""
    source = Path(device.__file__).parent
    modules = {f"{_PACKAGE}/{module.name}": module.read_bytes() for module in sorted(source.glob("*.py"))}
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in ({"__main__.py": _MAIN.encode()} | modules).items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), text, zipfile.ZIP_DEFLATED)
    path.write_bytes(b"#!/usr/bin/env python3\n" + content.getvalue())
    path.chmod(0o755)


def sbom(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the bill of materials: every file by its digest, what they were made from, and what the board brings."""
    models, asked = {one["file"] for one in facts["components"]}, facts["asked"]
    parts = [
        Part("machine-learning-model" if name in models else "file", name, sha256=digest)
        for name, digest in sums_file.of(folder).items()
    ]
    parts.append(Part("machine-learning-model", asked["base"], facts=(("qcheck:digest", asked["base_digest"]),)))
    adapters = zip(asked["adapter"].split(" + "), asked["adapter_digests"], strict=False)
    parts += [Part("machine-learning-model", name, facts=(("qcheck:digest", value),)) for name, value in adapters]
    parts += [Part("library", name, facts=(("qcheck:provided-by", "board"),)) for name in ("numpy", "tensorrt")]
    parts.append(Part("library", DISTRIBUTION, __version__, f"pkg:pypi/{DISTRIBUTION}@{__version__}", "Apache-2.0"))
    subject = Part("application", folder.name, facts=tuple((f"qcheck:{key}", asked[key]) for key in _ASKED))
    text = json.dumps(bill.document(subject, parts), indent=1)
    (folder / bill.NAME).write_text(f"{text}\n", "utf-8")


def sums(folder: Path) -> dict[str, str]:
    """Write SHA256SUMS of every file in ``folder``; the digests by name."""
    digests = sums_file.of(folder)
    (folder / sums_file.NAME).write_bytes(sums_file.text(digests))
    return digests


def archive(folder: Path, path: Path) -> None:
    """Pack a bundle into one .tar.zst, which ``tar --zstd -xf`` unpacks into a folder of the bundle's name.

    Raises:
        UserError: it cannot be written.
    """
    import zstandard  # an archive alone needs it

    try:
        with (
            whole(path) as partial,
            partial.open("wb") as stream,
            zstandard.ZstdCompressor(level=3).stream_writer(stream) as compressed,
            tarfile.open(mode="w|", fileobj=compressed) as packed,
        ):
            packed.add(folder, arcname=folder.name)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}", "Give a --bundle folder elsewhere.") from error


def readme(facts: Mapping[str, Any]) -> str:
    """README.txt."""
    asked = facts["asked"]
    return f"""{asked["adapter"]} on {asked["base"]}: {asked["scheme"]} {asked["order"]} for {asked["target"]}
Written by qcheck {facts["qcheck"]} on {facts["created"]}.
The host's verdict on these {len(facts["probes"])} probes: {asked["verdict"]}.

On the board, with nothing but its own Python, numpy and TensorRT:

    python3 verify.pyz .

It compares the digests of all files, builds the engines, runs the probes, and says whether the LoRA survives on this
board: exit code 0 pass, 1 fail, 3 open, 2 if it could not be verified. verify.json, verify.txt and the engines go
into a folder beside this one, whose name ends in -verify. Killed, it goes on where it was.

Back on the workstation, with the report of `qcheck check`:

    qcheck report --merge verify.json REPORT_FOLDER
"""
