"""Arms as subjects: each with its runner, which is opened only when something has to be computed.

A subject's content is the digest of all that its outputs depend on: weights, and the runner with its library, device
and number type.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from qcheck.core import cache
from qcheck.core.digest import digest_of
from qcheck.model import device as devices
from qcheck.model.arms import Arms
from qcheck.model.components import copied
from qcheck.model.device import Device
from qcheck.model.quiet import quiet
from qcheck.runtime import ort_runner, torch_runner
from qcheck.runtime.ort_runner import OnnxRunner
from qcheck.runtime.torch_runner import TorchRunner
from qcheck.sampling.setup import Subject
from qcheck.spec.arm import Side

_MERGING = "qcheck.model.arms"  # the module that merges an adapter's file into weights


def name(side: Side) -> str:
    """f0 or f1."""
    return f"f{int(side == 'adapted')}"


def full(arms: Arms, side: Side, compute: str = "float32") -> Subject:
    """A full-precision arm in torch, or a copy of it in another compute type."""
    identity = cache.code(_MERGING, torch_runner.__name__)
    content = digest_of(arms.content(side), identity, arms.device.title, compute)
    if compute == "float32":
        return Subject(name(side), side, content, lambda: _full_precision(arms, side))
    return Subject(f"{name(side)} in {compute}", side, content, lambda: _in_compute_type(arms, side, compute))


def exact(arms: Arms, side: Side) -> Subject:
    """A full-precision arm in float32, where the others compute in TF32."""
    device = replace(arms.device, tf32=False)
    content = digest_of(full(arms, side).content, "float32 products")
    return Subject(f"{name(side)} in float32", side, content, lambda: _in_float32(arms, side, device))


@contextmanager
def _in_float32(arms: Arms, side: Side, device: Device) -> Iterator[TorchRunner]:
    with devices.exact(device), _full_precision(arms, side) as running:
        yield running


def runner(arms: Arms, module: nn.Module, title: str = "torch float32") -> TorchRunner:
    """A runner of ``module``, a denoiser of the arms' family on the device that computes."""
    family = arms.base.family
    return TorchRunner(family.entry(module), title, device=arms.device, fixed=family.fixed)


@contextmanager
def _full_precision(arms: Arms, side: Side) -> Iterator[TorchRunner]:
    with arms.running(side) as family:
        yield runner(arms, family.module)


@contextmanager
def _in_compute_type(arms: Arms, side: Side, compute: str) -> Iterator[TorchRunner]:
    dtype: torch.dtype = getattr(torch, compute)
    with quiet(), arms.running(side) as family:
        entry = copied(family.entry(family.module), dtype=dtype)
    yield TorchRunner(entry, f"torch {compute}", dtype, family.kept, arms.device, family.fixed)


def stored(
    arms: Arms,
    title: str,
    side: Side,
    path: Path,
    content: str,
    threads: int,
    device: Device | None = None,
    bound: Callable[[], Mapping[str, np.ndarray]] = dict,
) -> Subject:
    """An exported arm of the pipeline of ``arms``, run by ONNX Runtime: ``content`` is the digest of what it computes.

    It runs on ``device``, by default the one that computes the arms. ``bound`` makes the file's inputs for an adapter.
    """
    device, fixed = device or arms.device, arms.base.family.fixed
    identity = digest_of(content, cache.code(ort_runner.__name__), device.title)
    return Subject(title, side, identity, lambda: OnnxRunner(path, threads, fixed, device, bound()))
