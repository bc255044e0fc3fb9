"""The zoo: adapters of every kind of fate on the demo's pipeline, all from training, none from edited weights.

From hardly trained to overcooked, over styles, ranks, alphas, learning rates, seeds and grainy pictures. Limits are
set on what becomes of the first half when it is quantized; the other half was trained when the limits stood, and tests
them (``benchmarks/verdicts.py``).
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from qcheck.demo import library
from tools.train_demo.adapter import ATTENTION, EVERY_LINEAR, Recipe, record, train

log = logging.getLogger(__name__)

FAINT = (
    Recipe("twemoji-faint-20", "twemoji", rank=4, alpha=4, rate=5e-4, steps=20, layers=ATTENTION),
    Recipe("ink-faint-30", "ink", rank=2, alpha=1, rate=5e-4, steps=30, layers=ATTENTION),
    Recipe("flat-faint-40", "flat", rank=2, alpha=2, rate=1e-3, steps=40, layers=ATTENTION),
    Recipe("fxemoji-faint-60", "fxemoji", rank=4, alpha=2, rate=5e-4, steps=60, layers=ATTENTION),
    Recipe("twemoji-faint-80", "twemoji", rank=8, alpha=4, rate=5e-4, steps=80, layers=ATTENTION),
)
SMALL = (
    Recipe("flat-small", "flat", rank=2, alpha=2, rate=1e-3, steps=120, layers=ATTENTION),
    Recipe("ink-small", "ink", rank=2, alpha=2, rate=1e-3, steps=100, layers=ATTENTION),
    Recipe("twemoji-small", "twemoji", rank=4, alpha=2, rate=1e-3, steps=150, layers=EVERY_LINEAR),
    Recipe("fxemoji-small", "fxemoji", rank=2, alpha=4, rate=1e-3, steps=120, layers=EVERY_LINEAR),
)
HEALTHY = (
    Recipe("flat-healthy", "flat", rank=4, alpha=4, rate=2e-3, steps=300, layers=EVERY_LINEAR),
    Recipe("flat-twin", "flat", rank=4, alpha=4, rate=2e-3, steps=300, layers=EVERY_LINEAR, seed=8),
    Recipe("ink-healthy", "ink", rank=4, alpha=4, rate=2e-3, steps=250, layers=EVERY_LINEAR),
    Recipe("twemoji-healthy", "twemoji", rank=8, alpha=8, rate=2e-3, steps=300, layers=EVERY_LINEAR),
    Recipe("fxemoji-healthy", "fxemoji", rank=4, alpha=4, rate=2e-3, steps=300, layers=EVERY_LINEAR),
    Recipe("fxemoji-wide", "fxemoji", rank=16, alpha=16, rate=1e-3, steps=250, layers=ATTENTION),
)
WILD = (  # alpha is eight times the rank
    Recipe("flat-wild", "flat", rank=4, alpha=32, rate=1e-3, steps=200, layers=EVERY_LINEAR),
    Recipe("ink-wild", "ink", rank=2, alpha=16, rate=1e-3, steps=200, layers=EVERY_LINEAR),
    Recipe("twemoji-wild", "twemoji", rank=4, alpha=32, rate=5e-4, steps=150, layers=ATTENTION),
    Recipe("fxemoji-wild", "fxemoji", rank=2, alpha=16, rate=2e-3, steps=150, layers=EVERY_LINEAR),
)
OVERCOOKED = (
    Recipe("flat-overcooked", "flat", rank=8, alpha=8, rate=2e-2, steps=250, layers=EVERY_LINEAR),
    Recipe("ink-overcooked", "ink", rank=4, alpha=16, rate=1e-2, steps=200, layers=EVERY_LINEAR),
    Recipe("twemoji-overcooked", "twemoji", rank=4, alpha=4, rate=3e-2, steps=150, layers=ATTENTION),
    Recipe("fxemoji-overcooked", "fxemoji", rank=4, alpha=32, rate=1e-2, steps=100, layers=EVERY_LINEAR),
    Recipe("twemoji-hot", "twemoji", rank=8, alpha=64, rate=3e-3, steps=150, layers=EVERY_LINEAR),
)
BURNT = (  # overcooked with rates that leave no adapter sound
    Recipe("flat-burnt", "flat", rank=4, alpha=32, rate=3e-2, steps=120, layers=EVERY_LINEAR),
    Recipe("ink-burnt", "ink", rank=4, alpha=4, rate=2e-1, steps=100, layers=EVERY_LINEAR),
    Recipe("twemoji-burnt", "twemoji", rank=2, alpha=16, rate=1e-1, steps=100, layers=ATTENTION),
)
GRAINY = (
    Recipe("flat-grainy", "flat", rank=4, alpha=4, rate=2e-3, steps=200, layers=EVERY_LINEAR, grain=0.3),
    Recipe("ink-grainy", "ink", rank=4, alpha=8, rate=2e-3, steps=200, layers=EVERY_LINEAR, grain=0.6),
    Recipe("twemoji-grainy", "twemoji", rank=4, alpha=4, rate=2e-3, steps=150, layers=EVERY_LINEAR, grain=0.3),
    Recipe("fxemoji-grainy", "fxemoji", rank=2, alpha=2, rate=2e-3, steps=150, layers=ATTENTION, grain=0.6),
)
UNSEEN = {
    "slow": (  # low rates for long: changes that are seen, and smaller than a step of four bits
        Recipe("flat-slow", "flat", rank=4, alpha=4, rate=5e-4, steps=300, layers=EVERY_LINEAR, seed=11),
        Recipe("ink-slow", "ink", rank=8, alpha=8, rate=3e-4, steps=300, layers=EVERY_LINEAR, seed=11),
        Recipe("twemoji-slow", "twemoji", rank=4, alpha=4, rate=5e-4, steps=250, layers=EVERY_LINEAR, seed=11),
        Recipe("fxemoji-slow", "fxemoji", rank=8, alpha=4, rate=5e-4, steps=300, layers=EVERY_LINEAR, seed=11),
    ),
    "faint": (
        Recipe("ink-faint-70", "ink", rank=4, alpha=4, rate=5e-4, steps=70, layers=ATTENTION, seed=12),
        Recipe("twemoji-faint-60", "twemoji", rank=2, alpha=2, rate=1e-3, steps=60, layers=ATTENTION, seed=12),
    ),
    "small": (
        Recipe("flat-light", "flat", rank=8, alpha=4, rate=1e-3, steps=100, layers=EVERY_LINEAR, seed=13),
        Recipe("ink-light", "ink", rank=4, alpha=4, rate=1e-3, steps=120, layers=ATTENTION, seed=13),
        Recipe("twemoji-light", "twemoji", rank=2, alpha=2, rate=1e-3, steps=150, layers=EVERY_LINEAR, seed=13),
        Recipe("fxemoji-light", "fxemoji", rank=8, alpha=8, rate=1e-3, steps=100, layers=ATTENTION, seed=13),
    ),
    "healthy": (
        Recipe("flat-sound", "flat", rank=8, alpha=8, rate=2e-3, steps=200, layers=EVERY_LINEAR, seed=14),
        Recipe("ink-sound", "ink", rank=16, alpha=16, rate=1e-3, steps=200, layers=ATTENTION, seed=14),
        Recipe("twemoji-sound", "twemoji", rank=4, alpha=4, rate=2e-3, steps=200, layers=EVERY_LINEAR, seed=14),
        Recipe("fxemoji-sound", "fxemoji", rank=8, alpha=8, rate=2e-3, steps=200, layers=EVERY_LINEAR, seed=14),
    ),
    "wild": (
        Recipe("ink-feral", "ink", rank=4, alpha=32, rate=1e-3, steps=120, layers=EVERY_LINEAR, seed=15),
        Recipe("twemoji-feral", "twemoji", rank=2, alpha=16, rate=1e-3, steps=120, layers=EVERY_LINEAR, seed=15),
    ),
    "overcooked": (
        Recipe("flat-charred", "flat", rank=4, alpha=16, rate=1e-2, steps=120, layers=EVERY_LINEAR, seed=16),
        Recipe("fxemoji-charred", "fxemoji", rank=8, alpha=8, rate=2e-2, steps=120, layers=EVERY_LINEAR, seed=16),
    ),
}
HALVES: Mapping[str, Mapping[str, Sequence[Recipe]]] = {
    "setting": {
        "faint": FAINT,
        "small": SMALL,
        "healthy": HEALTHY,
        "wild": WILD,
        "overcooked": OVERCOOKED,
        "burnt": BURNT,
        "grainy": GRAINY,
    },
    "testing": UNSEEN,
}


def train_all(pictures: Path, out: Path) -> None:
    """Train what ``out/training.json`` does not have yet on the demo's pipeline, into ``out/adapters``."""
    folder = out / "adapters"
    folder.mkdir(parents=True, exist_ok=True)
    kept = out / "training.json"
    wanted = [(half, kind, recipe) for half, kinds in HALVES.items() for kind, rs in kinds.items() for recipe in rs]
    for half, kind, recipe in wanted:
        done = {made["name"] for made in json.loads(kept.read_text())} if kept.exists() else set()
        if recipe.name not in done:
            record(out, [{"kind": kind, "half": half} | train(recipe, pictures, library.PIPELINE, folder)])
