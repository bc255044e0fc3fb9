"""A finished check as a folder: report.json, its renderings, evidence, pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from qcheck.diagnose.curves import ARMS, frequencies
from qcheck.diagnose.sheet import AMPLIFY, Sheet, difference, eight_bits
from qcheck.report import contact, html, junit, markdown
from qcheck.result.evidence import NAME, PICTURES, CaseEvidence, Evidence, Pictures
from qcheck.result.report import REPORT, Case, Report
from qcheck.spec import command
from qcheck.spec.arm import SIDES, Side

_EDGE, _LOSSLESS, _QUALITY = 256, 128, 88  # pixels of a stored picture; up to which it is exact; else WebP's quality


@dataclass(frozen=True)
class SharedEvidence:
    """What all cases share: the strata as steps from 1, sides of the latents, the alignment of layers in dB."""

    steps: Sequence[int]
    sides: tuple[int, int]
    alignment: Mapping[str, float]


def write(
    report: Report,
    found: Sequence[tuple[Case, CaseEvidence | None, Sheet]],
    shown: SharedEvidence,
    folder: Path,
) -> None:
    """Write a finished check below ``folder``: everything but the artifacts, which are there already.

    ``found`` are the cases with their evidence, where anything was run, and their pictures.
    """
    contact.draw([sheet for _, _, sheet in found], folder / "contact.png")
    (folder / NAME).write_text(evidence(found, shown, folder).to_json(), "utf-8")
    values(report, folder)
    html.write(folder)


def values(report: Report, folder: Path) -> None:
    """Write what the report alone says: report.json, report.md, junit.xml and, beside them, the request's own files."""
    (folder / REPORT).write_text(report.to_json(), "utf-8")
    (folder / "report.md").write_text(markdown.render(report), "utf-8")
    (folder / "junit.xml").write_text(junit.render(report), "utf-8")
    command.save(report.spec, folder)


def evidence(found: Sequence[tuple[Case, CaseEvidence | None, Sheet]], shown: SharedEvidence, folder: Path) -> Evidence:
    """The evidence of all cases, with the pictures of those that have any written below ``folder``."""
    (folder / PICTURES).mkdir()
    cases, prompts = [], []
    for number, (_, seen, sheet) in enumerate(found):
        if seen is not None:
            drawn = [_draw(sheet, side, number, folder) for side in SIDES if any(a.arm == side for a in seen.along)]
            cases.append(seen.model_copy(update={"pictures": drawn}))
            prompts = [*sheet.prompts]
    return Evidence(
        strata=list(shown.steps),
        frequencies=frequencies(shown.sides),
        amplify=AMPLIFY,
        prompts=prompts,
        alignment=dict(shown.alignment),
        cases=cases,
    )


def _draw(sheet: Sheet, side: Side, number: int, folder: Path) -> Pictures:
    rows = range(len(sheet.prompts))
    full, quantized, arm = sheet.reference[side], sheet.quantized[side], ARMS[side]
    return Pictures(
        arm=side,
        reference=[_picture(full[i], folder, f"f{arm}-{i + 1}") for i in rows],
        quantized=[_picture(quantized[i], folder, f"q{arm}-{i + 1}-case{number + 1}") for i in rows],
        difference=[
            _picture(difference(full[i], quantized[i]), folder, f"e{arm}-{i + 1}-case{number + 1}") for i in rows
        ],
    )


def _picture(values: np.ndarray, folder: Path, name: str) -> str:
    """Write a picture [H, W, 3], made smaller where it is large; its name relative to ``folder``."""
    image = Image.fromarray(eight_bits(values))
    image.thumbnail((_EDGE, _EDGE), Image.Resampling.LANCZOS)
    where = f"{PICTURES}/{name}.webp"
    image.save(folder / where, lossless=max(image.size) <= _LOSSLESS, quality=_QUALITY, method=6)
    return where
