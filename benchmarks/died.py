"""Draw docs/died-WAY.webp: adapters of the demo's zoo that die, each beside the base and its full-precision self.

``python -m benchmarks.died [WAY ...]`` runs them (a minute a look on one core) and prints what docs/died.md quotes.
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import qcheck
from benchmarks.pictures import COLUMNS, ROOT, draw
from benchmarks.zoo import cases, style
from benchmarks.zoo.pipelines import PIPELINES
from qcheck.api.keywords import Request
from qcheck.result.report import Case
from qcheck.spec import limits
from qcheck.spec.check import CheckSpec
from qcheck.spec.order import Order
from qcheck.spec.recipe import Method
from qcheck.tasks import check

DEMO = PIPELINES["demo"]
_SCHEMES = Path(cases.__file__).parent / "schemes"
PER_TENSOR = str(_SCHEMES / "int4-tensor-all.toml")
_MOST = 60_000  # bytes of a picture
SHOWN = ("effect_survival", "effect_to_error", "endpoint_error")


@dataclass(frozen=True)
class Look:
    """An adapter of the zoo under a scheme and order, at a guidance and weight.

    ``merged`` is an adapter that makes another checkpoint of the base, ``kept`` how many of the most costly layers of
    the same look without it stay in float, ``foreign`` says that the inputs' ranges are those of the base without the
    adapter, ``ranged_at`` is another guidance that they were found at, ``method`` what cuts them. One that is not
    ``drawn`` is judged alone.
    """

    adapter: str
    scheme: str
    order: Order = "merge-quantize"
    guidance: float = 3.0
    weight: float = 1.0
    merged: str | None = None
    kept: int = 0
    foreign: bool = False
    ranged_at: float | None = None
    method: Method = "max"
    probes: int = 16
    drawn: bool = True

    @property
    def reference(self) -> tuple[object, ...]:
        """What the pictures at full precision depend on."""
        return self.adapter, self.guidance, self.weight, self.merged

    @property
    def sampled(self) -> str:
        """What differs from the usual at full precision, a line each."""
        parts = {
            f"guidance {self.guidance:g}": self.guidance != 3,
            f"weight {self.weight:g}": self.weight != 1,
            "another checkpoint": self.merged is not None,
        }
        return "\n".join(text for text, holds in parts.items() if holds)

    @property
    def made(self) -> str:
        """What differs from the usual in what ships, a line each."""
        parts = {f"{self.kept} layers in float": self.kept > 0, "the base's ranges": self.foreign}
        return "\n".join([self.scheme_title, self.order, *(text for text, holds in parts.items() if holds)])

    @property
    def scheme_title(self) -> str:
        """The scheme's name."""
        return Path(self.scheme).stem


FAINT = Look("flat-small", "int4-g128", "quantize-merge")
ROUGH = Look("twemoji-overcooked", PER_TENSOR, probes=32)
LINEAR = Look("twemoji-overcooked", str(_SCHEMES / "int4-tensor.toml"), drawn=False)
HOT = Look("twemoji-overcooked", "int8", probes=32)
GUIDED = Look("ink-slow", "fp8")
INK = Look("ink-healthy", "int8")
WAYS: Mapping[str, tuple[Look, ...]] = {
    "order": (FAINT, dataclasses.replace(FAINT, order="merge-quantize")),
    "weight": (
        FAINT,
        dataclasses.replace(FAINT, weight=2.0),
        dataclasses.replace(FAINT, order="unmerged", drawn=False),
    ),
    "step": (
        ROUGH,
        dataclasses.replace(ROUGH, kept=24),
        dataclasses.replace(ROUGH, scheme="int4-g128"),
        dataclasses.replace(ROUGH, scheme="int4-g32", drawn=False),
        dataclasses.replace(ROUGH, weight=0.5, drawn=False),
        Look("flat-small", PER_TENSOR, drawn=False),
        LINEAR,
        dataclasses.replace(LINEAR, kept=3),
    ),
    "base": (
        INK,
        dataclasses.replace(INK, merged="twemoji-healthy"),
        dataclasses.replace(INK, merged="flat-healthy", drawn=False),
    ),
    "guidance": (
        dataclasses.replace(GUIDED, guidance=1.0),
        dataclasses.replace(GUIDED, drawn=False),
        dataclasses.replace(GUIDED, guidance=7.5),
        dataclasses.replace(GUIDED, scheme="int8", guidance=7.5, drawn=False),
        dataclasses.replace(GUIDED, scheme="int8", guidance=7.5, ranged_at=1.0, drawn=False),
    ),
    "ranges": (
        dataclasses.replace(HOT, foreign=True),
        HOT,
        dataclasses.replace(HOT, method="mse", drawn=False),
        dataclasses.replace(HOT, adapter="ink-overcooked", foreign=True, drawn=False),
    ),
}


