"""Draw docs/died-WAY.webp: adapters of the demo's zoo that die, each beside the base and its full-precision self.

``python -m benchmarks.died [WAY ...]`` runs them (some minutes each) and prints the verdicts that docs/died.md quotes.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

import qcheck
from benchmarks.pictures import COLUMNS, ROOT, draw
from benchmarks.zoo import cases
from benchmarks.zoo.pipelines import PIPELINES
from qcheck.spec import limits
from qcheck.spec.order import Order
from qcheck.tasks import check


@dataclass(frozen=True)
class Way:
    """An adapter of the zoo that dies in a scheme and order, at a guidance, and what keeps it alive."""

    adapter: str
    dies: tuple[str, Order]
    lives: tuple[str, Order] | None
    guidance: float = 3.0


WAYS = {"order": Way("flat-small", ("int4-g128", "quantize-merge"), ("int4-g128", "merge-quantize"))}


def rows_of(way: Way) -> list[tuple[str, np.ndarray]]:
    """Titled rows of pictures: the base, the adapter at full precision, what dies, and what lives."""
    one_look = limits.find("default").model_copy(update={"looks": (COLUMNS,)})
    pipeline = PIPELINES["demo"]
    spec = cases.request(pipeline, pipeline.adapter(way.adapter), way.guidance, limits=one_look, batch=8)
    rows: list[tuple[str, np.ndarray]] = []
    with qcheck.Session(spec) as session:
        for scheme, order in filter(None, (way.dies, way.lives)):
            made = session.quantize(scheme, order)
            case, looked = session.judge(made), check.look(made, COLUMNS)
            shown: Callable[..., np.ndarray] = made.session.decoder.pictures
            print(f"{way.adapter} {case.scheme} {order}: {case.verdict}; {case.reasons[0]}", flush=True)
            if not rows:
                rows = [("base", shown(looked.reference["base"], COLUMNS))]
                rows.append(("base + LoRA", shown(looked.reference["adapted"], COLUMNS)))
            rows.append((f"{case.scheme}\n{order}\n\n{case.verdict}", shown(looked.quantized["adapted"], COLUMNS)))
    return rows


def main() -> None:
    """Run and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("ways", nargs="*", default=[*WAYS], metavar="WAY")
    for name in parser.parse_args().ways:
        draw(rows_of(WAYS[name])).save(ROOT / "docs" / f"died-{name}.webp", quality=70, method=6)


if __name__ == "__main__":
    main()
