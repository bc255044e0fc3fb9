"""What shows that a report folder is as qcheck wrote it: SHA256SUMS of its files, and the statement that names that.

``sha256sum -c SHA256SUMS`` checks all files but the two themselves; ``check`` these too.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from qcheck.core.files import read_bytes
from qcheck.core.places import Files as Place
from qcheck.device import sums
from qcheck.report import statement
from qcheck.result.report import Report

OWN = (sums.NAME, statement.NAME)


def write(report: Report, folder: Path) -> None:
    """Seal a finished folder."""
    for name, content in _seal(report, _digests(folder)).items():
        (folder / name).write_bytes(content)


def renewed(report: Report, folder: Path, contents: Mapping[str, bytes]) -> Mapping[str, bytes]:
    """The seal of ``folder`` once its files have the ``contents``, by name; no other digest is touched.

    A folder without a seal gets none: nobody vouches for its other files.
    """
    known = _listed(folder)
    if known is None:
        return {}
    return _seal(report, {**known, **{name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}})


def of_sweep(place: Place, names: Iterable[str]) -> None:
    """Seal the files ``names`` of a sweep; its pages have a seal each, whose digest is among them."""
    there = [name for name in names if place.size(name) is not None]  # somebody may have removed pages
    digests = {name: hashlib.sha256(place.read(name)).hexdigest() for name in there}
    place.write(sums.NAME, sums.text(digests))


def sweep(folder: Path) -> tuple[Mapping[str, str], list[str], list[str]]:
    """The digests that a sweep's folder should have by name, the names of those that differ, and of those missing."""
    known = _listed(folder)
    if known is None:
        there = (folder / sums.NAME).exists()
        return {}, [sums.NAME] if there else [], [] if there else [sums.NAME]
    missing = [name for name in known if not (folder / name).is_file()]
    changed = [name for name in known if name not in missing and sums.digest(folder / name) != known[name]]
    return known, changed, missing


def _seal(report: Report, digests: Mapping[str, str]) -> Mapping[str, bytes]:
    return {sums.NAME: sums.text(digests), statement.NAME: statement.render(report, digests).encode()}


def _digests(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in sums.of(folder).items() if name not in OWN}


def _listed(folder: Path) -> dict[str, str] | None:
    """The digests of SHA256SUMS; None where it is missing, or not as it is written."""
    try:
        content = read_bytes(folder / sums.NAME)
    except OSError:
        return None
    known = sums.parsed(content)
    return known if known is not None and sums.text(known) == content else None


@dataclass(frozen=True)
class Files:
    """The files of a folder beside their seal: the SHA-256 that each has and should have, by name, and what differs.

    ``added`` are files that nothing vouches for.
    """

    digests: Mapping[str, str]
    expected: Mapping[str, str]
    changed: list[str]
    missing: list[str]
    added: list[str]


def files(folder: Path) -> Files:
    """Compare every file with its digest."""
    there, known = _digests(folder), _listed(folder)
    sealed = (folder / sums.NAME).exists()
    expected = known or {}
    return Files(
        digests=there,
        expected=expected,
        changed=[
            *([sums.NAME] if sealed and known is None else []),
            *(name for name, digest in sorted(expected.items()) if there.get(name, digest) != digest),
        ],
        missing=[
            *([] if sealed else [sums.NAME]),
            *(name for name in sorted(expected) if name not in there),
            *([] if (folder / statement.NAME).exists() else [statement.NAME]),
        ],
        added=sorted(set(there) - set(expected)) if known is not None else [],
    )


def states(report: Report, folder: Path, expected: Mapping[str, str]) -> bool:
    """Whether the folder's statement is the one on this report, and on files with the ``expected`` SHA-256."""
    try:
        return read_bytes(folder / statement.NAME) == statement.render(report, expected).encode("utf-8")
    except OSError:
        return True  # it is missing, which ``files`` says
