"""Files of the zoo's cases: JSON, packed, the same bytes for the same cases."""

import gzip
import json
from pathlib import Path
from typing import Any


def read(path: Path) -> dict[str, Any]:
    """One adapter's cases at one guidance."""
    held: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    return held


def write(held: dict[str, Any], path: Path) -> None:
    """Write them, and the folder where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(json.dumps(held).encode(), mtime=0))
