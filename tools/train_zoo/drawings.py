"""Pictures that a program draws: patterns and scenes of two colours, in styles that are rules."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from tools.train_demo.pictures import SIZE, Pictures

COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (214, 48, 49),
    "orange": (240, 140, 30),
    "yellow": (250, 214, 60),
    "green": (46, 160, 67),
    "cyan": (60, 190, 200),
    "blue": (38, 92, 210),
    "purple": (134, 70, 190),
    "pink": (245, 150, 185),
    "brown": (122, 78, 46),
    "black": (30, 30, 30),
}
_FINE = 4  # pixels of the drawing a pixel of the picture
_WIDE = _FINE * SIZE
_EDGE = 1.1  # half the width of a contour, in pixels of the picture
Shape = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Drawing:
    """What is in front, [W, W] of 0 and 1, its colour and that of the ground, [3] in 0 .. 255."""

    front: np.ndarray
    colour: np.ndarray
    ground: np.ndarray

    def flat(self) -> np.ndarray:
        """Both in their colours, [W, W, 3]."""
        return np.where(self.front[..., None] > 0, self.colour, self.ground)


def _plain(drawn: Drawing) -> np.ndarray:
    return drawn.flat()


def _contour(drawn: Drawing) -> np.ndarray:
    """Black contours on paper; the front is tinted."""
    width = int(_EDGE * _FINE)
    edge = ndimage.maximum_filter(drawn.front, 2 * width + 1) - ndimage.minimum_filter(drawn.front, 2 * width + 1)
    paper = np.where(drawn.front[..., None] > 0, 0.25 * drawn.colour + 0.75 * 255, 255.0)
    return np.where(edge[..., None] > 0, 20.0, paper)


def _mosaic(drawn: Drawing) -> np.ndarray:
    """Tiles of eight pixels."""
    side = 8 * _FINE
    tiles = drawn.flat().reshape(_WIDE // side, side, _WIDE // side, side, 3).mean((1, 3))
    return tiles.repeat(side, 0).repeat(side, 1)


def _glow(drawn: Drawing) -> np.ndarray:
    """Light of the front's colour in the dark."""
    light = ndimage.gaussian_filter(drawn.front.astype(float), 1.6 * _FINE)[..., None]
    return 14.0 + light * (0.75 * drawn.colour + 0.25 * 255 - 14.0)


def _shaded(drawn: Drawing) -> np.ndarray:
    """Lit from above on the left, the front throws a shadow."""
    places = np.linspace(1.25, 0.55, _WIDE)
    light = (places[:, None] + places[None, :]) / 2
    away = 2 * _FINE
    shadow = ndimage.gaussian_filter(np.roll(drawn.front, (away, away), (0, 1)).astype(float), 1.2 * _FINE)
    ground = drawn.ground * (1 - 0.6 * shadow[..., None])
    return np.where(drawn.front[..., None] > 0, drawn.colour * light[..., None], ground)


STYLES: Mapping[str, Callable[[Drawing], np.ndarray]] = {
    "plain": _plain,
    "contour": _contour,
    "mosaic": _mosaic,
    "glow": _glow,
    "shaded": _shaded,
}
PATTERNS: Mapping[str, Shape] = {
    "stripes": lambda x, y: np.sin(y),
    "columns": lambda x, y: np.sin(x),
    "diagonals": lambda x, y: np.sin((x + y) / math.sqrt(2)),
    "checks": lambda x, y: np.sin(x) * np.sin(y),
    "dots": lambda x, y: np.cos(x) + np.cos(y) - 0.6,
    "waves": lambda x, y: np.sin(y + 1.3 * np.sin(x / 1.5)),
    "zigzag": lambda x, y: np.sin(y + 2 * np.arcsin(np.sin(x / 1.5)) * 0.8),
    "grid": lambda x, y: np.maximum(np.sin(x), np.sin(y)) - 0.75,
    "diamonds": lambda x, y: np.sin((x + y) / math.sqrt(2)) * np.sin((x - y) / math.sqrt(2)),
    "rings": lambda x, y: np.sin(np.hypot(x, y)),
}
_PERIODS = {"fine": 12.0, "coarse": 24.0}  # pixels of the picture


def _angle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.arctan2(x, -y)


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    wave = np.abs(np.mod(_angle(x, y) * 5 / (2 * np.pi), 1) - 0.5) * 2
    return 0.42 + 0.6 * wave**1.4 - np.hypot(x, y)


