"""Where bitsandbytes' CPU kernels can and cannot be relied on."""

import bitsandbytes
import pytest
import torch

from qcheck.quantize.bnb import _FlatLinear


@pytest.mark.parametrize(("inputs", "right"), [(128, True), (96, False)])
def test_its_cpu_kernel_is_wrong_where_runs_cross_rows(inputs: int, right: bool) -> None:
    """When this fails, bitsandbytes was mended and ``_FlatLinear`` can go."""
    weight = torch.randn(96, inputs, generator=torch.Generator().manual_seed(0))
    packed, state = bitsandbytes.functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    error = (bitsandbytes.functional.dequantize_4bit(packed, state) - weight).abs().mean()
    assert (float(error) < 0.08) == right


def test_the_flattened_weight_is_right_there() -> None:
    weight = torch.randn(96, 96, generator=torch.Generator().manual_seed(0))
    found = _FlatLinear(weight, None, 64)(torch.eye(96)).t()
    assert float((found - weight).abs().mean()) == pytest.approx(0.0728, abs=2e-3)
