"""LPIPS of pictures (Zhang et al. 2018) by a network of the user's own, from one file: nothing is ever fetched.

The file is the state dict of ``lpips.LPIPS`` 0.1 on AlexNet or VGG16, and its tensors tell which. The convolutions have
the numbers of torchvision's ``features`` in their names; what lies between them, ReLU and pooling, holds no tensor.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from qcheck.core.errors import UserError
from qcheck.measure.registry import measures
from qcheck.measure.sample import Sample
from qcheck.model import tensor_file, torch_file
from qcheck.result.measurement import Measurement
from qcheck.result.pictures import Role
from qcheck.spec import measurement
from qcheck.spec.arm import Arm
from qcheck.spec.judge import Judge

_PAIRS: Sequence[tuple[str, Arm, Role, Role]] = (
    ("lpips", "base", "f0", "q0"),
    ("lpips", "adapted", "f1", "q1"),
    ("lpips_effect", "adapted", "f0", "f1"),
)
_EPSILON = 1e-10  # beside a vector's length, as the package has it
_HELP = (
    'Save it again: torch.save(lpips.LPIPS(net="alex").state_dict(), "lpips-alex.pth"), of the package lpips; '
    'net="vgg" is read too.'
)


@dataclass(frozen=True)
class _Convolution:
    """A convolution's number in its backbone, its channels in and out, and its side, stride and padding in pixels."""

    number: int
    channels: tuple[int, int]
    side: int = 3
    stride: int = 1
    padding: int = 1
    pooled: bool = False  # before it

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.channels[1], self.channels[0], self.side, self.side)


@dataclass(frozen=True)
class _Backbone:
    """Stages of convolutions with a ReLU each; max pooling of ``pool`` pixels a side, every second pixel.

    ``least`` is the side of the smallest picture of which something reaches the last stage.
    """

    stages: tuple[tuple[_Convolution, ...], ...]
    pool: int
    least: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors of the file by name."""
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("scaling_layer.shift", "scaling_layer.scale"), (1, 3, 1, 1))
        for place, stage in enumerate(self.stages):
            shapes[f"lin{place}.model.1.weight"] = (1, stage[-1].channels[1], 1, 1)
            for one in stage:
                name = f"net.slice{place + 1}.{one.number}"
                shapes |= {f"{name}.weight": one.shape, f"{name}.bias": one.shape[:1]}
        return shapes


_BACKBONES = (
    _Backbone(  # AlexNet
        (
            (_Convolution(0, (3, 64), 11, 4, 2),),
            (_Convolution(3, (64, 192), 5, 1, 2, pooled=True),),
            (_Convolution(6, (192, 384), pooled=True),),
            (_Convolution(8, (384, 256)),),
            (_Convolution(10, (256, 256)),),
        ),
        pool=3,
        least=31,
    ),
    _Backbone(  # VGG16
        (
            (_Convolution(0, (3, 64)), _Convolution(2, (64, 64))),
            (_Convolution(5, (64, 128), pooled=True), _Convolution(7, (128, 128))),
            (_Convolution(10, (128, 256), pooled=True), *(_Convolution(n, (256, 256)) for n in (12, 14))),
            (_Convolution(17, (256, 512), pooled=True), *(_Convolution(n, (512, 512)) for n in (19, 21))),
            (_Convolution(24, (512, 512), pooled=True), *(_Convolution(n, (512, 512)) for n in (26, 28))),
        ),
        pool=2,
        least=16,
    ),
)


@dataclass(frozen=True, eq=False)
class _Network:
    """A backbone with its tensors by name."""

    backbone: _Backbone
    tensors: Mapping[str, torch.Tensor]

    def stages(self, pictures: torch.Tensor) -> Iterable[torch.Tensor]:
        """The features [n, C, h, w] of every stage of pictures [n, 3, H, W] in [0, 1]."""
        features = (2 * pictures - 1 - self.tensors["scaling_layer.shift"]) / self.tensors["scaling_layer.scale"]
        for place, stage in enumerate(self.backbone.stages):
            for one in stage:
                name = f"net.slice{place + 1}.{one.number}"
                weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
                features = F.max_pool2d(features, self.backbone.pool, 2) if one.pooled else features
                features = F.relu(F.conv2d(features, weight, bias, one.stride, one.padding))
            yield features

    def distances(self, pictures: torch.Tensor, pairs: Sequence[tuple[int, int]]) -> list[float]:
        """LPIPS of ``pairs`` of the pictures [n, 3, H, W]: weighted squares of unit vectors' differences, averaged."""
        distances = [0.0] * len(pairs)
        for place, features in enumerate(self.stages(pictures)):
            units = features / (features.square().sum(1, keepdim=True).sqrt() + _EPSILON)
            head = self.tensors[f"lin{place}.model.1.weight"]
            for row, (one, other) in enumerate(pairs):
                distances[row] += float(F.conv2d((units[one] - units[other]).square()[None], head).mean())
        return distances


