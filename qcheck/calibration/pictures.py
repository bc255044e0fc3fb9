"""The user's own pictures as calibration states: encoded, and noised as in training."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from qcheck.core import files
from qcheck.core.errors import UserError
from qcheck.model.family import Family
from qcheck.sampling import solvers
from qcheck.sampling.setup import Setup
from qcheck.spec.probe import Probe, require_text

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Picture:
    """A picture file and its caption: the text of ``name.txt`` beside it, as trainers keep it, or its name in words."""

    path: Path
    caption: str


def find(folder: Path, option: str = "--pictures") -> list[Picture]:
    """All pictures of a folder, by name; ``option`` is what named it.

    Raises:
        UserError: there is none.
    """
    paths = sorted(p for p in folder.glob("*") if p.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not paths:
        raise UserError(
            f"{option} {str(folder)!r} holds no picture",
            f"Give a folder with files of {', '.join(SUFFIXES)}, each with its caption in a .txt of the same name.",
        )
    return [Picture(path, _caption(path)) for path in paths]


def _caption(path: Path) -> str:
    beside = path.with_suffix(".txt")
    try:
        written = require_text(" ".join(files.read_text(beside).split())) if beside.is_file() else ""
    except (OSError, ValueError) as error:
        raise UserError(f"caption {str(beside)!r}: {error}", "Write it as plain UTF-8 text.") from error
    return written or " ".join(path.stem.replace("-", " ").replace("_", " ").split())


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as stream:
            return stream.convert("RGB")
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UserError(f"picture {str(path)!r}: {error}", "Remove it, or save it again.") from error


def read(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """A picture [3, H, W] in [0, 1]; with a ``size`` (width, height) cropped about its centre and scaled to it.

    Raises:
        UserError: the file is no picture.
    """
    image = _open(path)
    image = image if size is None else ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    return np.asarray(image, np.float32).transpose(2, 0, 1) / 255


def latents(family: Family, probe: Probe, path: Path) -> torch.Tensor:
    """The latents [1, C, h, w] of a picture that is cropped and scaled to the probe's size; ``family`` encodes it."""
    _, _, height, width = family.shape(probe.width, probe.height)
    picture = torch.from_numpy(read(path, (width * family.factor, height * family.factor)))
    return family.encode(picture[None])


def states(setup: Setup, family: Family, probes: Sequence[Probe], paths: Sequence[Path]) -> np.ndarray:
    """Latents [n, T, C, h, w] of one picture a probe, noised with the probe's own noise for every stratum.

    ``family`` encodes the pictures.
    """
    picture_states = []
    for probe, path in zip(probes, paths[: len(probes)], strict=True):
        encoded, (noise, _) = latents(family, probe, path), family.start(probe)
        rows = [solvers.noised(setup.solver(), index, encoded, noise) for index in setup.strata]
        picture_states.append(torch.cat(rows).numpy())
    return np.stack(picture_states)