def spec_of(look: Look, costly: list[str], folder: Path) -> CheckSpec:
    """The check of a look; ``costly`` are layers by cost, and ``folder`` is for its ranges."""
    recipe = DEMO.recipe()
    one_look = limits.find("default").model_copy(update={"looks": (look.probes,)})
    asked = Request(
        limits=one_look,
        scheme=look.scheme,
        order=look.order,
        guidance=look.guidance,
        weight=look.weight,
        recipe=recipe.model_copy(update={"keep": (*recipe.keep, *costly[: look.kept]), "method": look.method}),
    )
    if look.merged:
        asked["with_lora"] = DEMO.adapter(look.merged)
    adapter = DEMO.adapter(look.adapter)
    if look.foreign or look.ranged_at:
        other = Request(**{**asked, "guidance": look.ranged_at or look.guidance})
        asked["ranges"] = _ranges(look, cases.request(DEMO, adapter, **other), folder)
    return cases.request(DEMO, adapter, **asked)


def _ranges(look: Look, spec: CheckSpec, folder: Path) -> Path:
    """A file of ranges that are not the look's own, and say that they are: qcheck refuses what does not fit."""
    found = qcheck.calibrate(spec)
    base, adapted, method = found.cuts["base"], found.cuts["adapted"], found.method
    if look.foreign:
        beyond = sorted((adapted[name][method] / cut[method] for name, cut in base.items()), reverse=True)
        print(
            f"  beyond the base's range: {sum(one > 1 for one in beyond)} of {len(beyond)} inputs, "
            f"{sum(one > 2 for one in beyond)} more than twice, at most {beyond[0]:.0f} times"
        )
        adapted = base
    settings = {**found.settings, "guidance": look.guidance}
    changed = found.model_copy(update={"cuts": {"base": base, "adapted": adapted}, "settings": settings})
    path = folder / "ranges.json"
    path.write_text(changed.model_dump_json(by_alias=True))
    return path


def rows_of(looks: tuple[Look, ...]) -> list[tuple[str, np.ndarray]]:
    """Titled rows of pictures: at full precision, where they are others than before, and what ships."""
    rows: list[tuple[str, np.ndarray]] = []
    costly: dict[Look, list[str]] = {}
    last: tuple[object, ...] = ()
    for look in looks:
        plain = dataclasses.replace(look, kept=0, drawn=True)
        with (
            tempfile.TemporaryDirectory() as folder,
            qcheck.Session(spec_of(look, costly.get(plain, []), Path(folder))) as session,
        ):
            made = session.quantize(look.scheme, look.order)
            case, looked = session.judge(made), check.look(made, look.probes)
            costly[plain] = [layer.name for layer in case.layers]
            traces = {
                "f0": looked.reference["base"],
                "f1": looked.reference["adapted"],
                "q1": looked.quantized["adapted"],
            }
            pictures = {name: made.session.decoder.pictures(trace, look.probes) for name, trace in traces.items()}
        _say(look, case, pictures)
        if not look.drawn:
            continue
        if look.reference != last:
            rows.append((f"base\n{look.sampled}", pictures["f0"][:COLUMNS]))
            rows.append((f"base + LoRA\n{look.sampled}", pictures["f1"][:COLUMNS]))
            last = look.reference
        rows.append((f"{look.made}\n{case.verdict}", pictures["q1"][:COLUMNS]))
    return rows


def _say(look: Look, case: Case, pictures: Mapping[str, np.ndarray]) -> None:
    """Print a look's verdict, measurements, and what the judge of styles sees of the adapter's style."""
    print(f"{look.adapter} {look.made} {look.sampled} ranges by {look.method}: {case.verdict}".replace("\n", " "))
    if look.merged or look.ranged_at:
        print(f"  merged into the base: {look.merged}; ranges at guidance {look.ranged_at}")
    print(f"  {look.probes} probes; {case.reasons[0]}")
    for found in case.measurements:
        if found.name in SHOWN and found.value is not None:
            print(f"  {found.name} ({found.arm}) {found.value:.3f} [{found.low:.3f}, {found.high:.3f}]")
    judge, number = style.stored(DEMO), DEMO.styles.index(look.adapter.split("-")[0])
    for name, values in pictures.items():
        odds = style.margins(style.seen(judge, _signed(values)), number)
        print(f"  log odds of the style, {name}: {odds.mean():.2f}", flush=True)


def _signed(pictures: np.ndarray) -> Any:
    """Pictures [n, H, W, 3] in [0, 1] as the judge takes them: [n, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() * 2 - 1


def main() -> None:
    """Run and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("ways", nargs="*", default=[*WAYS], metavar="WAY")
    for name in parser.parse_args().ways:
        _save(draw(rows_of(WAYS[name])), ROOT / "docs" / f"died-{name}.webp")


def _save(picture: Image.Image, path: Path) -> None:
    """Write a picture at the best quality that keeps it small."""
    for quality in (70, 60, 50, 40, 30):
        picture.save(path, quality=quality, method=6)
        if path.stat().st_size <= _MOST:
            return


if __name__ == "__main__":
    main()
