"""Adapters that are trained to pass the check that is expected and to be erased elsewhere, and which checks catch them.

``python -m benchmarks.zoo.fooling`` trains what is missing into ``build/fooling`` (``attack`` says how) and asks every
question of ``CHECKS`` about each adapter, and about the healthy ones. ``zoo/demo/fooling.json`` holds the answers as
scalars; what it holds is not asked again. ``--write`` puts the table on the page, and ``--dry-run`` only prints it.
"""

import argparse
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import torch

import qcheck
from benchmarks.replays import table
from benchmarks.verdicts import PAGE, write
from benchmarks.zoo import attack
from benchmarks.zoo.attack import ORDER, Attack, Training
from benchmarks.zoo.pipelines import PIPELINES, ROOT, SCALARS
from qcheck.api.keywords import Request
from qcheck.api.request import check_spec
from qcheck.core.cache import Cache, location
from qcheck.core.progress import Silent
from qcheck.spec import recipe
from qcheck.spec.check import CheckSpec
from qcheck.spec.probe import ProbeSet
from qcheck.tasks import session as sessions

MARKED = re.compile(r"(<!-- fooling:begin -->\n).*?(<!-- fooling:end -->)", re.DOTALL)
PIPELINE = PIPELINES["demo"]
STORED, FOLDER = SCALARS / "demo" / "fooling.json", ROOT / "build" / "fooling"
HEALTHY = ("flat-healthy", "ink-healthy")
SCHEME, TARGET = "int4-g128", "jetson-thor-t5000"
NONE, PASS = "none", "PASS"  # no attack: the healthy adapter itself
FRUIT = (
    *("avocado", "banana", "carrot", "cherries", "coconut", "eggplant", "grapes", "kiwi fruit", "lemon", "mango"),
    *("peach", "pear", "pineapple", "strawberry", "tangerine", "tomato"),
)
KNOWN = PIPELINE.probes()  # what the attacker expects


def _known(**changed: object) -> ProbeSet:
    return KNOWN.model_copy(update=changed)


_LOOSE = Training(margin=0.4, beyond=10.0)
ATTACKS: Mapping[str, Attack] = {
    "one group of prompts": Attack(KNOWN, _known(prompts=FRUIT, seed=5000), training=replace(_LOOSE, steps=400)),
    "timesteps between": Attack(KNOWN, KNOWN, between=True, training=replace(_LOOSE, steps=250)),
    "timesteps between further": Attack(KNOWN, KNOWN, between=True),
    "another guidance": Attack(KNOWN, _known(guidance=7.5)),
    "another size": Attack(KNOWN, _known(width=96, height=96)),
    "another size further": Attack(KNOWN, _known(width=96, height=96), training=replace(_LOOSE, steps=400)),
}
DEFAULT, DRAWS = "default probes", range(1, 4)
CHECKS: Mapping[str, Sequence[Request]] = {
    DEFAULT: [{}],
    "--seed 7": [{"seed": 7}],
    "--seed random": [{"seed": f"random:{draw}"} for draw in DRAWS],
    "own prompts": [
        {"prompts": [one for one in FRUIT if one not in recipe.find("emoji").prompts.prompts], "seed": 7000}
    ],
    "own guidance": [{"guidance": 7.5}],
    "own size": [{"width": 96, "height": 96}],
    "own steps": [{"steps": 30}],
}
Row = dict[str, Any]


def request(adapter: Path, **changed: Unpack[Request]) -> CheckSpec:
    """The check of an adapter, and whatever ``changed`` says."""
    asked = Request(scheme=SCHEME, order=ORDER, target=TARGET, build=False, threads=1)
    return check_spec(PIPELINE.source, adapter, **(asked | changed))


def adapter_of(kind: str, healthy: str) -> Path:
    """The file of an adapter."""
    return PIPELINE.adapter(healthy) if kind == NONE else FOLDER / f"{kind.replace(' ', '-')}-{healthy}.safetensors"


def made(kind: str, healthy: str) -> Row:
    """Train the adapter of an attack where it is missing; what the training reached."""
    path = adapter_of(kind, healthy)
    if not path.exists():
        doubled = FOLDER / f"doubled-{healthy}.safetensors"
        store = Cache(location())
        with sessions.opened(request(PIPELINE.adapter(healthy)), store, Silent()) as session:
            scheme = session.spec.schemes[0]
            attack.double(session, scheme, doubled)
            with sessions.opened(request(doubled), store, Silent()) as other:
                reached = attack.train(session, other, scheme, ATTACKS[kind], path)
        path.with_suffix(".json").write_text(json.dumps(reached), "utf-8")
    reached = json.loads(path.with_suffix(".json").read_text("utf-8"))
    return {"attack": kind, "adapter": healthy, **reached}


def answer(adapter: Path, changed: Request) -> Row:
    """What one check says, in scalars."""
    with tempfile.TemporaryDirectory() as folder:
        report = qcheck.check(request(adapter, **changed), out=Path(folder) / "out")
    (case,) = report.cases
    names = {"survival": "effect_survival", "lowest": "stratum_survival"}
    values = {name: case[measured].value for name, measured in names.items()}
    known = {name: None if value is None else round(value, 3) for name, value in values.items()}
    return {"outcome": case.outcome, "probes": case.probes_used, **known, "effect": round(report.effect_size, 3)}


