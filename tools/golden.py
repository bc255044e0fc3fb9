"""Golden values: every number that a spread of runs reports, to hold a change of the inside to the last digit.

    python -m tools.golden record build/golden            # with the code as it was
    python -m tools.golden record build/golden-now        # with the code as it is
    python -m tools.golden compare build/golden build/golden-now

Each case is a folder of JSON files as the command line wrote them, one thread, an empty cache, no clock in what is
compared. Values depend on the machine's vector instructions and on library versions, so both sides are recorded here.
About half an hour on two cores; ``--only NAME`` (repeatable) records some cases.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ALL = ("--max-probes", "8", "--no-build")
QUICK = ("--max-probes", "2", "--no-build", "--steps", "4")
ORDERS = ("merge-quantize", "quantize-merge", "unmerged", "refit")
FAMILIES = ("sd1", "sd2", "sdxl", "sd3", "sd3-no-t5", "flux", "flux-schnell")
# what is compared when both sides have it; the rest of report.json says when and by whom it was made
VOLATILE = frozenset({"seconds", "created", "commit", "machine", "versions", "peak_memory_mb", "schema", "qcheck"})
MOVED = frozenset({"next", "provenance", "report", "command", "source", "path"})  # words, and paths of this machine


def cases() -> dict[str, tuple[str, ...]]:
    """Command lines by name; ``{here}`` is the case's folder, ``{family}`` a tiny pipeline, ``{CASE}`` another case."""
    orders = tuple(word for order in ORDERS for word in ("--order", order))
    thor = ("--target", "jetson-thor-t5000")
    check = ("check", "demo", "--lora")
    lost = ("--scheme", "int4-g128", "--order", "quantize-merge")
    found = {
        "every-scheme": (*check, "flat", "--scheme", "all", *orders, *thor, *ALL),
        "built": (*check, "flat", "--scheme", "int8", "--max-probes", "8"),
        "lost": (*check, "faint", *lost, "--no-build"),
        "stack": (*check, "flat", "--lora", "ink", "--weight", "0.6", "--weight", "0.4", "--scheme", "int8", *ALL),
        "few-steps": (*check, "flat", "--with-lora", "few", "--steps", "4", "--guidance", "1", *lost, *ALL),
        "guided": (*check, "ink", "--scheme", "int8", "--guidance", "7.5", *ALL),
        "export": ("export", "demo", "--lora", "flat", "--scheme", "int8", "--no-build"),
        "artifact": (*check, "flat", "--artifact", "{export}/out", *ALL),
        "calibrate": ("calibrate", "demo", "--lora", "flat", "--scheme", "int8", "--method", "mse"),
        "ranges": (*check, "flat", "--scheme", "int8", "--ranges", "{calibrate}/out.json", *ALL),
        "qat": ("qat", "demo", "--lora", "faint", *lost, "--train-steps", "8", "--every", "4", *ALL),
        "inspect": ("inspect", "faint", "--base", "demo", "--json"),
        "advise": ("advise", "{lost}/out", "--all"),
    }
    for name in FAMILIES:
        found[name] = ("check", "{family}", "--lora", "{family}.safetensors", "--scheme", "int8", *QUICK)
    return found


AFTER = {"artifact": "export", "ranges": "calibrate", "advise": "lost"}
OUT = {"calibrate": "out.json", "qat": "new.safetensors", "inspect": None}


def record(name: str, words: tuple[str, ...], root: Path, cache: Path) -> str:
    """Run one case; its JSON files are below its folder."""
    here = root / name
    here.mkdir(parents=True)
    places = {other: str(root / other) for other in cases()} | {"here": str(here), "family": str(root / f".{name}")}
    words = tuple(word.format(**places) for word in words)
    out = OUT.get(name, "out")
    if out is not None:
        words += ("--out", str(here / out))
    words += ("--report", str(here / "out")) if name == "qat" else ()
    threads = () if name == "inspect" else ("--threads", "1")
    environment = os.environ | {"QCHECK_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    with (here / "log").open("w") as log, (here / "stdout.json").open("w") as shown:
        command = [sys.executable, "-m", "qcheck", *words, *threads]
        ended = subprocess.run(command, stdout=shown, stderr=log, env=environment, check=False)
    if name != "inspect":
        (here / "stdout.json").unlink()
    for heavy in (*here.rglob("artifacts"), *here.rglob("*.onnx*"), *here.rglob("pictures")):
        if name != "export":
            shutil.rmtree(heavy) if heavy.is_dir() else heavy.unlink(missing_ok=True)
    return f"{name}: exit {ended.returncode}"


def record_all(root: Path, only: list[str]) -> None:
    """Every case, two at a time; those that read another's output after it."""
    from tests.families import adapter, saved  # only a recording needs the tiny pipelines

    chosen = {name: words for name, words in cases().items() if not only or name in only}
    root.mkdir(parents=True)
    for name in FAMILIES:
        if name in chosen:
            saved(name, root / f".{name}")
            adapter(name, root / f".{name}.safetensors")
    with tempfile.TemporaryDirectory() as cache, ThreadPoolExecutor(2) as pool:
        for wave in (False, True):
            names = [name for name in chosen if (name in AFTER) == wave]
            for line in pool.map(lambda n: record(n, chosen[n], root, Path(cache)), names):
                sys.stdout.write(f"{line}\n")
                sys.stdout.flush()


def values(found: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Every scalar of a JSON value by its path, less what is volatile."""
    if isinstance(found, dict):
        for key, value in found.items():
            if key not in VOLATILE | MOVED:
                yield from values(value, f"{where}/{key}")
    elif isinstance(found, list):
        for place, value in enumerate(found):
            yield from values(value, f"{where}/{_key(value, place)}")
    else:
        yield where, found


def _key(value: Any, place: int) -> str:
    """Entries of a list by what they are called, so that a new one moves no other."""
    names = ("scheme", "order", "name", "arm", "layer", "title") if isinstance(value, dict) else ()
    return " ".join(str(value[name]) for name in names if name in value) or str(place)


def compare(before: Path, now: Path) -> int:
    """Print what differs; how many values do."""
    total = different = 0
    for path in sorted(before.rglob("*.json")):
        twin = now / path.relative_to(before)
        if path.relative_to(before).parts[0].startswith(".") or "export" in path.parts[len(before.parts)]:
            continue
        if not twin.exists():
            sys.stdout.write(f"{twin}: absent\n")
            different += 1
            continue
        old, new = (dict(values(json.loads(p.read_text("utf-8")))) for p in (path, twin))
        total += len(old)
        for where in [*old, *(w for w in new if w not in old)]:
            if repr(old.get(where)) != repr(new.get(where)):
                different += 1
                sys.stdout.write(f"{path.relative_to(before)}{where}: {old.get(where)!r} -> {new.get(where)!r}\n")
    sys.stdout.write(f"{total} values compared, {different} differ\n")
    return different


def main() -> None:
    """Record or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("folder", type=Path)
    recording.add_argument("--only", action="append", default=[])
    comparing = commands.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("now", type=Path)
    given = parser.parse_args()
    if given.what == "record":
        record_all(given.folder.absolute(), given.only)
    else:
        sys.exit(1 if compare(given.before.absolute(), given.now.absolute()) else 0)


if __name__ == "__main__":
    main()
