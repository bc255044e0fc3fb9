"""How often ``qcheck inspect FILE.onnx`` names the adapter that is in a file, and how often a wrong one.

``python -m benchmarks.attribution`` writes files of the demo's base with adapters of its zoo under every scheme, in
every order that merges on its own, and asks of each: which of three adapters is in it, once
with the right one among them and once without; and of the quantized base alone. Answers go to ``attribution.json``
beside this module, and what is there already is not asked again; ``--write`` puts the tables on the page. Two files a
scheme and order, of five adapters in turn; a question takes three seconds on one core.
"""

import argparse
import json
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import qcheck
from benchmarks.replays import table
from qcheck.core import cache
from qcheck.core.cache import Cache
from qcheck.demo import library
from qcheck.model import arms, load, lora
from qcheck.model.arms import Arms
from qcheck.quantize import contents
from qcheck.quantize.artifact import Exporter
from qcheck.quantize.contents import Origin
from qcheck.quantize.plan import Input
from qcheck.result.attribution import Attribution
from qcheck.spec import recipe, scheme
from qcheck.spec.order import MERGES, Order
from qcheck.spec.use import Use

ROOT = Path(__file__).parents[1]
PAGE, ANSWERS = ROOT / "docs" / "attribution.md", Path(__file__).with_suffix(".json")
MARKED = re.compile(r"(<!-- attribution:begin -->\n).*?(<!-- attribution:end -->)", re.DOTALL)
ADAPTERS = ROOT / "zoo" / "demo" / "adapters"
SCHEMES = tuple(one.name for one in scheme.every() if one.exported)
BASE: Mapping[str, float] = {}
HELD: tuple[Mapping[str, float], ...] = (  # adapters at their weights: strong, small, faint, wild, and two at once
    {"flat-healthy": 1.0},
    {"ink-small": 1.0},
    {"twemoji-faint-20": 1.0},
    {"fxemoji-wild": 0.5},
    {"flat-sound": 1.0, "ink-faint-30": 1.0},
)
_EACH = 2  # of them under one scheme, in turn
OTHERS = ("flat-twin", "ink-light", "fxemoji-faint-60")  # another seed of flat-healthy, and others of the same styles


class Question(NamedTuple):
    """A file, by what it holds, and the adapters that are asked for at a weight."""

    scheme: str
    order: Order
    held: Mapping[str, float]
    candidates: tuple[str, ...]

    @property
    def weight(self) -> float:
        """The weight that is asked."""
        return next(iter(self.held.values()), 1.0)

    @property
    def truth(self) -> str:
        """The group of the table."""
        if not self.held:
            return "the base alone"
        return "the right adapter is asked for" if set(self.held) & set(self.candidates) else "only others are"

    @property
    def key(self) -> str:
        """The question as one line."""
        held = "+".join(f"{name}={weight:g}" for name, weight in self.held.items())
        return f"{self.scheme} {self.order} {held or 'base'} ? {' '.join(self.candidates)}"


def questions() -> Iterator[Question]:
    """All of them, those of one file together."""
    for place, name in enumerate(SCHEMES):
        for candidates in (("flat-healthy", "ink-small", "twemoji-faint-20"), OTHERS):
            yield Question(name, MERGES[0], BASE, candidates)
        for order in MERGES:
            for held in (HELD[(place + step) % len(HELD)] for step in range(_EACH)):
                for candidates in ((*held, *OTHERS)[:3], OTHERS):
                    yield Question(name, order, held, candidates)


class Factory:
    """Writes files; weights need no calibration, so every input has the same range.

    Schemes that smooth the inputs of linear layers take factors that are drawn: log-normal, sigma .5, other ones for
    every layer, the same for base and adapted.
    """

    def __init__(self, store: Cache) -> None:
        self._base = load.load(str(library.PIPELINE))
        draws = torch.Generator().manual_seed(0)
        linear = {name: one for name, one in self._base.denoiser.named_modules() if isinstance(one, torch.nn.Linear)}
        self._smoothed = {
            name: Input(1.0, torch.exp(0.5 * torch.randn(one.in_features, generator=draws)))
            for name, one in linear.items()
        }
        self._store, self._recipe = store, recipe.find(library.RECIPE)
        sides = {"sample": (2, 4, 16, 16), "timestep": (1,), "encoder_hidden_states": (2, 16, 128)}
        self._example = {name: np.ones(shape, np.float32) for name, shape in sides.items()}

    def write(self, question: Question, path: Path) -> Path:
        """The file that is asked about."""
        chosen = scheme.find(question.scheme)
        inputs = defaultdict[str, Input](lambda: Input(1.0), self._smoothed if chosen.smoothing else {})
        ranges: Mapping[Origin, Mapping[str, Input]] = {"base": inputs, "adapted": inputs, "shared": inputs}
        both = self._arms(question.held or {"flat-healthy": 1.0})
        content = (
            contents.of_adapted(both, chosen, self._recipe, question.order, ranges)
            if question.held
            else contents.of_base(both, chosen, self._recipe, ranges)
        )
        return Exporter(both, self._store, self._example).deployed(content, chosen, path, {})

    def _arms(self, held: Mapping[str, float]) -> Arms:
        uses = [Use(source=str(ADAPTERS / f"{name}.safetensors"), weight=weight) for name, weight in held.items()]
        return arms.apply(self._base, [lora.read(use) for use in uses])


