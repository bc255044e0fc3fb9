"""LoHa, LoKr, whole differences and DoRA in kohya's layout are merged as LyCORIS merges them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lycoris.functional import loha, lokr
from lycoris.functional.general import weight_decompose
from safetensors.torch import save_file

from qcheck.core.errors import UserError
from qcheck.demo import library
from qcheck.model import arms, load, lora
from qcheck.model.lora import products, trainable
from qcheck.model.lora.layout import Factors, LayoutError, Names, Sizes, placed
from qcheck.spec import recipe, scheme
from qcheck.spec.use import Use
from qcheck.tasks import inspect

LINEAR = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "down_blocks.0.resnets.0.conv1"
ALPHA = 2.5

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def base() -> load.Base:
    return load.load(str(library.PIPELINE))


def _weight(base: load.Base, layer: str) -> torch.Tensor:
    weight: torch.Tensor = base.denoiser.get_submodule(layer).weight.detach()
    return weight


def _random(parts: Mapping[str, torch.Tensor | None]) -> Tensors:
    generator = torch.Generator().manual_seed(4)
    given = {name: value for name, value in parts.items() if value is not None}
    return {name: 0.3 * torch.randn(value.shape, generator=generator) for name, value in given.items()}


def _loha(weight: torch.Tensor, tucker: bool) -> tuple[Tensors, torch.Tensor]:
    names = ("hada_w1_b", "hada_w1_a", "hada_w2_b", "hada_w2_a", "hada_t1", "hada_t2")
    flat = weight if tucker else weight.flatten(1)
    parts = _random(dict(zip(names, loha.weight_gen(flat, 3, tucker), strict=True)))
    change = loha.diff_weight(*(parts.get(name) for name in names), gamma=ALPHA / 3)
    return parts, change.view(weight.shape)


def _lokr(weight: torch.Tensor, tucker: bool, rank: int, both: bool) -> tuple[Tensors, torch.Tensor]:
    names = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
    made = lokr.weight_gen(weight, rank, tucker, decompose_both=both)
    parts = _random({f"lokr_{name}": value for name, value in zip(names, made, strict=True)})
    change = lokr.diff_weight(*(parts.get(f"lokr_{name}") for name in names))
    ranks = [len(value) for name, value in parts.items() if name.endswith("_b")]
    divisors = [
        value.shape[1] for name, value in parts.items() if name.endswith("_a")
    ]  # by which lycoris divides there
    if ranks:
        change = change * divisors[0] * ALPHA / ranks[0]
    return parts, change


def _diff(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    parts = _random({"diff": weight})
    return parts, parts["diff"]


CASES: dict[str, Any] = {
    "loha": (LINEAR, lambda weight: _loha(weight, False)),
    "loha of a convolution": (CONV, lambda weight: _loha(weight, False)),
    "loha with a core": (CONV, lambda weight: _loha(weight, True)),
    "lokr": (LINEAR, lambda weight: _lokr(weight, False, 2, False)),
    "lokr of four": (LINEAR, lambda weight: _lokr(weight, False, 1, True)),
    "lokr of two whole": (LINEAR, lambda weight: _lokr(weight, False, 10_000, False)),
    "lokr of a convolution": (CONV, lambda weight: _lokr(weight, False, 2, False)),
    "lokr with a core": (CONV, lambda weight: _lokr(weight, True, 2, False)),
    "difference": (LINEAR, _diff),
    "difference of a convolution": (CONV, _diff),
}


def _saved(parts: Tensors, layer: str, path: Path, alpha: bool, weight: float = 0.5) -> lora.Adapter:
    name = f"lora_unet_{layer.replace('.', '_')}"
    tensors = {f"{name}.{part}": value.contiguous() for part, value in parts.items()}
    save_file(tensors | ({f"{name}.alpha": torch.tensor(ALPHA)} if alpha else {}), path)
    return lora.read(Use(source=str(path), weight=weight))


@pytest.mark.parametrize("case", CASES)
def test_a_change_is_that_of_lycoris(base: load.Base, case: str, tmp_path: Path) -> None:
    layer, make = CASES[case]
    weight = _weight(base, layer)
    parts, change = make(weight)
    both = arms.apply(base, [_saved(parts, layer, tmp_path / "made.safetensors", "diff" not in parts)])
    assert both.layers == (f"unet.{layer}",)
    after = both.changed["adapted"][f"unet.{layer}"].whole()
    expected = weight.double() + 0.5 * change.double()
    assert change.abs().max() > 0.01
    assert (after - expected).abs().max() <= 2e-6 * expected.abs().max()
    down, up = both.factors(layer)
    assert down.shape[1:] == weight.shape[1:]
    assert torch.allclose(up @ down.flatten(1), 0.5 * change.flatten(1), atol=1e-5)


def test_a_lokr_of_small_rank_is_held_as_small_factors(base: load.Base) -> None:
    weight = _weight(base, LINEAR)
    parts, _ = _lokr(weight, False, 2, False)
    down, up, rank = products.factors(parts) or (None, None, None)
    assert up is not None
    assert rank == 2
    assert up.shape == (len(weight), 2 * parts["lokr_w1"].shape[1])
    assert up.shape[1] < len(weight)
    assert down is not None
    assert down.shape == (up.shape[1], weight.shape[1])


@pytest.mark.parametrize("case", CASES)
def test_a_part_that_is_missing_is_an_error(base: load.Base, case: str, tmp_path: Path) -> None:
    layer, make = CASES[case]
    parts, _ = make(_weight(base, layer))
    for name in parts if len(parts) > 1 else ():
        rest = {other: value for other, value in parts.items() if other != name}
        if name == "lokr_t2":
            continue  # the other two are factors of a matrix then
        with pytest.raises(UserError, match="make no change together"):
            arms.apply(base, [_saved(rest, layer, tmp_path / "made.safetensors", alpha=False)])


def test_what_is_no_product_of_two_factors_is_not_trained(base: load.Base, tmp_path: Path) -> None:
    parts, _ = _loha(_weight(base, LINEAR), False)
    adapter = _saved(parts, LINEAR, tmp_path / "made.safetensors", alpha=True)
    with pytest.raises(UserError, match="no product of two factors"):
        trainable.find(base.pipe, adapter)


@pytest.mark.parametrize("shape", [(3,), (3, 5, 7)])
def test_parts_that_do_not_fit_are_an_error(base: load.Base, shape: tuple[int, ...], tmp_path: Path) -> None:
    parts, _ = _loha(_weight(base, LINEAR), False)
    adapter = _saved(parts | {"hada_w1_a": torch.ones(shape)}, LINEAR, tmp_path / "made.safetensors", alpha=True)
    with pytest.raises(UserError, match=r"do not (multiply|fit)"):
        arms.apply(base, [adapter])


def _sizes(weight: torch.Tensor, on_outputs: bool) -> torch.Tensor:
    """``dora_scale`` as LyCORIS stores it, [out, 1, ...] or [1, in, ...]."""
    others = [axis for axis in range(weight.ndim) if axis != (0 if on_outputs else 1)]
    norms = torch.linalg.vector_norm(weight, dim=others, keepdim=True)
    return norms * (1 + 0.3 * torch.randn(norms.shape, generator=torch.Generator().manual_seed(8)))


def _lora(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    ones = [1] * (weight.ndim - 2)
    down, up = torch.empty(3, *weight.shape[1:]), torch.empty(len(weight), 3, *ones)
    parts = _random({"lora_down.weight": down, "lora_up.weight": up})
    change = parts["lora_up.weight"].flatten(1) @ parts["lora_down.weight"].flatten(1)
    return parts, ALPHA / 3 * change.view(weight.shape)


DORA: dict[str, Any] = {
    "lora": (LINEAR, _lora),
    "lora of a convolution": (CONV, _lora),
    **{name: case for name, case in CASES.items() if name in {"loha", "lokr", "lokr of a convolution"}},
}


@pytest.mark.parametrize("on_outputs", [True, False], ids=["outputs", "inputs"])
@pytest.mark.parametrize("case", DORA)
def test_a_dora_in_kohya_s_layout_is_that_of_lycoris(
    base: load.Base, case: str, on_outputs: bool, tmp_path: Path
) -> None:
    layer, make = DORA[case]
    weight = _weight(base, layer)
    parts, change = make(weight)
    scale = _sizes(weight, on_outputs)
    adapter = _saved(parts | {"dora_scale": scale}, layer, tmp_path / "made.safetensors", alpha=True, weight=1.0)
    both = arms.apply(base, [adapter])
    after = both.changed["adapted"][f"unet.{layer}"].whole()
    expected = weight_decompose(weight + change, scale, 1, on_outputs)
    assert (after - weight).norm() > 0.1 * weight.norm()
    assert torch.allclose(after, expected, atol=2e-6 * float(expected.abs().max()))
    half = arms.apply(base, [replace(adapter, weight=0.5)]).changed["adapted"][f"unet.{layer}"].whole()
    assert torch.allclose(half, (weight + expected) / 2, atol=2e-6 * float(expected.abs().max()))
    asked = inspect.Question(1.0, [scheme.find("int8")], ["quantize-merge"], recipe.find("general"))
    found = inspect.inspect(str(adapter.path), str(library.PIPELINE), asked)
    assert found.layers[0].relative == pytest.approx(float((expected - weight).norm() / weight.norm()), rel=0.02)


def test_a_dora_in_kohya_s_layout_is_refused_where_loaders_disagree(base: load.Base, tmp_path: Path) -> None:
    weight, path = _weight(base, LINEAR), tmp_path / "made.safetensors"
    parts, _ = _lora(weight)
    with pytest.raises(UserError, match=r"loaders disagree on its weight 0\.5"):
        _saved(parts | {"dora_scale": _sizes(weight, True)}, LINEAR, path, alpha=True)
    adapter = _saved(parts | {"dora_scale": _sizes(weight, False)}, LINEAR, path, alpha=True, weight=1.0)
    with pytest.raises(UserError, match="is a DoRA"):
        trainable.find(base.pipe, adapter)
    with pytest.raises(UserError, match="beside other adapters"):
        arms.apply(base, [adapter, adapter])
    for shape in ((4,), (2, 3), (7, 1), (1, 7)):
        wrong = _saved(parts | {"dora_scale": torch.ones(shape)}, LINEAR, path, alpha=True, weight=1.0)
        with pytest.raises(UserError, match=r"no one axis|do not fit"):
            arms.apply(base, [wrong])


def test_some_outputs_of_a_dora_are_those_of_the_whole(base: load.Base) -> None:
    weight, places = _weight(base, LINEAR), torch.tensor([7, 2, 90])
    parts, _ = _lora(weight)
    sizes = Sizes(_sizes(weight, True).flatten(), blended=True)
    factors = Factors(parts["lora_down.weight"], parts["lora_up.weight"], 1.0, sizes)
    assert torch.allclose(factors.rows(places).merged(weight[places], 1.0), factors.merged(weight, 1.0)[places])
    with pytest.raises(ValueError, match="all outputs"):
        replace(factors, sizes=Sizes(torch.ones(weight.shape[1]), axis=1)).rows(places)


def test_sizes_of_the_inputs_of_a_fused_layer_are_refused() -> None:
    factors = Factors(torch.ones(2, 4), torch.ones(12, 2), 1.0, Sizes(torch.ones(4), axis=1))
    with pytest.raises(LayoutError, match="of their inputs together"):
        placed("lora_unet_double_blocks_0_img_attn_qkv", factors, Names())
