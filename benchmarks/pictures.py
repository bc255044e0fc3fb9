"""Draw docs/lost.png: one adapter, one scheme, two orders, of which one loses it.

``python -m benchmarks.pictures`` runs the check (a minute) and prints the measurements that the page quotes.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import qcheck
from benchmarks.zoo import cases
from benchmarks.zoo.pipelines import PIPELINES
from qcheck.diagnose.sheet import eight_bits
from qcheck.spec.order import Order
from qcheck.tasks import check

ROOT = Path(__file__).parent.parent
ADAPTER, SCHEME = "flat-small", "int4-g128"
ORDERS: tuple[Order, ...] = ("merge-quantize", "quantize-merge")
COLUMNS, TILE, LABEL = 8, 96, 150


def main() -> None:
    """Run, draw, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "lost.png")
    asked = parser.parse_args()
    rows: list[tuple[str, np.ndarray]] = []
    with qcheck.Session(cases.request(PIPELINES["demo"], PIPELINES["demo"].adapter(ADAPTER))) as session:
        for order in ORDERS:
            made = session.quantize(SCHEME, order)
            case, seen = session.judge(made), check.look(made, cases.PROBES)
            print(f"{SCHEME} {order}: {case.verdict}")
            for found in case.measurements:
                value = "-" if found.value is None else f"{found.value:.3g}"
                held = "no limit" if found.limit is None else found.limit.text()
                print(f"  {found.name} ({found.arm}) {value} {found.unit}, {held}, {found.status}")
            shown = made.session.decoder.pictures
            if not rows:
                rows = [("base", shown(seen.reference["base"], COLUMNS))]
                rows.append(("base + LoRA", shown(seen.reference["adapted"], COLUMNS)))
            rows.append((f"{SCHEME}\n{order}\n\n{case.verdict}", shown(seen.quantized["adapted"], COLUMNS)))
    draw(rows).quantize(128).save(asked.out, optimize=True)


def draw(rows: list[tuple[str, np.ndarray]]) -> Image.Image:
    """Titled rows of pictures [n, H, W, 3] in [0, 1]."""
    canvas = Image.new("RGB", (LABEL + COLUMNS * TILE, len(rows) * TILE), "white")
    pen = ImageDraw.Draw(canvas)
    for row, (title, pictures) in enumerate(rows):
        pen.multiline_text((6, row * TILE + 20), title, fill="black", font_size=13)
        for column, values in enumerate(eight_bits(pictures)):
            small = Image.fromarray(values).resize((TILE - 2, TILE - 2), Image.Resampling.LANCZOS)
            canvas.paste(small, (LABEL + column * TILE, row * TILE))
    return canvas


if __name__ == "__main__":
    main()
