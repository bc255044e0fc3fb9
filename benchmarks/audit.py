"""Random edits of single bytes in a report folder, and how many of them ``qcheck audit`` finds.

    python -m benchmarks.audit FOLDER --edits 1000

``FOLDER`` is what `qcheck check` wrote; the edits are made in a copy of it, one at a time. The file is drawn first,
then the byte, so that small files are edited as often as large ones.
"""

import argparse
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import qcheck


@dataclass(frozen=True)
class Edit:
    """One byte of a file that is another now; ``found`` is the audit's exit code, 0 where it saw nothing."""

    name: str
    place: int
    found: int


def edits(folder: Path, count: int, seed: int) -> Iterator[Edit]:
    """Make ``count`` edits in ``folder``, one at a time, and audit each; the folder is as before after each."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    for _ in range(count):
        path = draw.choice(files)
        content = path.read_bytes()
        place = draw.randrange(len(content))
        changed = bytes([content[place] ^ draw.randrange(1, 256)])
        try:
            path.write_bytes(content[:place] + changed + content[place + 1 :])
            yield Edit(path.relative_to(folder).as_posix(), place, code(folder))
        finally:
            path.write_bytes(content)


def code(folder: Path) -> int:
    """The exit code of ``qcheck audit``."""
    try:
        return qcheck.audit(folder).code
    except qcheck.UserError:
        return 2


def main() -> None:
    """Edit, audit, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--edits", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "report"
        shutil.copytree(given.folder, copy)
        if code(copy):
            raise SystemExit("the folder is not sound before any edit")
        made = list(edits(copy, given.edits, given.seed))
    codes = Counter(edit.found for edit in made)
    for edit in made:
        if not edit.found:
            print(f"not found: byte {edit.place} of {edit.name}")
    files = len({edit.name for edit in made})
    print(f"{len(made)} edits in {files} files, {codes[1] + codes[2]} found, {codes[1]} of them in a verdict's numbers")
    print(f"{(time.monotonic() - start) / len(made):.2f} s an edit")


if __name__ == "__main__":
    main()
