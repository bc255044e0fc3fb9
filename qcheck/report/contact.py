"""The contact sheet: one row for each probe, base and adapted side by side.

Each arm has three pictures: reference, quantized and their amplified difference.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from qcheck.diagnose.sheet import AMPLIFY, Sheet, difference, eight_bits

_TILE, _GAP, _TITLE, _LABEL = 112, 6, 40, 150
_TITLES = {
    "base": ("base", "base quantized", f"difference x{AMPLIFY}"),
    "adapted": ("with LoRA", "LoRA quantized", f"difference x{AMPLIFY}"),
}


def _tile(picture: np.ndarray) -> Image.Image:
    return Image.fromarray(eight_bits(picture)).resize((_TILE, _TILE), Image.Resampling.LANCZOS)


def _columns(sheet: Sheet, row: int) -> list[np.ndarray]:
    pictures = []
    for arm, full in sheet.reference.items():
        pictures.append(full[row])
        if arm in sheet.quantized:
            quantized = sheet.quantized[arm][row]
            pictures += [quantized, difference(full[row], quantized)]
    return pictures


def _titles(sheet: Sheet) -> list[str]:
    return [title for arm, titles in _TITLES.items() for title in titles[: None if arm in sheet.quantized else 1]]


def draw(sheets: Sequence[Sheet], path: Path) -> None:
    """Write one PNG with a block for each sheet."""
    heights = [_TITLE + len(sheet.prompts) * (_TILE + _GAP) for sheet in sheets]
    width = _LABEL + max(len(_titles(sheet)) for sheet in sheets) * (_TILE + _GAP) + _GAP
    canvas = Image.new("RGB", (width, sum(heights) + _GAP), "white")
    pen, top = ImageDraw.Draw(canvas), 0
    for sheet, height in zip(sheets, heights, strict=True):
        pen.text((8, top + 2), sheet.scheme, fill="black", font_size=13)
        for column, title in enumerate(_titles(sheet)):
            pen.text((_LABEL + column * (_TILE + _GAP), top + 22), title, fill="black", font_size=12)
        for row, prompt in enumerate(sheet.prompts):
            y = top + _TITLE + row * (_TILE + _GAP)
            pen.multiline_text((8, y + 34), _wrap(prompt), fill="black", font_size=12)
            for column, picture in enumerate(_columns(sheet, row)):
                canvas.paste(_tile(picture), (_LABEL + column * (_TILE + _GAP), y))
        top += height
    content = io.BytesIO()  # Pillow, given a path, loses the reason why it cannot be written
    canvas.save(content, "png", compress_level=3)
    path.write_bytes(content.getvalue())


def _wrap(prompt: str, width: int = 20) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(prompt, width)[:4])