@measures("lpips", when="end")
@measures("lpips_effect", when="end")
@torch.no_grad()
def samples(judge: Judge, arms: Mapping[Role, Iterable[np.ndarray]]) -> list[Sample | Measurement]:
    """LPIPS of each picture of f0 and q0, f1 and q1, f0 and f1, [n]; 0 is equal. The last is what the adapter does.

    Pictures [H, W, 3] in [0, 1] are taken at their size, one of every arm at a time. NaN where one is not finite.

    Raises:
        UserError: the file holds no whole LPIPS on AlexNet or VGG16.
    """
    network, roles = _network(judge), list(arms)
    known = [pair for pair in _PAIRS if set(pair[2:]) <= set(roles)]
    pairs = [(roles.index(one), roles.index(other)) for _, _, one, other in known]
    rows = []
    for pictures in zip(*arms.values(), strict=True):
        stacked = torch.from_numpy(np.stack(pictures).astype(np.float32)).permute(0, 3, 1, 2)
        if min(stacked.shape[2:]) < network.backbone.least:
            reason = f"needs pictures of {network.backbone.least} pixels a side"
            return [not_measured(name, arm, reason) for name, arm, _, _ in known]
        distances = np.array(network.distances(stacked, pairs))
        finite = stacked.isfinite().flatten(1).all(1).numpy()
        rows.append(np.where([finite[one] and finite[other] for one, other in pairs], distances, np.nan))
    return [Sample(name, arm, row) for (name, arm, _, _), row in zip(known, np.transpose(rows), strict=True)]


def not_measured(name: str, arm: Arm, reason: str) -> Measurement:
    """A measurement without a value, and why."""
    unit = measurement.find(name).of(arm).unit
    return Measurement(name=name, arm=arm, unit=unit, value=None, where=reason)


@functools.cache
def _network(judge: Judge) -> _Network:
    held = {name.replace("lins.", "lin", 1): one for name, one in _read(judge).items()}  # each head has two names
    backbone = min(_BACKBONES, key=lambda one: len(one.shapes.keys() ^ held.keys()))
    shapes = backbone.shapes
    if lacking := sorted(shapes.keys() - held.keys()):
        raise UserError(f"--judge {judge.text()} lacks {len(lacking)} tensors of LPIPS, first {lacking[0]}", _HELP)
    for name, shape in shapes.items():
        if tuple(held[name].shape) != shape or not held[name].is_floating_point():
            has = f"{'x'.join(map(str, held[name].shape))} {held[name].dtype}".replace("torch.", "")
            wanted = "x".join(map(str, shape))
            raise UserError(f"--judge {judge.text()}: {name} is {has}, and has to be {wanted} floats", _HELP)
    tensors = {name: held[name].float() for name in shapes}
    if broken := [name for name, one in tensors.items() if not one.isfinite().all()]:
        raise UserError(f"--judge {judge.text()}: {broken[0]} is not finite", _HELP)
    return _Network(backbone, tensors)


def _read(judge: Judge) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, or of one that torch saved."""
    path = Path(judge.path)
    return torch_file.tensors(path) if torch_file.is_one(path) else tensor_file.tensors(path)
