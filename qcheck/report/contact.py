"""The contact sheet: reference, quantized, amplified difference; a row a probe, base and adapted side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

ROWS = 8
AMPLIFY = 8
_TILE, _GAP, _TITLE, _LABEL = 112, 6, 40, 150
_TITLES = ("base", "base quantized", f"difference x{AMPLIFY}", "with LoRA", "LoRA quantized", f"difference x{AMPLIFY}")


@dataclass(frozen=True)
class Sheet:
    """Pictures [n, H, W, 3] in [0, 1] of both arms, before and after quantization."""

    scheme: str
    prompts: tuple[str, ...]
    reference: Mapping[Literal["base", "adapted"], np.ndarray]
    quantized: Mapping[Literal["base", "adapted"], np.ndarray]


def eight_bits(picture: np.ndarray) -> np.ndarray:
    """A picture in [0, 1] as bytes; what is not a number is grey."""
    found: np.ndarray = (np.clip(np.nan_to_num(picture, nan=0.5), 0, 1) * 255).round().astype(np.uint8)
    return found


def difference(full: np.ndarray, quantized: np.ndarray) -> np.ndarray:
    """The change by quantization, enlarged: grey where nothing differs."""
    found: np.ndarray = 0.5 + AMPLIFY * (quantized - full) / 2
    return found


def _tile(picture: np.ndarray) -> Image.Image:
    return Image.fromarray(eight_bits(picture)).resize((_TILE, _TILE), Image.Resampling.LANCZOS)


def _columns(sheet: Sheet, row: int) -> list[np.ndarray]:
    found = []
    for arm in ("base", "adapted"):
        full, quantized = sheet.reference[arm][row], sheet.quantized[arm][row]
        found += [full, quantized, difference(full, quantized)]
    return found


def draw(sheets: Sequence[Sheet], path: Path) -> None:
    """Write one PNG with a block for each sheet."""
    heights = [_TITLE + len(sheet.prompts) * (_TILE + _GAP) for sheet in sheets]
    width = _LABEL + len(_TITLES) * (_TILE + _GAP) + _GAP
    canvas = Image.new("RGB", (width, sum(heights) + _GAP), "white")
    pen, top = ImageDraw.Draw(canvas), 0
    for sheet, height in zip(sheets, heights, strict=True):
        pen.text((8, top + 2), sheet.scheme, fill="black", font_size=13)
        for column, title in enumerate(_TITLES):
            pen.text((_LABEL + column * (_TILE + _GAP), top + 22), title, fill="black", font_size=12)
        for row, prompt in enumerate(sheet.prompts):
            y = top + _TITLE + row * (_TILE + _GAP)
            pen.multiline_text((8, y + 34), _wrap(prompt), fill="black", font_size=12)
            for column, picture in enumerate(_columns(sheet, row)):
                canvas.paste(_tile(picture), (_LABEL + column * (_TILE + _GAP), y))
        top += height
    canvas.save(path, compress_level=3)


def _wrap(prompt: str, width: int = 20) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(prompt, width)[:4])
