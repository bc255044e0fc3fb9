"""What finished pictures tell of adapters that are kept and lost, beside PSNR, SSIM, FLIP and the zoo's judges.

``python -m benchmarks.perceptual`` samples the pictures that the zoo's style judge looks at (64 prompts, ten steps) of
f0, f1, q1 in two orders of INT4, and of f1 at half of its weight, for adapters of the demo's zoo: about a minute an
adapter on one core, and seconds once they are in the cache. ``--write`` puts the table into docs/pictures.md.
"""

import argparse
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.replays import table
from benchmarks.zoo import cases, stored, style
from benchmarks.zoo.pipelines import PIPELINES, ROOT, SCALARS
from qcheck.core import cache
from qcheck.core.cache import Cache
from qcheck.core.progress import Silent
from qcheck.diagnose import features, flip_map, ungated
from qcheck.measure import interval
from qcheck.measure import style as measure
from qcheck.measure.sample import Sample
from qcheck.measure.style import Features
from qcheck.quantize import artifact
from qcheck.sampling import subject
from qcheck.sampling.sampler import Sampler
from qcheck.sampling.setup import Subject
from qcheck.spec import picture_limits
from qcheck.spec.arm import SIDES
from qcheck.tasks import session as sessions
from qcheck.tasks.session import Session

PAGE, STORED = ROOT / "docs" / "pictures.md", SCALARS / "demo" / "perceptual.json"
MARKED = re.compile(r"(<!-- perceptual:begin -->\n).*?(<!-- perceptual:end -->)", re.DOTALL)
PIPELINE, GUIDANCE, SCHEME, HALF = PIPELINES["demo"], 3.0, "int4-g128", "half weight"
ADAPTERS = (
    *("flat-charred", "flat-slow", "flat-small", "flat-sound", "fxemoji-sound", "ink-feral", "ink-light"),
    *("ink-slow", "ink-small", "ink-sound", "twemoji-light", "twemoji-slow", "twemoji-small", "twemoji-sound"),
)
NAMES = ("style_survival", "subject_survival", "deep_distance", "psnr", "ssim", "flip")
SIZES = (8, 16)  # of groups of pictures
GOOD = 25.0  # dB of PSNR that public comparisons call good


def pictures(session: Session, arm: Subject) -> np.ndarray:
    """Pictures [n, H, W, 3] in [0, 1] of an arm: those of the zoo's style judge."""
    shown = cases.shown(session.spec.probes)
    sampler = Sampler.of(session.arms, shown, 1, session.spec.execution.batch, session.store)
    finals = torch.from_numpy(np.stack(list(sampler.reference(arm, lambda _: None).finals())))
    with torch.no_grad():
        decoded: np.ndarray = session.sampler.setup.family.decode(finals).permute(0, 2, 3, 1).numpy()
    return decoded


def sampled(adapter: str) -> dict[str, np.ndarray]:
    """Pictures of f0, f1, of q1 by order, and of f1 at half weight."""
    path, store = PIPELINE.adapter(adapter), Cache(cache.location())
    request = cases.request(PIPELINE, path, GUIDANCE, scheme=(SCHEME,))
    with tempfile.TemporaryDirectory() as folder, sessions.opened(request, store, Silent()) as session:
        seen = {arm.name: pictures(session, arm) for arm in (subject.full(session.arms, side) for side in SIDES)}
        scheme = session.spec.schemes[0]
        for order in session.spec.orders:
            made = artifact.write(session.sources(scheme), order, Path(folder) / order)
            seen[order] = pictures(session, session.quantized(f"{order} (q1)", "adapted", made.runs, scheme))
    halved = cases.request(PIPELINE, path, GUIDANCE, scheme=(SCHEME,), weight=0.5)
    with sessions.opened(halved, store, Silent()) as session:
        seen[HALF] = pictures(session, subject.full(session.arms, "adapted"))
    return seen


def rows(adapter: str) -> Iterator[dict[str, Any]]:
    """What every measurement and judge says of an adapter's q1 in each order, and of half of its weight."""
    seen = sampled(adapter)
    told = {name: features.of(one) for name, one in seen.items()}
    kind = next(one for one in PIPELINE.records() if one["name"] == adapter)["style"]
    margins = {name: _margins(one, kind) for name, one in seen.items()}
    judged_before = stored.read(PIPELINE.cases(adapter, GUIDANCE))["cases"]
    utility = {one["order"]: one["utility"]["value"] for one in judged_before if one["scheme"] == SCHEME}
    for name in (*cases.ORDERS, HALF):
        judged = style.judge(margins["f0"], margins["f1"], margins[name])
        yield {
            "adapter": adapter,
            "case": name,
            "fate": judged.fate,
            "kept": judged.kept,
            "kept_error": judged.error,
            "utility": utility.get(name),
            "measured": _measured(seen, told, name),
            "groups": {str(size): _groups(told, name, size) for size in SIZES},
        }


def _groups(told: Mapping[str, Features], name: str, size: int) -> list[tuple[float | None, float | None]]:
    """The interval of style_survival on every group of so many of the pictures."""
    bounds = []
    for start in range(0, cases.SHOWN, size):
        rows = slice(start, start + size)
        parts = [
            Features(tuple(s[rows] for s in one.styles), tuple(p[rows] for p in one.places), one.subject[rows])
            for one in (told["f0"], told["f1"], told[name])
        ]
        found = interval.measure(measure.style_survival(*parts), None, 0.05)
        bounds.append((found.low, found.high))
    return bounds


