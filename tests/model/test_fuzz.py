"""Files of adapters that no trainer wrote: no traceback, and no tensor that is dropped without a word.

``QCHECK_FUZZ=50000 python -m pytest tests/model/test_fuzz.py`` is the long run.
"""

import functools
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from qcheck.core.errors import UserError
from qcheck.model import lora
from qcheck.model.lora import Contents
from qcheck.model.lora.layout import Names
from qcheck.spec.use import Use
from tests import families, layouts

EXAMPLES = int(os.environ.get("QCHECK_FUZZ", "300"))
FAMILIES = ("sd1", "sdxl", "sd3", "flux")

Tensors = dict[str, torch.Tensor]


@functools.cache
def _pipe(family: str) -> Any:
    return families.FAMILIES[family]()


@functools.cache
def _weights(family: str) -> Mapping[str, torch.Tensor]:
    return layouts.weights(_pipe(family))


@functools.cache
def _names(family: str) -> Names:
    return lora.names_of(_pipe(family))


_BEGINNINGS = (
    *("", "unet.", "transformer.", "text_encoder.", "text_encoder_2.", "diffusion_model.", "base_model.model."),
    *("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_", "lora_te3_", "lora_transformer_", "lycoris_"),
    *("unet.base_model.model.", "model.diffusion_model.", "text_encoders.clip_l.transformer."),
)
_ORIGINAL = (
    *(
        "double_blocks.0.img_attn.qkv",
        "single_blocks.0.linear1",
        "joint_blocks.0.x_block.attn.qkv",
        "final_layer.linear",
    ),
    *("input_blocks.1.1.proj_in", "middle_block.1.proj_out", "output_blocks.3.1.proj_in", "out.2", "label_emb.0.0"),
    *("alien", "a.b.c", "", ".", "é", "down", "lora_A", "x" * 300),
)
_ENDINGS = (
    *(
        ".lora_A.weight",
        ".lora_B.weight",
        ".lora_down.weight",
        ".lora_up.weight",
        ".alpha",
        ".down.weight",
        ".up.weight",
    ),
    *(".lora_A.default.weight", ".lora_B.default_0.weight", ".lora.up.weight", ".lora_linear_layer.down.weight"),
    *(".lora_magnitude_vector", ".lora_magnitude_vector.default.weight", ".dora_scale", ".diff", ".diff_b", ".bias"),
    *(
        ".hada_w1_a",
        ".hada_w2_b",
        ".lokr_w1",
        ".lokr_w2",
        ".lokr_w2_a",
        ".lokr_t2",
        ".lora_mid.weight",
        ".w_norm",
        "",
        ".weight",
        ".scale_weight",
        ".lora_A.bias",
    ),
)


@st.composite
def files(draw: st.DrawFn) -> tuple[str, Tensors]:
    """A family, and tensors under names of layers that it has, or of others, with shapes that fit, or do not."""
    family = draw(st.sampled_from(FAMILIES))
    weights, tensors, generator = _weights(family), Tensors(), torch.Generator().manual_seed(0)
    for _ in range(draw(st.integers(1, 4))):
        layer = draw(st.sampled_from(sorted(weights)))
        body = draw(st.sampled_from((layer, layer.partition(".")[2], *_ORIGINAL)))
        body = body.replace(".", "_") if draw(st.booleans()) else body
        name = draw(st.sampled_from(_BEGINNINGS)) + body
        shape, rank = weights[layer].shape, draw(st.integers(0, 3))
        if draw(st.booleans()):
            sides = draw(
                st.sampled_from(((".lora_A.weight", ".lora_B.weight"), (".lora_down.weight", ".lora_up.weight")))
            )
            sizes: list[tuple[int, ...]] = [(rank, *shape[1:]), (shape[0], rank, *[1] * (len(shape) - 2))]
            endings = list(zip(sides, sizes, strict=True))
        else:
            size = draw(st.lists(st.integers(0, 5), max_size=4))
            endings = [(draw(st.sampled_from(_ENDINGS)), tuple(size))]
        for ending, size in endings:
            dtype = draw(
                st.sampled_from((torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int8))
            )
            tensors[name + ending] = torch.randn(tuple(size), generator=generator).add(1).to(dtype)
        if draw(st.booleans()):
            tensors[f"{name}.alpha"] = torch.tensor(5.0)  # no rank
    return family, tensors


def _read(family: str, tensors: Tensors, folder: Path) -> Contents | str:
    """What a file holds, or what the error says."""
    path = folder / "fuzz.safetensors"
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    try:
        adapter = lora.read(Use(source=str(path), weight=1.0))
        found = lora.contents_of(_names(family), adapter)
    except UserError as error:
        return error.what
    with suppress(UserError):
        fitted = lora.fit(_pipe(family), adapter, allow_unmatched=True)
        assert {*fitted.factors, *map(lora.layer_of, fitted.shifts), *fitted.unmatched} == set(found.layers)
        for layer, factors in fitted.factors.items():
            assert factors.merged(_weights(family)[layer], 1.0).shape == _weights(family)[layer].shape
    return found


def _content(found: Contents) -> dict[str, str]:
    """All that a file says of each layer."""
    factors = found.factors.items()
    content = {layer: repr((one.down.tolist(), one.up.tolist(), one.scale, one.sizes)) for layer, one in factors}
    return content | {name: repr(values.tolist()) for name, values in found.shifts.items()}


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(files())
def test_every_tensor_arrives_or_the_file_is_refused(made: tuple[str, Tensors]) -> None:
    """A file that is read without one of its tensors is refused then, or changes the layers otherwise."""
    family, tensors = made
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = _read(family, tensors, folder)
        if isinstance(found, str):
            assert found
            return
        for key in tensors:
            rest = _read(family, {other: value for other, value in tensors.items() if other != key}, folder)
            assert isinstance(rest, str) or _content(rest) != _content(found), f"{key} was dropped"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_fuzzer_writes_files_that_are_read_too(family: str, tmp_path: Path) -> None:
    layer = next(name for name, weight in _weights(family).items() if weight.ndim == 2)
    rows, columns = _weights(family)[layer].shape
    factors = {f"{layer}.lora_A.weight": torch.ones(2, columns), f"{layer}.lora_B.weight": torch.ones(rows, 2)}
    assert _read(family, factors, tmp_path).layers == [layer]  # type: ignore[union-attr]
