"""Signal-to-noise of every number format on known laws, through the same plan that simulation and artifact use.

Figures: shared table of the project's notes (Monte Carlo of 25 M samples, standard error at most .008 dB, partly exact
quadrature). Ours has 4 M, so the tolerance is its own standard error and a margin; absmax per tensor varies by more.
"""

import functools
from collections.abc import Callable

import bitsandbytes
import numpy as np
import pytest
import torch

from qcheck.quantize import plan
from qcheck.quantize.plan import Grid
from qcheck.spec import scheme as schemes
from qcheck.spec.scheme import Numbers, Rule, Scheme

COUNT = 4_000_000
LAWS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {  # each of unit variance
    "gauss": lambda rng, n: rng.standard_normal(n),
    "laplace": lambda rng, n: rng.laplace(scale=2**-0.5, size=n),
    "uniform": lambda rng, n: rng.uniform(-(3**0.5), 3**0.5, n),
}


@functools.cache
def drawn(law: str) -> torch.Tensor:
    return torch.from_numpy(LAWS[law](np.random.default_rng(7), COUNT).astype(np.float32))


def grid(weight: torch.Tensor, numbers: Numbers) -> Grid:
    rule = Rule(operators=("Linear",), weights=numbers)
    scheme = Scheme(name="x", title="x", compute="float32", opset=20, runs=("tensorrt",), rules=[rule])
    return plan.make_layer(weight, scheme, plan.Input(1.0)).weight


@pytest.mark.parametrize("name", ["nvfp4", "int8", "fp8", "int4-g128"])
def test_a_layer_of_zeros_stays_zeros(name: str) -> None:
    zeros = torch.zeros(16, 128)
    assert torch.equal(plan.make_layer(zeros, schemes.find(name), plan.Input(1.0)).fake(zeros), zeros)


def sqnr(weight: torch.Tensor, numbers: Numbers) -> float:
    error = grid(weight, numbers).fake(weight) - weight
    return float(10 * torch.log10(weight.double().square().sum() / error.double().square().sum()))


def block(name: str, size: int, scales: str | None = None) -> Numbers:
    return Numbers(format=name, granularity="block", block=size, scales=scales)


def run(size: int) -> Numbers:
    return Numbers(format="nf4", granularity="run", block=size)


def each(name: str, granularity: str) -> Numbers:
    return Numbers.model_validate({"format": name, "granularity": granularity})