def _margins(shown: np.ndarray, kind: str) -> np.ndarray:
    with torch.no_grad():
        logits = style.seen(style.stored(PIPELINE), torch.from_numpy(shown).permute(0, 3, 1, 2))
    return style.margins(logits, PIPELINE.styles.index(kind))


def _measured(
    seen: Mapping[str, np.ndarray], told: Mapping[str, Features], name: str
) -> dict[str, tuple[float | None, ...]]:
    samples = [
        *measure.samples(told["f0"], told["f1"], {"adapted": told[name]}),
        *ungated.pixels("adapted", seen[name], seen["f1"], flip_map.maps(seen[name], seen["f1"])),
    ]
    found = [interval.measure(one, None, 0.05) for one in samples if isinstance(one, Sample)]
    return {one.name: (one.value, one.low, one.high) for one in found if one.name in NAMES}


def summary(found: Sequence[Mapping[str, Any]]) -> str:
    """The table, and what it says."""
    titles = (
        "adapter",
        "case",
        "style judge",
        "U",
        "style survival",
        "subject",
        "deep distance",
        "PSNR",
        "SSIM",
        "FLIP",
    )
    lines = [titles, *(_line(one) for one in found)]
    quantized = [one for one in found if one["case"] != HALF]
    low = next(gate.low for gate in picture_limits.find("default").gates if gate.name == "style_survival")
    counts = [
        _count(quantized, f"style survival below {low:g}", lambda one: _value(one, "style_survival") < low),
        _count(quantized, f"PSNR below {GOOD:g} dB", lambda one: _value(one, "psnr") < GOOD),
    ]
    counts += [_agreement(quantized, str(size), low) for size in SIZES]
    half = [_value(one, "style_survival") for one in found if one["case"] == HALF]
    return (
        f"{table(lines)}\n\n" + "\n".join(counts) + f"\nhalf weight: style survival {min(half):.2f} to {max(half):.2f}"
    )


def _agreement(found: Sequence[Mapping[str, Any]], size: str, limit: float) -> str:
    """How often a group of pictures decides, against all of them, and covers the value of all."""
    groups = [(_value(one, "style_survival"), *bounds) for one in found for bounds in one["groups"][size]]
    decided = [(value, low) for value, low, high in groups if low >= limit or high < limit]
    wrong = sum((low >= limit) != (value >= limit) for value, low in decided)
    covered = sum(low <= value <= high for value, low, high in groups)
    return (
        f"{size} pictures: {len(decided)} of {len(groups)} groups decide, {wrong} against all 64; "
        f"{covered} intervals cover the value of all 64"
    )


def _value(one: Mapping[str, Any], name: str) -> float:
    return float(one["measured"][name][0])


def damaged(one: Mapping[str, Any]) -> bool | None:
    """By the style judge or by U; None where the first cannot tell and the second sees nothing."""
    if one["fate"] == "damaged" or (one["utility"] is not None and one["utility"] < 0.75):
        return True
    return False if one["fate"] == "intact" else None


def _count(found: Sequence[Mapping[str, Any]], title: str, alarm: Callable[[Mapping[str, Any]], bool]) -> str:
    lost = [one for one in found if damaged(one)]
    kept = [one for one in found if damaged(one) is False]
    fractions = [f"{sum(map(alarm, these))} of {len(these)} {word}" for these, word in ((lost, "lost"), (kept, "kept"))]
    return f"{title}: {', '.join(fractions)}"


def _line(one: Mapping[str, Any]) -> tuple[str, ...]:
    value, low, high = one["measured"]["style_survival"]
    rest = [f"{_value(one, name):.2f}" for name in ("subject_survival", "deep_distance")]
    pixels = [f"{_value(one, 'psnr'):.1f}", f"{_value(one, 'ssim'):.2f}", f"{_value(one, 'flip'):.3f}"]
    judge = "-" if one["fate"] == "undefined" else f"{one['fate']} {one['kept']:.2f}"
    utility = "-" if one["utility"] is None else f"{one['utility']:.2f}"
    return one["adapter"], one["case"], judge, utility, f"{value:.2f} [{low:.2f}, {high:.2f}]", *rest, *pixels


def main() -> None:
    """Sample, measure, store; or write the table from what is stored."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help="put the table into docs/pictures.md")
    asked = parser.parse_args()
    if not asked.write:
        torch.set_num_threads(1)
        found = []
        for adapter in ADAPTERS:
            found += [cases.plain(one) for one in rows(adapter)]
            print(adapter, flush=True)
        STORED.write_text("[\n" + ",\n".join(map(json.dumps, found)) + "\n]\n", "utf-8")
    text = summary(json.loads(STORED.read_text("utf-8")))
    print(text)
    if asked.write:
        content = MARKED.sub(lambda match: f"{match[1]}```\n{text}\n```\n{match[2]}", PAGE.read_text("utf-8"))
        PAGE.write_text(content, "utf-8")


if __name__ == "__main__":
    main()
