"""What a second network sees in zoo cases that pass although the style judge alone calls them damaged.

The judge is a small classifier of a pipeline's drawing styles. The second one is the network of ``qcheck pictures``,
which never saw a picture of the zoo: its **style_survival** on the same 64 samples. ``python -m benchmarks.witness``
asks it about all of those cases and stores what it says in ``zoo/witness.json`` (a minute an adapter and guidance),
which ``benchmarks.verdicts`` prints beside them. An adapter that was trained anew since is left out.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks import perceptual
from benchmarks.judged import WITNESS, Case, read
from benchmarks.replays import LOOKS
from benchmarks.zoo import cases, style
from benchmarks.zoo.pipelines import PIPELINES, SCALARS
from qcheck.core import cache
from qcheck.core.cache import Cache
from qcheck.core.progress import Silent
from qcheck.diagnose import features
from qcheck.measure import interval
from qcheck.measure import style as measure
from qcheck.sampling import subject
from qcheck.spec import limits
from qcheck.spec.arm import SIDES
from qcheck.tasks import check
from qcheck.tasks import session as sessions

_SAME = 0.01  # nat between logits of one adapter, measured twice, in the mean


def doubtful(every: Sequence[Case]) -> list[Case]:
    """The cases that pass although the style judge calls them damaged, and nothing else does."""
    chosen = limits.find("default")
    alone = [case for case in every if case.by_style and not case.by_utility and not case.by_own_utility]
    return [case for case in alone if case.replayed(chosen, LOOKS)[0] == "PASS"]


def asked(those: Sequence[Case]) -> Iterator[tuple[str, float]]:
    """The title and style survival of cases of one adapter at one guidance; not of those where it has no number."""
    first = those[0].adapter
    pipeline = PIPELINES[first["pipeline"]]
    schemes = tuple(dict.fromkeys(case.stored["scheme"] for case in those))
    named = [name for name in cases.SCHEMES if Path(name).stem in {Path(one).stem for one in schemes}]
    request = cases.request(pipeline, pipeline.adapter(first["adapter"]), first["guidance"], scheme=named)
    with (
        tempfile.TemporaryDirectory() as folder,
        sessions.opened(request, Cache(cache.location()), Silent()) as session,
    ):
        full = [perceptual.pictures(session, subject.full(session.arms, side)) for side in SIDES]
        if not _is_same(full[1], first):
            print(f"{first['pipeline']} {first['adapter']}: trained anew since", flush=True)
            return
        f0, f1 = (features.of(pictures) for pictures in full)
        for scheme in session.spec.schemes:
            base = check.quantize_base(session, scheme)
            for case in those:
                if case.scheme == Path(scheme.name).stem:
                    made = check.make(session, case.stored["order"], base, Path(folder))
                    q1 = features.of(perceptual.pictures(session, made.q1))
                    survival = interval.measure(measure.style_survival(f0, f1, q1), None, 0.05).value
                    if survival is not None and np.isfinite(survival):
                        yield case.title, round(survival, 3)


def _is_same(pictures: np.ndarray, stored: dict[str, object]) -> bool:
    pipeline = PIPELINES[str(stored["pipeline"])]
    with torch.no_grad():
        logits = style.seen(style.stored(pipeline), torch.from_numpy(pictures).permute(0, 3, 1, 2))
    return bool(np.abs(logits - np.array(stored["style_f1"])).mean() < _SAME)


def main() -> None:
    """Ask about all of them, and store it."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None).parse_args()
    torch.set_num_threads(1)
    groups: dict[tuple[str, float], list[Case]] = {}
    for case in doubtful(read(SCALARS)[0]):
        groups.setdefault(
            (f"{case.adapter['pipeline']} {case.adapter['adapter']}", case.adapter["guidance"]), []
        ).append(case)
    said = {}
    for those in groups.values():
        for title, survival in asked(those):
            said[title] = survival
            print(f"{title}: {survival:.2f}", flush=True)
    (SCALARS / WITNESS).write_text(json.dumps(said, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
