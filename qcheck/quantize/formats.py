"""The number formats: their limits by definition, and the functions between values and codes.

Simulation, QAT and the ONNX artifact call the same three functions, so their codes are equal; integer inputs on a GPU
are the exception (``plan.Static.fake``).
"""

from dataclasses import dataclass

import torch

from qcheck.core.errors import unknown


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
    """A signed binary floating-point format; scale = absmax / largest value.

    ``exponent`` and ``mantissa`` are its bits, ``reserved`` how many of the topmost codes of a sign are infinity or NaN
    (IEEE 754 formats reserve the whole binade, OCP E4M3 one code, OCP E2M1 none).
    """

    name: str
    exponent: int
    mantissa: int
    reserved: int

    @property
    def smallest(self) -> int:
        """Exponent of the lowest normal binade; below it values are evenly spaced."""
        return int(2 - 2 ** (self.exponent - 1))

    @property
    def limit(self) -> float:
        """The largest value."""
        top = 2 ** (self.exponent + self.mantissa) - 1 - self.reserved
        exponent, fraction = divmod(top, 2**self.mantissa)
        return float((1 + fraction / 2**self.mantissa) * 2.0 ** (exponent - 1 + self.smallest))

    def spacing(self, ratio: torch.Tensor) -> torch.Tensor:
        """Distance of neighbouring codes at values in units of the scale."""
        return _binade(ratio).clamp(min=2.0**self.smallest) * 2.0**-self.mantissa

    def nearest(self, ratio: torch.Tensor) -> torch.Tensor:
        """Codes as the float32 values they stand for: round half to even, saturate."""
        inside = ratio.clamp(-self.limit, self.limit)
        spacing = self.spacing(inside)
        return torch.round(inside / spacing) * spacing


_EXPONENTS = {torch.float32: (torch.int32, 0xFF << 23), torch.float64: (torch.int64, 0x7FF << 52)}


def _binade(values: torch.Tensor) -> torch.Tensor:
    """The power of two at or below each magnitude, 0 below the smallest normal number: the exponent's bits alone."""
    integer, mask = _EXPONENTS[values.dtype]
    return (values.view(integer) & mask).view(values.dtype)


@dataclass(frozen=True)
class Table:
    """A format that lists its values in rising order; scale = absmax / the last value."""

    name: str
    levels: tuple[float, ...]

    @property
    def limit(self) -> float:
        """The largest value."""
        return self.levels[-1]

    def indices(self, ratio: torch.Tensor) -> torch.Tensor:
        """The index in ``levels`` of the value nearest to each ratio, int64; of two equally near, the lower."""
        levels = self._levels(ratio)
        return torch.bucketize(ratio.contiguous(), (levels[1:] + levels[:-1]) / 2)

    def nearest(self, ratio: torch.Tensor) -> torch.Tensor:
        """Codes as the values that they stand for."""
        return self._levels(ratio)[self.indices(ratio)]

    def _levels(self, ratio: torch.Tensor) -> torch.Tensor:
        return torch.tensor(self.levels, dtype=ratio.dtype, device=ratio.device)

    def spacing(self, ratio: torch.Tensor) -> torch.Tensor:
        """Distance of the two neighbouring values that enclose each ratio."""
        levels = self._levels(ratio)
        below = torch.bucketize(ratio.contiguous(), levels[1:-1], right=True)
        return (levels[1:] - levels[:-1])[below]


# Quantiles of the normal distribution, as bitsandbytes holds them (QLoRA, arXiv 2305.14314, appendix E).
_NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)

Format = Integer | Float | Table
FORMATS: dict[str, Format] = {
    number.name: number
    for number in (
        Integer("int8", 8),
        Integer("int4", 4),
        Float("float8_e4m3", 4, 3, reserved=1),
        Float("float4_e2m1", 2, 1, reserved=0),
        Table("nf4", _NF4),
        Float("float16", 5, 10, reserved=2**10),
        Float("bfloat16", 8, 7, reserved=2**7),
        Float("float32", 8, 23, reserved=2**23),
    )
}


def find(name: str) -> Format:
    """The format of that name."""
    if name not in FORMATS:
        raise unknown("number format", name, FORMATS)
    return FORMATS[name]


def floating(name: str) -> Float:
    """The floating-point format of that name, which can store a scale."""
    number = find(name)
    if not isinstance(number, Float):
        raise unknown("floating-point format", name, [n for n, f in FORMATS.items() if isinstance(f, Float)])
    return number


def scale(absmax: torch.Tensor, number: Format, stored: str) -> torch.Tensor:
    """The step that puts ``absmax`` on the largest code: same shape, float32, > 0.

    Rounded *up* to a value that the float format ``stored`` holds exactly: an artifact and its float32 twin then share
    one scale, and nothing in range is clipped. An all-zero group gets the smallest step.
    """
    holder = floating(stored)
    smallest = holder.smallest - holder.mantissa  # exponent of the least subnormal
    exact = absmax.double() / number.limit
    exponent = torch.frexp(exact).exponent.double() - 1
    spacing = torch.exp2((exponent - holder.mantissa).clamp(min=smallest))
    return (torch.ceil(exact / spacing) * spacing).clamp(min=2.0**smallest).float()


def scale_of_scales(absmax: torch.Tensor, number: Format, holder: Float) -> torch.Tensor:
    """The float32 factor, scalar, that lets ``holder`` store the steps of every block whose maxima ``absmax`` holds.

    NVFP4: the tensor's maximum over 6 times 448.
    """
    return (absmax.max().float() / (number.limit * holder.limit)).clamp(min=2.0**-126)


def block_scale(absmax: torch.Tensor, number: Format, holder: Float, factor: torch.Tensor) -> torch.Tensor:
    """Steps of blocks in units of ``factor``, as ``holder`` stores them: rounded to nearest, so a maximum may clip."""
    return holder.nearest(absmax.float() / number.limit / factor)


def quantize(values: torch.Tensor, step: torch.Tensor, number: Format) -> torch.Tensor:
    """Codes of ``values``, same shape: to the nearest, saturating (ONNX QuantizeLinear); 0 where ``step`` is 0.

    NaN is undefined.
    """
    return number.nearest(torch.where(step == 0, 0, values / step))


def dequantize(codes: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Values of ``codes`` in the dtype of ``step`` (ONNX DequantizeLinear, zero point 0)."""
    return codes.to(step.dtype) * step
