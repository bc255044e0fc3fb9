"""Write the outputs in docs/ci.md: the page's workflow, its shell steps run here on the demo's adapters.

``python -m benchmarks.ci FOLDER`` makes a project in FOLDER, checks it once for the baseline, runs the steps with
nothing changed, then with the adapter replaced by another. With a FOLDER that holds such runs it only writes the page.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import yaml

from benchmarks.readme import ROOT, block
from qcheck.demo import library

PAGE = ROOT / "docs" / "ci.md"
SUMMARY = "summary.md"


def steps(page: str) -> list[dict[str, str]]:
    """The steps of the workflow on the page that run something after the installation."""
    found = re.search(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"{PAGE} has no workflow")
    job = yaml.safe_load(found[1])["jobs"]["gate"]
    return [step for step in job["steps"] if step.get("run", "").startswith(("qcheck", "cat"))]


def _environment(folder: Path) -> dict[str, str]:
    return os.environ | {"GITHUB_STEP_SUMMARY": SUMMARY, "QCHECK_CACHE": str(folder / ".qcheck-cache")}


def play(folder: Path, name: str, chosen: list[dict[str, str]]) -> None:
    """Run the steps as GitHub does: ``bash -eo pipefail``, and after a failure only those with an ``if``."""
    failed = False
    told = folder / "qcheck-out"
    shutil.rmtree(told, ignore_errors=True)
    (folder / "qcheck.log").unlink(missing_ok=True)
    printed = []
    start = time.perf_counter()
    for step in chosen:
        if failed and "if" not in step:
            continue
        shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        done = subprocess.run(shell, cwd=folder, env=_environment(folder), capture_output=True, text=True, check=False)
        failed |= done.returncode != 0
        printed.append(f"## {step['name']}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    _note(folder, name, time.perf_counter() - start)
    (folder / f"{name}.out").write_text("".join(printed), "utf-8")
    told.rename(folder / name)
    (folder / "qcheck.log").rename(folder / f"{name}.log")


def _note(folder: Path, name: str, seconds: float) -> None:
    path = folder / "seconds.json"
    known = json.loads(path.read_text("utf-8")) if path.exists() else {}
    path.write_text(json.dumps(known | {name: round(seconds)}), "utf-8")


def run(folder: Path, page: str) -> None:
    """The project, its baseline, and both runs of the workflow's steps."""
    adapter = folder / "adapters" / "style.safetensors"
    adapter.parent.mkdir(parents=True)
    shutil.copy(library.ADAPTERS / "flat.safetensors", adapter)
    found = re.search(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (folder / "qcheck.toml").write_text(found[1] if found else "", "utf-8")
    start = time.perf_counter()
    with (folder / "first.err").open("w") as stream:
        subprocess.run(
            ["qcheck", "check", "--out", "first"], cwd=folder, env=_environment(folder), stderr=stream, check=False
        )
    _note(folder, "first", time.perf_counter() - start)
    (folder / "baseline").mkdir()
    shutil.copy(folder / "first" / "report.json", folder / "baseline")
    play(folder, "same", steps(page))
    shutil.copy(library.ADAPTERS / "ink.safetensors", adapter)
    play(folder, "changed", steps(page))


def outputs(folder: Path) -> dict[str, str]:
    """What goes between the page's markers."""
    ahead = next(line for line in (folder / "first.err").read_text("utf-8").splitlines() if "denoiser calls" in line)
    made = {"ahead": f"```text\n{ahead}\n```", "took": _took(folder)}
    for name in ("same", "changed"):
        printed = dict(re.findall(r"^## (\w+: exit \d+)\n(.*?)(?=^## |\Z)", _read(folder, f"{name}.out"), re.M | re.S))
        check = next(title for title in printed if title.startswith("Check"))
        compare = next(title for title in printed if title.startswith("Compare"))
        made[f"{name}-check"] = f"`{check}`\n\n```text\n{printed[check].strip()}\n```"
        made[f"{name}-compare"] = f"`{compare}`\n\n```markdown\n{_read(folder, f'{name}/compare.md')}\n```"
    made["same-log"] = f"```text\n{_read(folder, 'same.log')}\n```"
    report, junit = _read(folder, "changed/new/report.md"), _read(folder, "changed/new/junit.xml")
    made["changed-report"] = f"```markdown\n{report[: report.index('<details>')].strip()}\n```"
    made["changed-junit"] = f"```xml\n{junit[: junit.index('<system-out>')].rstrip()}\n```"
    return made


def _took(folder: Path) -> str:
    """How long the runs took, and on what."""
    seconds = json.loads(_read(folder, "seconds.json"))
    machine = json.loads(_read(folder, "first/report.json"))["provenance"]["machine"]
    rows = [
        ("the first check, from an empty cache, with the build", seconds["first"]),
        ("the workflow's steps, nothing changed", seconds["same"]),
        ("the workflow's steps, another adapter", seconds["changed"]),
    ]
    head = [f"| what ran ({machine}) | seconds |", "| --- | --- |"]
    return "\n".join([*head, *(f"| {what} | {number} |" for what, number in rows)])


def _read(folder: Path, name: str) -> str:
    """A file of the runs, with paths relative to the repository or to the project in ``folder``."""
    return (folder / name).read_text("utf-8").replace(f"{ROOT}/", "").replace(f"{folder}/", "").rstrip()


def main() -> None:
    """Rewrite docs/ci.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder, page = parser.parse_args().folder.absolute(), PAGE.read_text("utf-8")
    if not folder.exists():
        run(folder, page)
    for name, content in outputs(folder).items():
        page = block(name, content, page)
    PAGE.write_text(page, "utf-8")


if __name__ == "__main__":
    main()