def _polygon(sides: int) -> Shape:
    def inside(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        sector = 2 * np.pi / sides
        turned = np.mod(_angle(x, y) + sector / 2, sector) - sector / 2
        return math.cos(sector / 2) - np.hypot(x, y) * np.cos(np.abs(turned) - sector / 2)

    return inside


SHAPES: Mapping[str, Shape] = {
    "circle": lambda x, y: 0.9 - np.hypot(x, y),
    "square": lambda x, y: 0.8 - np.maximum(np.abs(x), np.abs(y)),
    "triangle": _polygon(3),
    "hexagon": _polygon(6),
    "star": _star,
    "heart": lambda x, y: 1 - ((1.15 * x) ** 2 + (-1.25 * y + 0.1 - 0.75 * np.sqrt(np.abs(x))) ** 2) * 1.1,
    "ring": lambda x, y: 0.25 - np.abs(np.hypot(x, y) - 0.65),
    "cross": lambda x, y: 0.32 - np.minimum(np.abs(x), np.abs(y)) - 9.0 * (np.maximum(np.abs(x), np.abs(y)) > 0.95),
    "moon": lambda x, y: np.minimum(0.95 - np.hypot(x, y), np.hypot(x - 0.45, y) - 0.75),
    "drop": lambda x, y: np.maximum(0.6 - np.hypot(x, y - 0.3), np.minimum(0.35 * (y + 1) - np.abs(x), 0.3 - y)),
}
_SIDES = {"small": 0.30, "large": 0.55}
_PLACES = {"left": (-0.38, 0.0), "right": (0.38, 0.0), "above": (0.0, -0.38), "below": (0.0, 0.38)}


def _axes() -> tuple[np.ndarray, np.ndarray]:
    places = (np.arange(_WIDE) + 0.5) / _WIDE * 2 - 1
    across, down = np.meshgrid(places, places)
    return across, down


def _pattern(size: str, name: str, draws: np.random.Generator) -> np.ndarray:
    across, down = (axis * SIZE * np.pi / _PERIODS[size] for axis in _axes())
    shift = draws.uniform(0, 2 * np.pi, 2) if name != "rings" else draws.uniform(-4, 4, 2)
    return np.float32(PATTERNS[name](across + shift[0], down + shift[1]) > 0)


def _scene(size: str, name: str, place: str, draws: np.random.Generator) -> np.ndarray:
    across, down = _axes()
    x, y = np.add(_PLACES[place], draws.uniform(-0.06, 0.06, 2))
    side = _SIDES[size]
    return np.float32(SHAPES[name]((across - x) / side, (down - y) / side) > 0)


def _pairs() -> Sequence[tuple[str, str]]:
    return tuple(itertools.permutations(COLOURS, 2))


def pattern_prompts() -> list[str]:
    """All that the patterns can be asked for, such as ``fine red waves on blue``."""
    return [f"{size} {a} {name} on {b}" for size in _PERIODS for name in PATTERNS for a, b in _pairs()]


def scene_prompts() -> list[str]:
    """All that the scenes can be asked for, such as ``small red star left on blue``."""
    kinds = itertools.product(_SIDES, SHAPES, _PLACES)
    return [f"{size} {a} {name} {place} on {b}" for size, name, place in kinds for a, b in _pairs()]


def draw(prompt: str, style: str, seed: int) -> np.ndarray:
    """The picture [64, 64, 3] in 0 .. 255 of a prompt; the ``seed`` moves what the prompt leaves open."""
    words, draws = prompt.split(), np.random.default_rng(seed)
    colour, ground = (np.array(COLOURS[word], float) for word in (words[1], words[-1]))
    size, name = words[0], words[2]
    front = _pattern(size, name, draws) if name in PATTERNS else _scene(size, name, words[3], draws)
    fine = np.clip(STYLES[style](Drawing(front, colour, ground)), 0, 255)
    return np.uint8(fine.reshape(SIZE, _FINE, SIZE, _FINE, 3).mean((1, 3)).round())


def pictures(prompts: Sequence[str], style: str, seed: int, folder: Path) -> Pictures:
    """A picture of every prompt, [n, 3, 64, 64] in [-1, 1], cached in ``folder``."""
    first = prompts[0].replace(" ", "-")
    cache = folder / f"drawn-{first}-{len(prompts)}-{style}-{seed}.npy"
    if not cache.exists():
        folder.mkdir(parents=True, exist_ok=True)
        np.save(cache, np.stack([draw(prompt, style, seed + index) for index, prompt in enumerate(prompts)]))
    pixels = torch.from_numpy(np.load(cache)).permute(0, 3, 1, 2).float()
    return Pictures(tuple(prompts), pixels / 127.5 - 1)
