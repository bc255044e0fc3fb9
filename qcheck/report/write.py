"""A finished check as a folder: report.json, its renderings, evidence, pictures."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from qcheck.core.folder import rewrite
from qcheck.diagnose.curves import ARMS, frequencies
from qcheck.diagnose.sheet import AMPLIFY, Sheet, difference, eight_bits
from qcheck.report import contact, html, junit, markdown, seal
from qcheck.result.evidence import NAME, PICTURES, CaseEvidence, Evidence, Pictures, full_size
from qcheck.result.report import REPORT, Case, Report
from qcheck.spec import command
from qcheck.spec.arm import SIDES, Side

_EDGE, _LOSSLESS, _QUALITY = 256, 128, 88  # pixels of a stored picture; up to which it is exact; else WebP's quality


@dataclass(frozen=True)
class SharedEvidence:
    """Evidence that all cases share: the strata as steps from 1, sides of the latents, alignment of layers in dB."""

    steps: Sequence[int]
    sides: tuple[int, int]
    alignment: Mapping[str, float]


def write(
    report: Report,
    results: Sequence[tuple[Case, CaseEvidence | None, Sheet]],
    shared: SharedEvidence,
    folder: Path,
) -> None:
    """Write a finished check below ``folder``: everything but the artifacts, which are there already.

    ``results`` are the cases with their evidence, None where nothing was run, and their pictures.
    """
    contact.draw([sheet for _, _, sheet in results], folder / "contact.png")
    (folder / NAME).write_text(evidence(results, shared, folder).to_json(), "utf-8")
    values(report, folder)
    html.write(folder)
    seal.write(report, folder)


def values(report: Report, folder: Path) -> None:
    """Write what the report alone says: report.json, report.md and junit.xml, with the request's own files."""
    for name, content in _values(report).items():
        (folder / name).write_bytes(content)
    command.save(report.spec, folder)


def _values(report: Report) -> dict[str, bytes]:
    texts = {REPORT: report.to_json(), "report.md": markdown.render(report), "junit.xml": junit.render(report)}
    return {name: text.encode() for name, text in texts.items()}


def renew(report: Report, folder: Path) -> None:
    """Write a report that has more in it over the one in ``folder``, and render it again: all of it or nothing."""
    page = html.render(replace(html.read(folder), report=report))
    contents = {**_values(report), html.NAME: page.encode()}
    rewrite(folder, {**contents, **seal.renewed(report, folder, contents)})


def page(folder: Path) -> Path:
    """Render the page of a finished check again; its path."""
    source = html.read(folder)
    contents = {html.NAME: html.render(source).encode()}
    rewrite(folder, {**contents, **seal.renewed(source.report, folder, contents)})
    return folder / html.NAME


def evidence(
    results: Sequence[tuple[Case, CaseEvidence | None, Sheet]], shared: SharedEvidence, folder: Path
) -> Evidence:
    """The evidence of all cases; their pictures are written below ``folder``."""
    (folder / PICTURES).mkdir()
    cases, prompts = [], []
    for number, (_, case_evidence, sheet) in enumerate(results):
        if case_evidence is not None:
            pictures = [
                draw(sheet, side, number, folder) for side in SIDES if any(a.arm == side for a in case_evidence.along)
            ]
            cases.append(case_evidence.model_copy(update={"pictures": pictures}))
            prompts = [*sheet.prompts]
    return Evidence(
        strata=list(shared.steps),
        frequencies=frequencies(shared.sides),
        amplify=AMPLIFY,
        prompts=prompts,
        alignment=dict(shared.alignment),
        cases=cases,
    )


def draw(sheet: Sheet, side: Side, number: int, folder: Path) -> Pictures:
    """Store an arm's pictures of case ``number``, from 0, below ``folder``; of one that was not quantized f alone."""
    rows = range(len(sheet.prompts))
    full, arm = sheet.reference[side], ARMS[side]
    reference = [_picture(full[i], folder, f"f{arm}-{i + 1}") for i in rows]
    if (quantized := sheet.quantized.get(side)) is None:
        return Pictures(arm=side, reference=reference, quantized=[], difference=[])
    return Pictures(
        arm=side,
        reference=reference,
        quantized=[_picture(quantized[i], folder, f"q{arm}-{i + 1}-case{number + 1}") for i in rows],
        difference=[
            _picture(difference(full[i], quantized[i]), folder, f"e{arm}-{i + 1}-case{number + 1}") for i in rows
        ],
        flip=[
            _picture(one.colours, folder, f"m{arm}-{i + 1}-case{number + 1}")
            for i, one in enumerate(sheet.flips.get(side, ()))
        ],
    )


def _picture(values: np.ndarray, folder: Path, name: str) -> str:
    """Write a picture [H, W, 3], shrunk to the stored size, and in full where it is larger; its path in ``folder``."""
    image, file = Image.fromarray(eight_bits(values)), f"{PICTURES}/{name}.webp"
    if max(image.size) > _EDGE:
        large = folder / full_size(file)
        large.parent.mkdir(exist_ok=True)
        large.write_bytes(_webp(image, lossless=False))
    image.thumbnail((_EDGE, _EDGE), Image.Resampling.LANCZOS)
    (folder / file).write_bytes(_webp(image, lossless=max(image.size) <= _LOSSLESS))
    return file


def _webp(image: Image.Image, lossless: bool) -> bytes:
    content = io.BytesIO()
    image.save(content, "webp", lossless=lossless, quality=_QUALITY, method=6)
    return content.getvalue()
