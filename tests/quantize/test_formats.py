import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcheck.core.errors import UserError
from qcheck.quantize import formats

INT8 = formats.find("int8")
# Signal-to-noise in dB of INT8 absmax per channel of N values: exact quadrature, quoted to two decimals.
ORACLE = {
    ("gauss", 320): 42.96,
    ("gauss", 1024): 42.10,
    ("gauss", 4096): 41.24,
    ("laplace", 320): 39.67,
    ("laplace", 1024): 38.25,
    ("laplace", 4096): 36.81,
    ("uniform", 320): 48.14,
    ("uniform", 1024): 48.11,
    ("uniform", 4096): 48.10,
}
DRAW = {
    "gauss": lambda rng, shape: rng.standard_normal(shape),
    "laplace": lambda rng, shape: rng.laplace(size=shape),
    "uniform": lambda rng, shape: rng.uniform(-1, 1, shape),
}
reals = st.floats(-1e4, 1e4, width=32)


@pytest.mark.parametrize(("law", "count"), ORACLE)
def test_int8_per_channel_meets_the_oracle(law: str, count: int) -> None:
    rng = np.random.default_rng(11)
    values = torch.from_numpy(DRAW[law](rng, (4_000_000 // count, count)).astype(np.float32))
    step = formats.scale(values.abs().amax(1), INT8, "float32")[:, None]
    error = formats.dequantize(formats.quantize(values, step, INT8), step) - values
    sqnr = 10 * np.log10(float(values.double().square().sum() / error.double().square().sum()))
    assert sqnr == pytest.approx(ORACLE[law, count], abs=0.05)


def test_a_fifth_of_a_bit_less_is_caught_by_the_oracle() -> None:
    values = torch.from_numpy(np.random.default_rng(11).standard_normal((4000, 1024)).astype(np.float32))
    step = 1.15 * formats.scale(values.abs().amax(1), INT8, "float32")[:, None]
    error = formats.dequantize(formats.quantize(values, step, INT8), step) - values
    sqnr = 10 * np.log10(float(values.square().sum() / error.square().sum()))
    assert sqnr < ORACLE["gauss", 1024] - 0.5


@given(st.lists(reals, min_size=1, max_size=40), st.sampled_from(["float32", "float16", "bfloat16"]))
def test_quantizing_again_changes_no_code_and_errs_by_half_a_step(numbers: list[float], stored: str) -> None:
    values = torch.tensor(numbers)
    step = formats.scale(values.abs().amax(), INT8, stored)
    codes = formats.quantize(values, step, INT8)
    decoded = formats.dequantize(codes, step)
    assert torch.equal(formats.quantize(decoded, step, INT8), codes)
    assert ((decoded - values).abs() <= step * (0.5 + 1e-4)).all()


@given(st.floats(0, 6e4, width=32), st.sampled_from(["float16", "bfloat16"]))
def test_a_scale_is_held_exactly_by_its_storage_and_never_clips(absmax: float, stored: str) -> None:
    step = formats.scale(torch.tensor(absmax), INT8, stored)
    assert step > 0
    assert torch.equal(step.to(getattr(torch, stored)).float(), step)
    assert step.double() * INT8.limit >= absmax * (1 - 1e-7)


def test_out_of_range_saturates_at_the_codes_of_quantize_linear() -> None:
    codes = formats.quantize(torch.tensor([-1e9, 1e9]), torch.tensor(1.0), INT8)
    assert codes.tolist() == [-128, 127]


def test_unknown_format_is_an_error_with_a_hint() -> None:
    with pytest.raises(UserError, match="Did you mean 'int8'"):
        formats.find("int9")


@pytest.mark.parametrize(
    ("law", "block", "expected"),
    [
        ("gauss", 32, 20.26),
        ("gauss", 64, 19.36),
        ("gauss", 128, 18.62),
        ("laplace", 128, 15.90),
        ("uniform", 64, 23.13),
    ],
)
def test_int4_per_block_meets_the_oracle(law: str, block: int, expected: float) -> None:
    number = formats.find("int4")
    values = torch.from_numpy(DRAW[law](np.random.default_rng(2), (4_000_000 // block, block)).astype(np.float32))
    step = formats.scale(values.abs().amax(1), number, "float32")[:, None]
    error = formats.dequantize(formats.quantize(values, step, number), step) - values
    sqnr = 10 * np.log10(float(values.double().square().sum() / error.double().square().sum()))
    assert sqnr == pytest.approx(expected, abs=0.03)


FP8 = formats.find("float8_e4m3")


def test_fp8_spacing_is_the_distance_to_the_next_value() -> None:
    """At 0 and in the lowest binades it is the subnormal's, 2^-9."""
    found = FP8.spacing(torch.tensor([0.0, 2**-9, 2**-6, 1.0, -1.9, 300.0]))
    assert found.tolist() == [2**-9, 2**-9, 2**-9, 2**-3, 2**-3, 32.0]


def test_fp8_holds_exactly_the_values_of_e4m3() -> None:
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    every = every[every.isfinite()]
    assert torch.equal(formats.quantize(every, torch.tensor(1.0), FP8), every)
    assert float(every.max()) == FP8.limit


@given(st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=40))
def test_fp8_rounds_as_the_hardware_type_does_and_saturates(numbers: list[float]) -> None:
    values = torch.tensor(numbers)
    expected = values.clamp(-448, 448).to(torch.float8_e4m3fn).float()
    assert torch.equal(formats.quantize(values, torch.tensor(1.0), FP8), expected)


@pytest.mark.parametrize(("law", "expected"), [("gauss", 31.56), ("laplace", 31.65), ("uniform", 31.88)])
def test_fp8_per_channel_meets_the_oracle(law: str, expected: float) -> None:
    values = torch.from_numpy(DRAW[law](np.random.default_rng(2), (4000, 1024)).astype(np.float32))
    step = formats.scale(values.abs().amax(1), FP8, "float32")[:, None]
    error = formats.dequantize(formats.quantize(values, step, FP8), step) - values
    sqnr = 10 * np.log10(float(values.double().square().sum() / error.double().square().sum()))
    assert sqnr == pytest.approx(expected, abs=0.03)


@given(st.lists(st.floats(-448, 448, width=32), min_size=1, max_size=40), st.sampled_from(sorted(formats.FORMATS)))
def test_no_value_in_range_is_further_than_half_a_spacing_from_its_code(numbers: list[float], name: str) -> None:
    number = formats.find(name)
    values = torch.tensor(numbers).clamp(-number.limit, number.limit)
    codes = formats.quantize(values, torch.tensor(1.0), number).float()
    assert ((codes - values).abs() <= number.spacing(values) * (0.5 + 1e-6)).all()
    assert torch.equal(formats.quantize(codes, torch.tensor(1.0), number).float(), codes)


def test_nf4_is_the_table_of_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    table = formats.find("nf4")
    assert isinstance(table, formats.Table)
    assert torch.tensor(table.levels) == pytest.approx(functional.get_4bit_type("nf4", device="cpu"), abs=1e-7)
    assert table.limit == 1.0


def test_fp4_holds_exactly_the_values_of_e2m1() -> None:
    fp4, values = formats.find("float4_e2m1"), torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    assert fp4.limit == 6.0
    assert torch.equal(fp4.nearest(values), values)
    assert torch.equal(fp4.nearest(torch.linspace(0, 7, 2000)).unique(), values)


def test_blocks_are_scaled_in_two_steps_as_nvfp4_is() -> None:
    fp4, fp8 = formats.find("float4_e2m1"), formats.floating("float8_e4m3")
    absmax = torch.tensor([2 * 6 * 448.0, 24.0, 0.0])
    factor = formats.scale_of_scales(absmax, fp4, fp8)
    assert factor == 2.0
    assert formats.scale_of_scales(torch.zeros(3), fp4, fp8) == 2.0**-126
    assert formats.block_scale(absmax, fp4, fp8, factor).tolist() == [448.0, 2.0, 0.0]
