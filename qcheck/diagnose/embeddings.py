"""Embeddings of pictures by a network of the user's own, CLIP or DINOv2, from a folder: nothing is ever fetched."""

import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from qcheck.core import files
from qcheck.core.errors import UserError
from qcheck.model.quiet import quiet
from qcheck.spec.judge import Judge, Kind

_PREPARED = "preprocessor_config.json"
_OUTPUTS: Mapping[Kind, tuple[str, str]] = {  # the class of transformers, and the field of its output
    "clip": ("CLIPVisionModelWithProjection", "image_embeds"),
    "dinov2": ("Dinov2Model", "pooler_output"),
}


@torch.no_grad()
def of(judge: Judge, pictures: Iterable[np.ndarray]) -> np.ndarray:
    """Embeddings [n, D] of unit length of pictures [H, W, 3] in [0, 1]; NaN where a picture is not finite.

    Pictures are resized to the square that the network was made for: nothing is cropped, as both pictures of a pair
    are changed alike.

    Raises:
        UserError: the folder does not hold that network, or lacks a part of it.
    """
    embed = _network(judge)
    rows = [embed(torch.from_numpy(np.ascontiguousarray(one, np.float32)).permute(2, 0, 1)[None]) for one in pictures]
    embeddings: np.ndarray = F.normalize(torch.cat(rows).double(), dim=-1).numpy()
    return embeddings


@functools.cache
def _network(judge: Judge) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function from a picture [1, 3, H, W] in [0, 1] to its embedding [1, D]."""
    name, output = _OUTPUTS[judge.kind]
    mean, deviation = _normalization(judge)
    network = _loaded(judge, name)
    side = int(network.config.image_size)

    def embed(picture: torch.Tensor) -> torch.Tensor:
        resized = F.interpolate(picture, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
        embedding: torch.Tensor = network(pixel_values=(resized - mean) / deviation)[output]
        return embedding

    return embed


def _loaded(judge: Judge, name: str) -> Any:
    import transformers

    try:
        with quiet():
            network, report = getattr(transformers, name).from_pretrained(
                judge.path, local_files_only=True, output_loading_info=True, use_safetensors=True, dtype=torch.float32
            )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"--judge {judge.text()}: {said}", _HELP) from error
    if lacking := sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]])):
        raise UserError(f"--judge {judge.text()} lacks {len(lacking)} tensors, first {lacking[0]}", _HELP)
    return network.eval()


_HELP = "Give the folder of a whole CLIP or DINOv2 model in safetensors, with its preprocessor_config.json."


def _normalization(judge: Judge) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation [3, 1, 1] of the pictures that the network was trained on.

    Raises:
        UserError: the folder does not say.
    """
    try:
        known = files.read_object(Path(judge.path) / _PREPARED)
        mean, deviation = (torch.tensor(known[key], dtype=torch.float32) for key in ("image_mean", "image_std"))
        if mean.shape != (3,) or deviation.shape != (3,) or not (deviation > 0).all():
            raise ValueError("image_mean and image_std are not three numbers")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--judge {judge.text()}: {_PREPARED}: {error}", _HELP) from error
    return mean[:, None, None], deviation[:, None, None]
