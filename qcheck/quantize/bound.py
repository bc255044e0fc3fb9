"""An adapter as inputs of a quantized file: the factors A and B of every layer it changes, and one scale.

The file holds the quantized base alone, so one file (and one engine) serves every adapter of those layers whose rank is
at most that of its inputs. With zeros, or a scale of 0, it is the quantized base.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from qcheck.core.errors import UserError
from qcheck.quantize.fake import Factors

SCALE = "lora_scale"
ADAPTER = "adapter.safetensors"


def names(layer: str) -> tuple[str, str]:
    """The inputs of a layer's factors: A [rank, in, ...] and B [out, rank, ...], as PEFT names them."""
    return f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"


@dataclass(frozen=True)
class Binding:
    """The layers of a file that take factors as inputs, in the network's order, and the rank of all of them."""

    layers: tuple[str, ...]
    rank: int


def binding(adapters: Iterable[Mapping[str, int]], most: int | None = None) -> Binding:
    """The inputs that every one of ``adapters`` fits, given as ranks by layer; of rank ``most`` where that is given.

    Raises:
        UserError: a layer's rank is larger than ``most``.
    """
    ranks = [pair for adapter in adapters for pair in adapter.items()]
    layer, rank = max(ranks, key=lambda pair: pair[1])
    if most is not None and rank > most:
        raise UserError(
            f"--max-rank {most}: the adapter has rank {rank} at {layer}", f"Give --max-rank {rank} or more."
        )
    return Binding(tuple(sorted({layer for layer, _ in ranks})), most or rank)


def absent(weight: torch.Tensor) -> Factors:
    """Factors of rank 0 for a layer, of ``weight`` [out, in, ...], that an adapter leaves as it is."""
    return weight.new_zeros(0, *weight.shape[1:]), weight.new_zeros(len(weight), 0)


def inputs(branches: Mapping[str, Factors], rank: int) -> dict[str, torch.Tensor]:
    """The file's inputs for an adapter in float32, padded with zeros to ``rank``, at a scale of 1."""
    tensors = {SCALE: torch.ones(1)}
    for layer, factors in branches.items():
        tensors |= dict(zip(names(layer), padded(factors, rank), strict=True))
    return tensors


def padded(factors: Factors, rank: int) -> Factors:
    """Factors A [rank, in, ...] and B [out, rank, 1, ...] of ``down`` [r, in, ...] and ``up`` [out, r]."""
    down, up = factors
    first = down.new_zeros(rank, *down.shape[1:])
    second = up.new_zeros(len(up), rank)
    first[: len(down)], second[:, : up.shape[1]] = down, up
    return first, second.view(*second.shape, *[1] * (down.dim() - 2))


def save(tensors: Mapping[str, torch.Tensor], compute: str, path: Path) -> Path:
    """Write the inputs of an adapter in the file's compute type, to be fed as they are; returns ``path``."""
    dtype: torch.dtype = getattr(torch, compute)
    save_file({name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}, path)
    return path
