"""The grid that the weights of an ONNX file lie on, from their codes, steps and zero points."""

from dataclasses import dataclass, replace

import torch

from qcheck.quantize import formats
from qcheck.quantize.plan import Grid
from qcheck.spec.scheme import Granularity, Numbers

_FLOATS = ("float16", "bfloat16", "float32")
CODES = {"int8": "int8", "int4": "int4", "float8_e4m3fn": "float8_e4m3", "float4_e2m1fn": "float4_e2m1"}
_INTEGERS = {"int8": (-128, 127), "uint8": (0, 255), "int4": (-8, 7), "uint4": (0, 15)}
_CENTERED = {"uint8": ("int8", 128), "uint4": ("int4", 8)}  # the same codes, counted from another zero


@dataclass(frozen=True)
class Affine:
    """The grid of integers with any zero points: the step of every weight, and its least and largest code from zero."""

    step: torch.Tensor
    least: torch.Tensor
    largest: torch.Tensor
    granularity: Granularity = "block"

    def fake(self, weight: torch.Tensor) -> torch.Tensor:
        """The dequantized weight."""
        codes = torch.round(torch.where(self.step == 0, 0, weight / self.step))
        return torch.minimum(torch.maximum(codes, self.least), self.largest) * self.step

    def spacing(self, weight: torch.Tensor) -> torch.Tensor:
        """Distance of neighbouring representable weights at each weight."""
        return self.step.expand_as(weight)


def thinned(grid: Grid | Affine, outputs: int, stride: int) -> Grid | Affine:
    """The grid of every ``stride``-th of ``outputs`` outputs.

    Raises:
        ValueError: groups that outputs share, other than one of all weights.
    """
    if isinstance(grid, Affine):
        step, least, largest = (part[::stride] for part in (grid.step, grid.least, grid.largest))
        return Affine(step, least, largest)
    if len(grid.step) == 1:
        return grid
    if len(grid.step) % outputs:
        raise ValueError("some outputs share a step")
    return replace(grid, step=grid.step.view(outputs, -1)[::stride].flatten(), held=None)


@dataclass(frozen=True)
class Weight:
    """A decoded weight [out, in, ...] in float32; the file's grid, and how steps would be chosen for another weight.

    ``grid`` is None where the codes are of no format that is known here, ``numbers`` where the steps follow no
    granularity of a scheme; ``compute`` is the float type that steps are stored in.
    """

    values: torch.Tensor
    grid: Grid | Affine | None
    numbers: Numbers | None
    compute: str


def _format(kind: str, zero: torch.Tensor) -> str | None:
    """The number format of codes of a numpy type with these zero points."""
    if kind in _CENTERED:
        name, middle = _CENTERED[kind]
        return name if bool((zero == middle).all()) else None
    return CODES.get(kind) if not zero.any() else None


def plain(values: torch.Tensor, kind: str) -> Weight:
    """A weight that is stored in a float type."""
    name = kind if kind in _FLOATS else "float32"
    grid = Grid(formats.find(name), "none", torch.ones(1))
    return Weight(values, grid, Numbers(format=name, granularity="none"), name)


def quantized(
    values: torch.Tensor,
    steps: torch.Tensor,
    codes: tuple[str, torch.Tensor],
    block: int | None,
    scale: tuple[str, str | None],
) -> Weight:
    """A weight by its steps, the numpy type and zero points of its codes, and how its scales are stored."""
    compute = scale[0] if scale[0] in _FLOATS else "float32"
    number, grouped = _format(*codes), _grouped(steps.flatten(1), block)
    if number is None or grouped is None:
        return Weight(values, _affine(steps, *codes), None, compute)
    granularity, groups = grouped
    grid = Grid(formats.find(number), granularity, groups, block if granularity == "block" else None)
    fits = grid.block is None or grid.block % 16 == 0
    holder = scale[1] if granularity == "block" else None
    numbers = Numbers(format=number, granularity=granularity, block=grid.block, scales=holder) if fits else None
    return Weight(values, grid, numbers, compute)


def _affine(steps: torch.Tensor, kind: str, zero: torch.Tensor) -> Affine | None:
    """The grid of integers; None for other codes."""
    if kind not in _INTEGERS:
        return None
    least, largest = (end - zero.expand_as(steps).flatten(1) for end in _INTEGERS[kind])
    return Affine(steps.flatten(1), least, largest)


def _grouped(steps: torch.Tensor, block: int | None) -> tuple[Granularity, torch.Tensor] | None:
    """Steps [groups] of neighbouring weights, from those of every weight [out, n]; None where they do not group."""
    first = steps[:, 0]
    if bool((steps == first[0]).all()):
        return "tensor", first[:1].clone()
    if bool((steps == first[:, None]).all()):
        return "channel", first.clone()
    if block is None or steps.shape[1] % block:
        return None
    blocks = steps.view(len(steps), -1, block)
    return ("block", blocks[..., 0].flatten()) if bool((blocks == blocks[..., :1]).all()) else None
