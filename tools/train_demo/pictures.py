"""The pictures: five emoji sets of the npm registry, rendered at 64 x 64 on white."""

import hashlib
import io
import json
import subprocess
import tarfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import resvg_py
import torch
from PIL import Image

PACKAGES = {
    "noto": "@iconify-json/noto@1.2.9",
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "ink": "@iconify-json/fluent-emoji-high-contrast@1.2.6",
    "fxemoji": "@iconify-json/fxemoji@1.2.2",
}
OTHERS = {  # of the zoo's further pipelines
    "emojione": "@iconify-json/emojione@1.2.3",
    "emojione-monotone": "@iconify-json/emojione-monotone@1.2.1",
}
SUBJECTS = ("Smileys & Emotion", "Animals & Nature", "Food & Drink")
SIZE = 64


@dataclass(frozen=True)
class Pictures:
    """One style: ``names`` [n] and ``images`` [n, 3, 64, 64] in [-1, 1]."""

    names: tuple[str, ...]
    images: torch.Tensor

    def only(self, keep: "set[str]") -> "Pictures":
        """The pictures whose name is in ``keep``."""
        rows = [i for i, name in enumerate(self.names) if name in keep]
        return Pictures(tuple(self.names[i] for i in rows), self.images[rows])


def held_out(name: str) -> bool:
    """Whether this subject is kept from adapter training: one in six, by a hash of its name."""
    return hashlib.sha256(name.encode()).digest()[0] % 6 == 0


def download(folder: Path) -> None:
    """Put every package's tarball into ``folder`` with ``npm pack``; what is there already is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for style, package in (PACKAGES | OTHERS).items():
        target = folder / f"{style}.tgz"
        if not target.exists():
            packed = subprocess.run(
                ["npm", "pack", "--silent", package], cwd=folder, check=True, capture_output=True, text=True
            )
            (folder / packed.stdout.strip().splitlines()[-1]).rename(target)


def _read(folder: Path, style: str, member: str) -> dict[str, object]:
    with tarfile.open(folder / f"{style}.tgz") as tar:
        stream = tar.extractfile(f"package/{member}")
        if stream is None:
            raise FileNotFoundError(member)
        loaded: dict[str, object] = json.load(stream)
        return loaded


def _render(svg: str) -> np.ndarray:
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE))
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return np.asarray(Image.alpha_composite(white, picture).convert("RGB"))


def subjects(folder: Path) -> set[str]:
    """The names that the base learns: three coherent groups of the Noto set, without skin tones."""
    categories = _read(folder, "noto", "metadata.json")["categories"]
    assert isinstance(categories, dict)  # noqa: S101 -- the package's own layout
    return {name for group in SUBJECTS for name in categories[group] if "skin-tone" not in name}


def common() -> set[str]:
    """The names that the base draws well: faces, hearts, animals, plants and food that every style has."""
    return set((Path(__file__).parent / "subjects.txt").read_text("utf-8").split())


def load(folder: Path, style: str) -> Pictures:
    """Render one style whole (cached beside the tarball as ``<style>.npz``); dashes in names become spaces."""
    cache = folder / f"{style}.npz"
    if not cache.exists():
        icons = _read(folder, style, "icons.json")
        names, svgs = [], []
        for name, icon in dict(icons["icons"]).items():  # type: ignore[call-overload]
            if "skin-tone" in name:
                continue
            width = icon.get("width", icons.get("width", 16))
            height = icon.get("height", icons.get("height", 16))
            body = icon["body"].replace("currentColor", "black")
            names.append(name)
            svgs.append(
                f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'viewBox="0 0 {width} {height}" width="{SIZE}" height="{SIZE}">{body}</svg>'
            )
        with ProcessPoolExecutor(2) as pool:
            images = np.stack(list(pool.map(_render, svgs, chunksize=64)))
        np.savez_compressed(cache, names=np.array(names), images=images)
    stored = np.load(cache)
    pixels = torch.from_numpy(stored["images"]).permute(0, 3, 1, 2).float()
    return Pictures(tuple(str(name) for name in stored["names"]), pixels / 127.5 - 1)
