"""Draw docs/lost.png: one adapter, one scheme, two orders, of which one loses it.

``python -m benchmarks.pictures`` runs the check (a minute) and prints the measurements that the page quotes.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from benchmarks.zoo import cases
from qcheck.calibrate import inputs as calibrate
from qcheck.core.progress import Silent
from qcheck.quantize import artifact
from qcheck.spec import scheme
from qcheck.spec.order import Order
from qcheck.tasks import check, work

ROOT = Path(__file__).parent.parent
ADAPTER, SCHEME = "flat-small", "int4-g128"
ORDERS: tuple[Order, ...] = ("merge-quantize", "quantize-merge")
COLUMNS, TILE, LABEL = 8, 96, 150


def main() -> None:
    """Run, draw, print."""
    chosen = scheme.find(SCHEME)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started = work.prepare(cases.job(ROOT / "zoo/adapters" / f"{ADAPTER}.safetensors", folder), folder, Silent())
        reference = check.trace_reference(started, cases.PROBES)
        inputs = calibrate.inputs(started, chosen)
        made = artifact.Making(started.arms, started.exporter, started.store, chosen, started.job.recipe, inputs)
        floor, controls = check.run_controls(started, chosen)
        q0 = started.quantized("q0", "base", artifact.write_base(made))
        base = check.trace_artifact(started, q0, reference["adapted"])
        rows = [("base", reference["base"]), ("base + LoRA", reference["adapted"])]
        for order in ORDERS:
            q1 = started.quantized(f"q1 {order}", "adapted", artifact.write(made, order, folder / "made").runs)
            adapted = check.trace_artifact(started, q1, reference["adapted"])
            samples, energies = check.measure(started.setup, reference, {"base": base, "adapted": adapted}, floor)
            limits = started.job.limits.computing(chosen.compute)
            verdict = check.decide(limits, started.setup.weights, controls, samples, energies, [])
            print(f"{SCHEME} {order}: {verdict.outcome}")
            for seen in verdict.measurements:
                held = seen.limit.text() if seen.limit is not None else "no limit"
                print(f"  {seen.name} ({seen.arm}) {seen.value:.3g} {seen.unit}, {held}, {seen.status}")
            rows.append((f"{SCHEME}\n{order}\n\n{verdict.outcome}", adapted))
        decode = started.arms.use("base").decode
        canvas = Image.new("RGB", (LABEL + COLUMNS * TILE, len(rows) * TILE), "white")
        pen = ImageDraw.Draw(canvas)
        for row, (title, traced) in enumerate(rows):
            pen.multiline_text((6, row * TILE + 20), title, fill="black", font_size=13)
            for column, picture in enumerate(_pictures(decode, list(traced.finals())[:COLUMNS])):
                canvas.paste(picture, (LABEL + column * TILE, row * TILE))
        canvas.quantize(128).save(ROOT / "docs" / "lost.png", optimize=True)


def _pictures(decode: Callable[[torch.Tensor], torch.Tensor], finals: list[np.ndarray]) -> list[Image.Image]:
    with torch.no_grad():
        found = decode(torch.from_numpy(np.stack(finals))).permute(0, 2, 3, 1).numpy()
    values = (np.clip(found, 0, 1) * 255).round().astype(np.uint8)
    return [Image.fromarray(one).resize((TILE - 2, TILE - 2), Image.Resampling.LANCZOS) for one in values]


if __name__ == "__main__":
    main()
