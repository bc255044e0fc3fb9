"""A sweep of many adapters: killed and resumed, on Ray with a worker killed, its cost as adapters grow, its page.

``python -m benchmarks.sweep fleet --adapters 200`` runs a sweep undisturbed, one that is killed with SIGKILL at three
random points, and one on a local Ray cluster of two workers, one of which is killed; ``page`` filters 2,000 rows in
Chromium. Adapters are the demo's, reweighted and renamed, some broken on purpose.
"""

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from safetensors.torch import load_file, save_file

from qcheck.demo import library

NAMES = ("flat", "ink", "faint", "few")
SCHEMES, OWN = ("int8", "int4-g128"), (0, 3, 6)
FEW = ("--steps", "2", "--width", "32", "--height", "32", "--max-probes", "8", "--no-build", "--threads", "1")
TIMES = ("seconds",)


def adapters(folder: Path, count: int) -> Path:
    """Adapters below ``folder``: of ten one is broken, six are copies by another name, three have their own weight."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for index in range(count):
        path = folder / f"style-{index:04d}.safetensors"
        if index % 10 == 9:
            path.write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00broken")
            continue
        name, own = NAMES[index % len(NAMES)], index % 10 in OWN
        tensors = load_file(library.ADAPTERS / f"{name}.safetensors")
        weight = 0.5 + index / (2 * count) if own else 1.0
        save_file({k: v * weight if "lora_B" in k else v for k, v in tensors.items()}, path)
    return folder


def start(loras: Path, out: Path, cache: Path, *more: str) -> subprocess.Popen[str]:
    """A sweep in a process group of its own."""
    words = [sys.executable, "-m", "qcheck", "sweep", "demo", "--lora", str(loras), "--out", str(out), *FEW, *more]
    words += [word for scheme in SCHEMES for word in ("--scheme", scheme)]
    environment = {**os.environ, "QCHECK_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, env=environment, text=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def rows(out: Path) -> dict[str, dict[str, Any]]:
    """The stored rows without times, by case."""
    stored = {path.stem: json.loads(path.read_bytes()) for path in (out / "cases").glob("*.json")}
    return {case: {k: v for k, v in row.items() if k not in TIMES} for case, row in stored.items()}


def same(one: Path, other: Path) -> None:
    """Print whether two stores hold the same rows."""
    ours, theirs = rows(one), rows(other)
    differing = [case for case in ours.keys() | theirs.keys() if ours.get(case) != theirs.get(case)]
    print(f"rows {len(ours)} and {len(theirs)}, {len(differing)} differ apart from times")
    for case in differing[:3]:
        print(" ", ours.get(case), "\n ", theirs.get(case))


def timeline(out: Path, began: float, counts: list[int]) -> None:
    """Print when the first n adapters were done: cost as adapters grow."""
    done = sorted(path.stat().st_mtime - began for path in (out / "cases").glob("*.json"))[:: len(SCHEMES)]
    for count in counts:
        if count <= len(done):
            print(f"{count:5} adapters after {done[count - 1]:7.0f} s, {done[count - 1] / count:6.1f} s each")


def shared(out: Path) -> None:
    """Print the seconds of the first adapter, and of later ones: of their own weight, and copies by another name."""
    by_adapter: dict[int, float] = {}
    for path in (out / "cases").glob("*.json"):
        row = json.loads(path.read_bytes())
        if row["error"] is None:
            index = int(Path(row["adapter"]).stem.rpartition("-")[2])
            by_adapter[index] = by_adapter.get(index, 0.0) + row["seconds"]
    own = [seconds for index, seconds in by_adapter.items() if index > len(NAMES) and index % 10 in OWN]
    copies = [seconds for index, seconds in by_adapter.items() if index > 10 and index % 10 not in OWN]
    print(
        f"the first adapter took {by_adapter[0]:.1f} s, later ones of their own weight {statistics.median(own):.1f} s, "
        f"copies {statistics.median(copies):.1f} s (medians)"
    )


def undisturbed(root: Path, count: int, jobs: int) -> tuple[Path, float]:
    """The adapters, and the seconds of a sweep of them that nobody disturbs."""
    loras = adapters(root / "loras", count)
    began = time.time()
    code = start(loras, root / "whole", root / "cache-whole", "--jobs", str(jobs)).wait()
    whole = time.time() - began
    print(f"undisturbed: {whole:.0f} s, exit code {code}", flush=True)
    timeline(root / "whole", began, [10, 50, 100, 200])
    shared(root / "whole")
    return loras, whole


def kills(root: Path, loras: Path, whole: float, jobs: int) -> None:
    """A sweep that is killed three times."""
    draws = random.Random(0)  # noqa: S311
    for attempt in range(4):
        process = start(loras, root / "killed", root / "cache-killed", "--jobs", str(jobs))
        try:
            code = process.wait(None if attempt == 3 else draws.uniform(0.1, 0.35) * whole)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            print(f"killed with {len(rows(root / 'killed'))} rows there", flush=True)
    print(f"resumed to the end: exit code {code}")
    same(root / "whole", root / "killed")


def ray(root: Path, loras: Path, count: int) -> None:
    """The same adapters on a local Ray cluster of two workers, one of which is killed in the middle."""
    began = time.time()
    process = start(loras, root / "ray", root / "cache-ray", "--executor", "ray", "--jobs", "2")
    killed = False
    while process.poll() is None:
        if not killed and len(rows(root / "ray")) > count * len(SCHEMES) // 2:
            workers = [
                p
                for p in psutil.process_iter(["name", "cmdline"])
                if "ray::Worker" in " ".join(p.info["cmdline"] or [])
            ]
            if workers:
                workers[0].kill()
                killed = True
                print(f"killed a worker with {len(rows(root / 'ray'))} rows there", flush=True)
        time.sleep(0.5)
    print(f"on Ray: {time.time() - began:.0f} s, exit code {process.returncode}")
    same(root / "whole", root / "ray")


def page(root: Path) -> None:
    """Milliseconds of filtering 2,000 rows in Chromium, the layout included."""
    from playwright.sync_api import sync_playwright

    from qcheck.judge import fleet
    from qcheck.report import fleet as report
    from qcheck.result.fleet import Row

    verdicts = ("PASS", "NEEDS-QAT", "INCONCLUSIVE", "FAIL-RECIPE")
    every = [
        Row(
            case=f"{n:016x}", adapter=f"style-{n:04d}.safetensors", weight=1.0, base="b", scheme="int8", target="t",
            order="merge-quantize", verdict=verdicts[n % 4], doubt=10.0 ** -(n % 9), survival=1 - (n % 100) / 100,
            worst_layer=f"down_blocks.{n % 7}", reasons=["effect_survival (adapted) 0.41"],
        )
        for n in range(2000)
    ]  # fmt: skip
    root.mkdir(parents=True, exist_ok=True)
    path = root / "summary.html"
    path.write_text(report.page(fleet.summary(every)), "utf-8")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        opened = browser.new_page()
        opened.goto(path.as_uri())
        times = opened.evaluate(_FILTER)
        browser.close()
    print(f"page of {path.stat().st_size / 1e6:.1f} MB; filtering took {', '.join(f'{one:.0f}' for one in times)} ms")


_FILTER = """() => ["blocks.3", "style-00", "", "needs"].map((text) => {
  const search = document.querySelector("#text"), start = performance.now();
  search.value = text;
  search.dispatchEvent(new Event("input"));
  document.body.offsetHeight;
  return performance.now() - start;
})"""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["fleet", "page"])
    parser.add_argument("--adapters", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--root", type=Path, default=Path("build/sweep"))
    given = parser.parse_args()
    root = given.root.resolve()
    if given.what == "page":
        page(root)
        return
    shutil.rmtree(root, ignore_errors=True)
    loras, whole = undisturbed(root, given.adapters, given.jobs)
    kills(root, loras, whole, given.jobs)
    ray(root, loras, given.adapters)


if __name__ == "__main__":
    main()