def verdict(question: Question, found: Attribution) -> dict[str, Any]:
    """What is said of every adapter beside what is true, and of weight and order where one is in."""
    says = {Path(one.adapter).stem: one for one in found.adapters}
    wrong = [
        name
        for name, one in says.items()
        if one.presence in ({"not in"} if name in question.held else {"in", "in part"})
    ]
    open_ = [name for name, one in says.items() if one.presence == "undecided"]
    inside = [says[name] for name in question.held if name in says and says[name].presence == "in"]
    return {
        "said": "wrong" if wrong else "undecided" if open_ else "right",
        "weights": [abs(one.weight - question.weight) for one in inside],
        "order": None if not inside else "right" if found.order == question.order else str(found.order),
        "answer": found.answer,
        "unexplained": found.unexplained,
    }


def ask(schemes: Sequence[str], known: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Answer what is not known yet, one question after the other."""
    waiting = [one for one in questions() if one.key not in known and one.scheme in schemes]
    if not waiting:
        return
    torch.set_num_threads(1)
    factory, last = Factory(Cache(cache.location())), ""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        for question in waiting:
            file = question.key.partition(" ? ")[0]
            if file != last:
                factory.write(question, path)
            last = file
            loras = [ADAPTERS / f"{name}.safetensors" for name in question.candidates]
            found = qcheck.attribute(path, library.NAME, loras, weight=question.weight)
            yield {"key": question.key, **verdict(question, found)}


def summary(known: Mapping[str, Mapping[str, Any]]) -> str:
    """What was said, by what is true; and weight and order of the adapters that were named."""
    asked = [(one, known[one.key]) for one in questions() if one.key in known]
    rows = [["truth", "order", "questions", "right", "undecided", "wrong"]]
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for one, said in asked:
        groups[one.truth, one.order if one.held else "-"].append(said)
    for (truth, order), said in sorted(groups.items()):
        counts = Counter(one["said"] for one in said)
        rows.append([truth, order, str(len(said)), *(str(counts[word]) for word in ("right", "undecided", "wrong"))])
    wrong = sum(said["said"] == "wrong" for _, said in asked)
    named = [(one, said) for one, said in asked if said["order"] is not None]
    orders = [["order", "named", "order right", "not told", "wrong", "weight within .01", "largest error of weight"]]
    for order in MERGES:
        mine = [said for one, said in named if one.order == order]
        told = Counter(said["order"] if said["order"] in {"right", "None", "merged"} else "wrong" for said in mine)
        errors = [error for said in mine for error in said["weights"]]
        close = sum(error <= 0.01 for error in errors)
        counts = [str(told["right"]), str(told["None"] + told["merged"]), str(told["wrong"])]
        largest = f"{max(errors, default=0):.3f}"
        orders.append([order, str(len(mine)), *counts, f"{close} of {len(errors)}", largest])
    files = len({one.key.partition(" ? ")[0] for one, _ in asked})
    end = f"{len(asked)} questions of {files} files, {len({one.scheme for one, _ in asked})} schemes; wrong: {wrong}"
    return f"{table(rows)}\n\n{table(orders)}\n\n{end}"


def main() -> None:
    """Ask, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--scheme", action="append", choices=SCHEMES, help="Repeatable. Default: all.")
    parser.add_argument("--fresh", action="store_true", help="Ask again what was asked before.")
    parser.add_argument("--list", action="store_true", help="Every question that was not answered right.")
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.name} too")
    asked = parser.parse_args()
    known = {} if asked.fresh or not ANSWERS.exists() else json.loads(ANSWERS.read_text("utf-8"))
    for said in ask(asked.scheme or SCHEMES, known):
        key = said.pop("key")
        known[key] = said
        ANSWERS.write_text(json.dumps(known, indent=1) + "\n", "utf-8")
        if said["said"] != "right":
            print(key, said, flush=True)
    text = summary(known)
    if asked.list:
        print("\n".join(f"{key} {said}" for key, said in known.items() if said["said"] != "right"), "\n")
    print(text)
    if asked.write:
        page = PAGE.read_text("utf-8")
        PAGE.write_text(MARKED.sub(lambda marks: f"{marks[1]}```\n{text}\n```\n{marks[2]}", page), "utf-8")


if __name__ == "__main__":
    main()
