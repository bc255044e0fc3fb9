"""The folder of a base: a diffusers pipeline directory, or one that is downloaded by its hub id."""

import os
from pathlib import Path

from qcheck.core.errors import UserError
from qcheck.model import tensor_file

INDEX = "model_index.json"

_MARKS = {
    "conditioner.embedders.1.": "StableDiffusionXLPipeline",
    "joint_blocks.": "StableDiffusion3Pipeline",
    "double_blocks.": "FluxPipeline",
}


def locate(source: str) -> Path:
    """The local folder of ``source``.

    Raises:
        UserError: there is no such path or repository, or it is not a diffusers pipeline.
    """
    folder = Path(source)
    if not folder.exists():
        if source.count("/") != 1 or source.startswith((".", "/", "~")):
            raise UserError(f"base {source!r} does not exist", "Give a diffusers pipeline directory or a hub id.")
        folder = _download(source)
    if folder.is_file():
        kind = _pipeline_of(folder)
        raise UserError(
            f"base {source!r} is a single file, not a diffusers pipeline",
            f'Convert it once, and give the folder: python -c "from diffusers import {kind} as P; '
            f'P.from_single_file({str(folder)!r}).save_pretrained({folder.stem!r})"',
        )
    if not (folder / INDEX).is_file():
        raise UserError(
            f"base {source!r} is not a diffusers pipeline: it has no {INDEX}",
            "Give the folder that holds model_index.json, unet/ or transformer/, vae/ ...",
        )
    _require_own(folder)
    return folder


def _require_own(folder: Path) -> None:
    """Refuse links out of the folder, which would be read and copied into what is exported, pipes and devices.

    The Hugging Face cache stores files as links to ``blobs`` beside ``snapshots``: those are its own.
    """
    root = Path(os.path.realpath(folder))
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
    for place, folders, names in os.walk(root):
        for path in (Path(place, name) for name in (*folders, *names)):
            target = Path(os.path.realpath(path))
            if not (target.is_relative_to(root) or target.parent == Path(os.path.realpath(blobs))):
                raise UserError(
                    f"base {str(folder)!r}: {path.relative_to(root)} is a link out of the folder, to {str(target)!r}",
                    "Copy the pipeline with what its links point to: cp -rL. Only the links of the Hugging Face cache "
                    "are followed.",
                )
            if not (target.is_file() or target.is_dir()):
                raise UserError(
                    f"base {str(folder)!r}: {path.relative_to(root)} is no file: a broken link, a pipe or a device",
                    "Remove it, or copy the pipeline again.",
                )


def _download(source: str) -> Path:
    import diffusers  # seconds to import, and a folder needs none of it

    try:
        return Path(diffusers.DiffusionPipeline.download(source))
    except (OSError, ValueError) as error:
        raise UserError(
            f"base {source!r} is neither a folder here nor a repository that can be reached",
            "Check the spelling, or download it first and give the folder.",
        ) from error


def _pipeline_of(file: Path) -> str:
    """The class of diffusers that reads a single-file checkpoint, by the names of its weights."""
    try:
        with tensor_file.opened(file) as stream:
            names = list(stream.keys())
    except UserError:
        names = []
    return next(
        (kind for mark, kind in _MARKS.items() if any(mark in name for name in names)), "StableDiffusionPipeline"
    )
