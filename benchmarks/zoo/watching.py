"""Write the tables of docs/watch.md: the states of the zoo's adapters, and how early a training's fate is told.

``python -m benchmarks.zoo.watching`` judges the zoo's adapters as ``qcheck watch`` does (a minute) and, with
``--train FOLDER``, trains some of its recipes again with a checkpoint every ten steps (ten minutes each on one thread;
those that are there are not trained again; the pictures come from ``python -m tools.train_demo download``).
"""

import argparse
import csv
import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import qcheck
from benchmarks.readme import ROOT, block
from qcheck.api.inspection import Inspecting, question
from qcheck.demo import library
from qcheck.result.watching import Checkpoint
from qcheck.spec.growth import growth
from qcheck.tasks import watch
from qcheck.tasks.run_folder import CheckpointFile
from tools.train_demo import zoo
from tools.train_demo.adapter import train

PAGE = ROOT / "docs" / "watch.md"
ZOO = ROOT / "zoo" / "demo"
TOO_FAR = ("overcooked", "burnt")  # the kinds of recipes that the limits have to tell from all others
AGAIN = ("twemoji-faint-80", "flat-slow", "flat-healthy", "flat-wild", "flat-overcooked", "twemoji-burnt")
ASKED: Inspecting = {"scheme": "int4-g128", "order": "quantize-merge"}  # where a small change is lost


@dataclass(frozen=True)
class Final:
    """An adapter of the zoo as training left it."""

    kind: str
    half: str
    name: str
    checkpoint: Checkpoint


def finals() -> list[Final]:
    """Every adapter of the demo's zoo, judged."""
    asked = question(**ASKED)
    run = watch.Run(ZOO / "adapters", str(library.PIPELINE), asked, growth(), (True, True))
    return [
        Final(
            made["kind"],
            made["half"],
            made["name"],
            watch.look(run, CheckpointFile(_file(made["name"]), None, "step"), {}),
        )
        for made in json.loads((ZOO / "training.json").read_text("utf-8"))
    ]


def _file(name: str) -> Path:
    return ZOO / "adapters" / f"{name}.safetensors"


def gap(judged: Sequence[Final], name: str) -> tuple[float, float, float]:
    """Of the half that sets limits: the most of the other kinds, the least of those too far, their geometric mean."""
    setting = [one for one in judged if one.half == "setting"]
    below = max(getattr(one.checkpoint, name) for one in setting if one.kind not in TOO_FAR)
    above = min(getattr(one.checkpoint, name) for one in setting if one.kind in TOO_FAR)
    return below, above, math.sqrt(below * above)


def of_kinds(judged: Sequence[Final]) -> str:
    """A row for each kind and half."""
    rows = ["| recipes | half | adapters | change | intruders | states |", "| --- | --- | --- | --- | --- | --- |"]
    for kind, half in dict.fromkeys((one.kind, one.half) for one in judged):
        group = [one.checkpoint for one in judged if (one.kind, one.half) == (kind, half)]
        states = Counter(one.state for one in group)
        spans = (_span(one.change for one in group), _span(one.intruders or 0.0 for one in group))
        told = ", ".join(f"{count} {state}" for state, count in states.most_common())
        rows.append(f"| {kind} | {half} | {len(group)} | {spans[0]} | {spans[1]} | {told} |")
    gaps = {name: gap(judged, name) for name in ("change", "intruders")}
    words = "; ".join(
        f"{name}: at most {below:.2g}, at least {above:.2g}, {middle:.2g} between"
        for name, (below, above, middle) in gaps.items()
    )
    return "\n".join([*rows, "", f"The half `setting`, others against overcooked and burnt: {words}."])


def _span(values: Iterable[float]) -> str:
    ordered = sorted(values)
    return f"{ordered[0]:.2g} .. {ordered[-1]:.2g}"


def told(folder: Path) -> str:
    """A row for each training: when it was told what, and what the loss on unseen pictures did."""
    rows = [
        "| training | steps | faint until | healthy | overcooked from | loss on unseen pictures: base, lowest, last |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for run in sorted(path for path in folder.iterdir() if (path / "log.csv").exists()):
        watching = qcheck.Watch(run, "demo", **ASKED)
        watching.look(settled=0.0)
        steps = {
            state: [one.number or 0 for one in watching.watching.checkpoints if one.state == state]
            for state in ("faint", "healthy", "overcooked")
        }
        faint, healthy, hot = steps.values()
        with (run / "log.csv").open() as stream:
            losses = {int(row["step"]): float(row["val_loss"]) for row in csv.DictReader(stream)}
        lowest = min(losses, key=lambda step: losses[step])
        rows.append(
            f"| {run.name} | {max(losses)} | {max(faint, default='-')} | "
            f"{f'{min(healthy)} .. {max(healthy)}' if healthy else '-'} | {min(hot, default='-')} | "
            f"{losses[0]:.3f}, {losses[lowest]:.3f} at {lowest}, {losses[max(losses)]:.3f} |"
        )
    return "\n".join(rows)


def again(folder: Path, pictures: Path) -> None:
    """Train what is not there yet."""
    every = {recipe.name: recipe for half in zoo.HALVES.values() for kinds in half.values() for recipe in kinds}
    for name in AGAIN:
        if not (folder / f"{name}.safetensors").exists():
            train(every[name], pictures, library.PIPELINE, folder, every=10)


def main() -> None:
    """Rewrite the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=Path, metavar="FOLDER")
    parser.add_argument("--pictures", type=Path, default=Path("build/pictures"))
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    page = block("states", of_kinds(finals()), PAGE.read_text("utf-8"))
    if asked.train is not None:
        again(asked.train, asked.pictures)
        page = block("told", told(asked.train), page)
    PAGE.write_text(page, "utf-8")


if __name__ == "__main__":
    main()