# numbers, length of the input axis, decibels for Gauss, Laplace and uniform, tolerance
ORACLES: dict[str, tuple[Numbers, int, tuple[float, float, float], float]] = {
    "int8 channel 320": (each("int8", "channel"), 320, (42.96, 39.67, 48.14), 0.04),
    "int8 channel 640": (each("int8", "channel"), 640, (42.43, 38.79, 48.12), 0.05),
    "int8 channel 1280": (each("int8", "channel"), 1280, (41.95, 38.00, 48.11), 0.05),
    "int8 channel 4000": (each("int8", "channel"), 4000, (41.26, 36.84, 48.10), 0.08),
    "fp8 tensor": (each("float8_e4m3", "tensor"), 1000, (31.55, 31.54, 31.87), 0.05),  # one absmax: its phase
    "fp8 channel 1024": (each("float8_e4m3", "channel"), 1000, (31.56, 31.65, 31.88), 0.03),
    "fp8 block 128": (block("float8_e4m3", 128), 1280, (31.80, 32.10, 31.97), 0.03),
    "fp8 cast": (each("float8_e4m3", "none"), 1000, (31.52, 31.54, 31.74), 0.03),
    "int4 g16": (block("int4", 16), 1280, (21.39, 19.90, 23.71), 0.03),
    "int4 g32": (block("int4", 32), 1280, (20.26, 18.34, 23.32), 0.03),
    "int4 g64": (block("int4", 64), 1280, (19.36, 17.03, 23.13), 0.03),
    "int4 g128": (block("int4", 128), 1280, (18.62, 15.90, 23.03), 0.03),
    "nf4 g32": (run(32), 1280, (21.18, 20.61, 20.99), 0.03),
    "nf4 g64": (run(64), 1280, (20.73, 19.69, 20.79), 0.03),
    "nf4 g128": (run(128), 1280, (20.39, 18.89, 20.69), 0.03),
    "e2m1 g16": (block("float4_e2m1", 16), 1280, (20.52, 20.80, 19.95), 0.03),
    "e2m1 g32": (block("float4_e2m1", 32), 1280, (19.91, 19.78, 19.55), 0.03),
    "e2m1 g64": (block("float4_e2m1", 64), 1280, (19.52, 19.00, 19.36), 0.03),
    "nvfp4": (block("float4_e2m1", 16, "float8_e4m3"), 1280, (20.44, 20.66, 19.86), 0.03),
    "fp16": (each("float16", "none"), 1000, (73.65, 73.67, 73.96), 0.03),
    "bf16": (each("bfloat16", "none"), 1000, (55.59, 55.61, 55.90), 0.03),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", ORACLES)
def test_a_format_has_the_signal_to_noise_of_the_oracle(name: str, law: str) -> None:
    numbers, inputs, expected, tolerance = ORACLES[name]
    assert sqnr(drawn(law).view(-1, inputs), numbers) == pytest.approx(expected[[*LAWS].index(law)], abs=tolerance)


@pytest.mark.parametrize(("sigma", "expected"), [(0.02, (29.62, 29.30, 29.70)), (0.005, (18.96, 18.99, 19.06))])
def test_a_bare_cast_to_fp8_drowns_small_values_in_its_subnormals(sigma: float, expected: tuple[float, ...]) -> None:
    found = [sqnr(sigma * drawn(law).view(-1, 1000), each("float8_e4m3", "none")) for law in LAWS]
    assert found == pytest.approx(expected, abs=0.03)


def test_int8_per_tensor_depends_on_the_one_largest_value() -> None:
    """1 M values; the largest of them varies, and Laplace's most: the notes give standard errors of .06 to .5 dB."""
    for law, expected, tolerance in (("gauss", 38.91, 0.6), ("laplace", 32.8, 1.5), ("uniform", 48.10, 0.03)):
        parts = drawn(law).view(4, 1000, 1000)
        assert np.mean([sqnr(p, each("int8", "tensor")) for p in parts]) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize(("size", "expected"), [(32, 0.067746), (64, 0.072798), (128, 0.076831)])
def test_nf4_errs_by_what_bitsandbytes_states_for_its_own(size: int, expected: float) -> None:
    """Mean absolute error on N(0, 1) from bitsandbytes' tests/test_functional.py, +- .000074 at 64."""
    weight = drawn("gauss").view(-1, 1280)
    assert float((grid(weight, run(size)).fake(weight) - weight).abs().mean()) == pytest.approx(expected, abs=1.5e-4)


@pytest.mark.parametrize("shape", [(96, 96), (64, 320), (128, 1280)])
def test_nf4_is_bitsandbytes_own_code_and_absmax_bit_for_bit(shape: tuple[int, int]) -> None:
    weight = drawn("laplace")[: shape[0] * shape[1]].view(shape)
    packed, state = bitsandbytes.functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    found = grid(weight, run(64))
    table = torch.tensor(found.number.levels)  # type: ignore[union-attr]
    assert torch.equal(state.code, table)
    assert torch.equal(state.absmax, found.step)
    codes = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], 1).flatten().long()
    assert torch.equal(table[codes].view(shape), found.codes(weight))


def test_nvfp4_scales_are_e4m3_and_reach_the_top_of_it() -> None:
    weight = drawn("gauss")[: 64 * 1280].view(64, 1280)
    held = grid(weight, ORACLES["nvfp4"][0]).held
    assert held is not None
    assert torch.equal(held.codes.to(torch.float8_e4m3fn).float(), held.codes)
    assert float(held.codes.max()) == 448.0
    assert float(held.factor) == pytest.approx(float(weight.abs().max()) / (6 * 448), rel=1e-6)


def test_a_block_of_zeros_stays_zero_in_every_format() -> None:
    weight = drawn("gauss")[: 32 * 128].view(32, 128).clone()
    weight[:, :64] = 0
    for name in ("int4 g64", "nf4 g64", "e2m1 g16", "nvfp4", "fp8 cast"):
        faked = grid(weight, ORACLES[name][0]).fake(weight)
        assert faked.isfinite().all(), name
        assert (faked[:, :64] == 0).all(), name
