"""Every number format on one page: limits from the definition, codes from values and back.

Simulation, QAT and the ONNX artifact call the same three functions, so their codes are the same codes.
"""

from dataclasses import dataclass

import torch

from qcheck.errors import unknown


@dataclass(frozen=True)
class Integer:
    """A symmetric two's-complement integer: zero point 0, scale = absmax / (2^(bits-1) - 1)."""

    name: str
    bits: int

    @property
    def limit(self) -> int:
        """The largest code; scales are chosen so that the absolute maximum lands on it."""
        return int(2 ** (self.bits - 1) - 1)

    @property
    def lowest(self) -> int:
        """The smallest code, which ONNX QuantizeLinear saturates to."""
        return -self.limit - 1

    def nearest(self, ratio: torch.Tensor) -> torch.Tensor:
        """Codes of values in units of the scale, int8: round half to even, saturate."""
        return torch.round(ratio).clamp(self.lowest, self.limit).to(torch.int8)

    def spacing(self, ratio: torch.Tensor) -> torch.Tensor:
        """Distance of neighbouring codes at values in units of the scale: 1 everywhere."""
        return torch.ones_like(ratio)


@dataclass(frozen=True)
class Float:
    """A signed floating-point format without infinities; scale = absmax / largest value.

    ``mantissa`` is the number of stored bits, ``smallest`` the exponent of the lowest normal binade, ``limit`` the
    largest value (OCP 8-bit floating point: E4M3 has 3, -6 and 448).
    """

    name: str
    mantissa: int
    smallest: int
    limit: float

    def spacing(self, ratio: torch.Tensor) -> torch.Tensor:
        """Distance of neighbouring codes at values in units of the scale."""
        exponent = torch.where(ratio == 0, self.smallest, torch.frexp(ratio).exponent - 1)
        return torch.exp2((exponent.clamp(min=self.smallest) - self.mantissa).to(ratio.dtype))

    def nearest(self, ratio: torch.Tensor) -> torch.Tensor:
        """Codes as the float32 values they stand for: round half to even, saturate."""
        inside = ratio.clamp(-self.limit, self.limit)
        spacing = self.spacing(inside)
        return torch.round(inside / spacing) * spacing


Format = Integer | Float
FORMATS: dict[str, Format] = {
    found.name: found for found in (Integer("int8", 8), Integer("int4", 4), Float("float8_e4m3", 3, -6, 448.0))
}

# Mantissa bits and the exponent of the smallest subnormal of what may hold a scale (IEEE 754; bfloat16).
_STORED = {"float32": (23, -149), "float16": (10, -24), "bfloat16": (7, -133)}


def find(name: str) -> Format:
    """The format of that name."""
    if name not in FORMATS:
        raise unknown("number format", name, FORMATS)
    return FORMATS[name]


def scale(absmax: torch.Tensor, number: Format, stored: str) -> torch.Tensor:
    """The step that puts ``absmax`` on the largest code: same shape, float32, > 0.

    Rounded *up* to a value that ``stored`` ("float32", "float16", "bfloat16") holds exactly: an artifact and its
    float32 twin then share one scale, and nothing in range is clipped. An all-zero group gets the smallest step.
    """
    mantissa, smallest = _STORED[stored]
    exact = absmax.double() / number.limit
    exponent = torch.frexp(exact).exponent.double() - 1
    spacing = torch.exp2((exponent - mantissa).clamp(min=smallest))
    return (torch.ceil(exact / spacing) * spacing).clamp(min=2.0**smallest).float()


def quantize(values: torch.Tensor, step: torch.Tensor, number: Format) -> torch.Tensor:
    """Codes of ``values``, same shape: round half to even, saturate (ONNX QuantizeLinear). NaN is undefined."""
    return number.nearest(values / step)


def dequantize(codes: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Values of ``codes`` in the dtype of ``step`` (ONNX DequantizeLinear, zero point 0)."""
    return codes.to(step.dtype) * step