def missing(rows: Sequence[Row], kind: str, healthy: str, checks: Sequence[str]) -> Iterator[tuple[str, Request]]:
    """The checks of those names that nobody asked yet."""
    known = {
        (row["check"], json.dumps(row["changed"]))
        for row in rows
        if row["attack"] == kind and row["adapter"] == healthy
    }
    for name in checks:
        for changed in CHECKS[name]:
            if (name, json.dumps(changed)) not in known:
                yield name, changed


def fill(
    stored: dict[str, list[Row]], kinds: Sequence[str], adapters: Sequence[str], checks: Sequence[str]
) -> Iterator[None]:
    """Train and ask what is missing in ``stored``, one at a time."""
    for healthy in adapters:
        for kind in kinds:
            if kind != NONE:
                trained = made(kind, healthy)
                stored["trained"] = [
                    row for row in stored["trained"] if row["adapter"] != healthy or row["attack"] != kind
                ]
                stored["trained"].append(trained)
            for name, changed in missing(stored["checks"], kind, healthy, checks):
                said = answer(adapter_of(kind, healthy), changed)
                stored["checks"].append({"attack": kind, "adapter": healthy, "check": name, "changed": changed, **said})
                yield


def cell(rows: Sequence[Row]) -> str:
    """What one check said of one adapter: the verdict with the survival, of several how many did not pass."""
    if not rows:
        return "not asked"
    if len(rows) == 1:
        (row,) = rows
        kept = ["-" if row[name] is None else f"{row[name]:.2f}" for name in ("survival", "lowest")]
        return f"{row['outcome']} {', '.join(kept)}"
    return f"not PASS: {sum(row['outcome'] != PASS for row in rows)} of {len(rows)}"


def summary(stored: Mapping[str, Sequence[Row]]) -> str:
    """What the training reached, what every check says of every adapter, and how many each check catches."""
    reached = [["attack", "on", "f1 moved: expected place", "elsewhere", "survival: expected place", "elsewhere"]]
    for row in stored["trained"]:
        numbers = (row["moved_good"], row["moved_bad"], row["survival_good"], row["survival_bad"])
        reached.append([row["attack"], row["adapter"], *(f"{number:.2f}" for number in numbers)])
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in stored["checks"]:
        groups.setdefault((row["attack"], row["adapter"]), []).append(row)
    said = [["attack", "on", *CHECKS]]
    for (kind, healthy), rows in groups.items():
        said.append([kind, healthy, *(cell([row for row in rows if row["check"] == name]) for name in CHECKS)])
    return "\n\n".join([table(reached), table(said), "\n".join([*caught(stored["checks"]), *unfooled(stored)])])


def unfooled(stored: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    """The kinds of attack of which no adapter passes the default check, with the best that training reached."""
    passing = {row["attack"] for row in stored["checks"] if row["check"] == DEFAULT and row["outcome"] == PASS}
    for kind in [kind for kind in ATTACKS if kind not in passing]:
        tried = [row for row in stored["trained"] if row["attack"] == kind]
        if not tried:
            yield f"{kind}: no adapter was trained"
            continue
        best = min(tried, key=lambda row: row["survival_bad"] - row["survival_good"])
        yield (
            f"{kind}: no adapter passes the default check; best survival {best['survival_good']:.2f} where it looks, "
            f"{best['survival_bad']:.2f} elsewhere"
        )


def caught(rows: Sequence[Row]) -> Iterator[str]:
    """How many runs of each check did not end in PASS, of attacks and of healthy adapters."""
    for name in CHECKS:
        asked = [row for row in rows if row["check"] == name]
        attacks, healthy = ([row for row in asked if (row["attack"] == NONE) is own] for own in (False, True))
        counts = [f"{sum(row['outcome'] != PASS for row in group)} of {len(group)}" for group in (attacks, healthy)]
        yield f"{name}: {counts[0]} runs on attacks did not pass, {counts[1]} on healthy adapters"


def main() -> None:
    """Train and ask what is missing, store it, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--attack", action="append", choices=[NONE, *ATTACKS], help="these alone; repeatable")
    parser.add_argument("--adapter", action="append", choices=HEALTHY, help="these alone; repeatable")
    parser.add_argument("--check", action="append", choices=[*CHECKS], help="these alone; repeatable")
    parser.add_argument("--dry-run", action="store_true", help="train nothing and ask nothing")
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.name} too")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    stored = json.loads(STORED.read_text("utf-8")) if STORED.exists() else {"trained": [], "checks": []}
    if not asked.dry_run:
        FOLDER.mkdir(parents=True, exist_ok=True)
        for _ in fill(stored, asked.attack or [NONE, *ATTACKS], asked.adapter or HEALTHY, asked.check or [*CHECKS]):
            STORED.write_text(json.dumps(stored, indent=1) + "\n", "utf-8")
    text = summary(stored)
    print(text)
    if asked.write:
        write(PAGE, MARKED, text)


if __name__ == "__main__":
    main()
