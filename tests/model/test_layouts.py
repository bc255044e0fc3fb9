"""Every layout of adapter files in every family: what is merged is what the file holds, to the last layer."""

import copy
import functools
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import SD3Transformer2DModel
from diffusers.loaders import Flux2LoraLoaderMixin, FluxLoraLoaderMixin
from diffusers.loaders.single_file_utils import (
    convert_sd3_transformer_checkpoint_to_diffusers,
    convert_z_image_transformer_checkpoint_to_diffusers,
)
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qcheck.core.errors import UserError
from qcheck.core.values import PACKAGE
from qcheck.model import arms, lora
from qcheck.model.arms import Arms
from qcheck.model.family import find
from qcheck.model.load import Base
from qcheck.model.lora import layout
from qcheck.model.lora.file import OTHER_KINDS
from qcheck.model.quiet import quiet
from qcheck.spec import recipe
from qcheck.spec.arm import Side
from qcheck.spec.order import ORDERS
from qcheck.spec.use import Use
from qcheck.tasks import inspect
from tests import families, layouts
from tests.layouts import Parts, Writer

EXACT = 1e-6  # of the largest value of a weight and its change, float32's own rounding

DENOISER, ALL = r"^(unet|transformer)\.", r""
ATTENTION = r"attn[12]\.|self_attn"
# SDXL has no upsampler in a block without attention, as the tiny pipeline has; the original's name of it is another
SGM = r"^unet\.(?!up_blocks\.0\.upsamplers)|^text"
BLOCKS, ATTENDING = (
    r"^transformer\.(layers|.*refiner|transformer_blocks)\.",
    r"^transformer\.(layers|.*refiner)\..*attention\.",
)
XLABS = r"transformer\.transformer_blocks\.\d+\.attn\.|single_transformer_blocks\.\d+\.(attn\.|proj_out)"


@dataclass(frozen=True)
class Case:
    """A layout of one family: the layers that it can hold, and how the factors are made."""

    family: str
    writer: Writer
    wanted: str = ALL
    alphas: bool = True
    shared: bool = False

    def __str__(self) -> str:
        marks = ("" if self.alphas else "-no-alpha") + ("-shared" if self.shared else "")
        return f"{self.family}-{self.writer.__name__}{marks}"


_EVERY: list[tuple[Writer, str, bool, bool]] = [
    (layouts.peft_wrapped, ALL, True, False),
    (layouts.peft_named, ALL, True, False),
    (layouts.lycoris, DENOISER, True, False),
    (layouts.loha, DENOISER, True, False),
    (layouts.lokr, DENOISER, True, False),
    (layouts.differences, DENOISER, True, False),
]
_ONE_ENCODER: list[tuple[Writer, str, bool, bool]] = [
    *_EVERY,
    (layouts.peft, ALL, True, False),
    (layouts.peft, ALL, False, False),
    (layouts.peft_with_alphas, ALL, True, False),
    (layouts.peft_folder, DENOISER, True, False),
    (layouts.diffusers, ALL, False, False),
    (layouts.processors, ATTENTION, False, False),
    (layouts.bare_processors, r"^unet.*attn[12]\.", False, False),
    (layouts.kohya, ALL, True, False),
    (layouts.kohya, ALL, False, False),
]
_FLUX: list[tuple[Writer, str, bool, bool]] = [
    *_EVERY,
    (layouts.peft, ALL, True, False),
    (layouts.peft_with_alphas, ALL, True, False),
    (layouts.peft_folder, DENOISER, True, False),
    (layouts.kohya_flux, ALL, True, False),
    (layouts.kohya_flux, ALL, True, True),
    (layouts.kohya_flux, ALL, False, True),
    (layouts.comfy, ALL, True, False),
    (layouts.original_peft_flux, DENOISER, False, True),
    (layouts.one_trainer, ALL, True, False),
    (layouts.xlabs, XLABS, False, True),
]
_DIFFUSERS: list[tuple[Writer, str, bool, bool]] = [
    *_EVERY,
    (layouts.peft, ALL, True, False),
    (layouts.peft_with_alphas, ALL, True, False),
    (layouts.peft_folder, DENOISER, True, False),
]
_LAYOUTS: dict[str, list[tuple[Writer, str, bool, bool]]] = {
    "sd1": _ONE_ENCODER,
    "sd2": _ONE_ENCODER,
    "sdxl": [
        *_DIFFUSERS,
        (layouts.diffusers, ALL, False, False),
        (layouts.kohya_xl, ALL, True, False),
        (layouts.kohya_xl, ALL, False, False),
        (layouts.kohya_sgm, SGM, True, False),
        (layouts.sgm_dotted, SGM, True, False),
        (layouts.comfy_unet, SGM, True, False),
    ],
    "sd3": [
        *_DIFFUSERS,
        (layouts.kohya_sd3, ALL, True, False),
        (layouts.kohya_sd3, ALL, False, False),
        (layouts.kohya_sd3, ALL, True, True),
        (layouts.one_trainer, ALL, True, False),
        (layouts.comfy, ALL, True, False),
    ],
    "flux": _FLUX,
    "flux-schnell": _FLUX,
    "z-image": [
        *_DIFFUSERS,
        (layouts.musubi, BLOCKS, True, False),
        (layouts.musubi, BLOCKS, False, False),
        (layouts.ai_toolkit, DENOISER, True, False),
        (layouts.comfy_z_image, DENOISER, True, False),
        (layouts.kohya_z_image, DENOISER, True, True),
        (layouts.kohya_z_image, DENOISER, False, True),
    ],
    "qwen-image": [
        *_DIFFUSERS,
        (layouts.musubi, DENOISER, True, False),
        (layouts.musubi, DENOISER, False, False),
        (layouts.ai_toolkit, DENOISER, True, False),
        (layouts.lightning, DENOISER, True, False),
    ],
    "flux2-klein": [
        *_DIFFUSERS,
        (layouts.kohya_flux, DENOISER, True, False),
        (layouts.kohya_flux, DENOISER, True, True),
        (layouts.comfy, DENOISER, True, False),
        (layouts.ai_toolkit_flux2, DENOISER, False, True),
    ],
    "chroma": [
        *_DIFFUSERS,
        (layouts.kohya_flux, ALL, True, False),
        (layouts.kohya_flux, ALL, True, True),
        (layouts.comfy, ALL, True, False),
    ],
    "sana": _DIFFUSERS,
    "sana-sprint": _DIFFUSERS,
}
CASES = [Case(family, *rest) for family, each in _LAYOUTS.items() for rest in each]


REFUSED = [
    ("key", "kind"),
    ("{0}.x.lora_mid.weight", "three factors"),
    ("{0}.x.oft_blocks", "OFT"),
    ("{0}.x.on_input", "IA"),
    ("{0}.x.a1.weight", "GLoRA"),
    ("bundle_emb.my person.clip_l", "embeddings of its trigger words"),
    ("{0}.x.vera_lambda_b", "VeRA"),
]


@functools.cache
def _made(family: str) -> Any:
    return families.FAMILIES[family]()


def _state(pipe: Any) -> dict[str, torch.Tensor]:
    """Every parameter of every component."""
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {f"{name}.{key}": value.clone() for name, part in parts.items() for key, value in part.state_dict().items()}


def _base(family: str) -> Base:
    return _loaded(copy.deepcopy(_made(family)))


def _loaded(pipe: Any) -> Base:
    kind = find(pipe.config)
    assert kind is not None
    return Base("made", "made", kind(pipe))


def _read(path: Path, weight: float = 1.0) -> lora.Adapter:
    return lora.read(Use(source=str(path), weight=weight))


def _wrong(
    before: dict[str, torch.Tensor], both: Arms, wanted: dict[str, torch.Tensor], side: Side = "adapted"
) -> list[str]:
    """The parameters of an arm that are not what they were plus the wanted change [out, in, ...] of their layer."""
    found = []
    with both.held(side) as family:
        state = _state(family.pipe)
    for name, after in state.items():
        change = wanted.get(name.removesuffix(".weight"), torch.zeros(())) if name.endswith(".weight") else None
        if change is None or change.ndim == 0:
            right = torch.equal(after, before[name])
        else:
            expected = before[name].double() + change
            right = bool((after - expected).abs().max() <= EXACT * (before[name].abs().max() + change.abs().max()))
        found += [] if right else [name]
    return found


def _changes(parts: Parts, weight: float = 1.0) -> dict[str, torch.Tensor]:
    return {layer: weight * part.change() for layer, part in parts.items()}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_file_is_applied_exactly_and_to_nothing_else(case: Case, tmp_path: Path) -> None:
    base = _base(case.family)
    before = _state(base.pipe)
    parts = layouts.known(base.pipe, case.wanted, case.alphas, case.shared)
    assert len(parts) > 10
    both = arms.apply(base, [_read(case.writer(parts, tmp_path / "made.safetensors"), 0.7)])
    assert set(both.layers) == set(parts)
    assert _wrong(before, both, _changes(parts, 0.7)) == []
    for layer in both.denoiser_layers():
        down, up = both.factors(layer)
        wanted = 0.7 * next(part for name, part in parts.items() if name.split(".", 1)[1] == layer).change().flatten(1)
        assert (up.double() @ down.double().flatten(1) - wanted).norm() <= 1e-4 * wanted.norm(), layer


_THEIRS = [  # what diffusers 0.42 merges whole; it loses alphas that differ in kohya's files, and knows no T5
    Case("sd1", layouts.peft),
    Case("sd1", layouts.processors, ATTENTION, alphas=False),
    Case("sd2", layouts.kohya, alphas=False),
    Case("sdxl", layouts.peft),
    Case("sdxl", layouts.kohya_sgm, SGM, alphas=False),
    Case("sd3", layouts.peft, r"^transformer|^text_encoder(_2)?\."),
    Case("flux", layouts.peft, r"^transformer|^text_encoder\."),
    Case("flux", layouts.xlabs, XLABS, alphas=False, shared=True),
    Case("z-image", layouts.peft, DENOISER),
    Case("z-image", layouts.ai_toolkit, DENOISER),
    Case("z-image", layouts.musubi, BLOCKS),
    Case("z-image", layouts.kohya_z_image, ATTENDING, shared=True),
    Case("qwen-image", layouts.peft, DENOISER),
    Case("qwen-image", layouts.ai_toolkit, DENOISER),
    Case("qwen-image", layouts.lightning, DENOISER),
    Case("qwen-image", layouts.musubi, DENOISER),
    Case("flux2-klein", layouts.peft, r"^transformer"),
    Case("chroma", layouts.peft, r"^transformer"),
    Case("sana", layouts.peft, r"^transformer\.(?!.*conv_depth)"),
]


@pytest.mark.parametrize("case", _THEIRS, ids=str)
def test_what_diffusers_can_merge_is_merged_the_same(case: Case, tmp_path: Path) -> None:
    ours, theirs = _base(case.family), _base(case.family).pipe
    path = case.writer(layouts.known(theirs, case.wanted, case.alphas, case.shared), tmp_path / "made.safetensors")
    both = arms.apply(ours, [_read(path, -0.6)])
    with quiet():
        theirs.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name="made")
        theirs.set_adapters(["made"], [-0.6])
        theirs.fuse_lora(components=theirs._lora_loadable_modules, adapter_names=["made"])
        theirs.unload_lora_weights()
    wanted = _state(theirs)
    with both.held("adapted") as family:
        merged = _state(family.pipe)
    for name, value in merged.items():
        assert torch.allclose(value, wanted[name], atol=EXACT, rtol=EXACT), name


def _files(family: str) -> list[Writer]:
    """The family's different writers that hold every layer and alphas."""
    whole = [case for case in CASES if case.family == family and case.wanted == ALL and case.alphas]
    return list(dict.fromkeys(case.writer for case in whole))


@pytest.mark.parametrize("family", _LAYOUTS)
def test_several_adapters_add_up_each_by_its_weight(family: str, tmp_path: Path) -> None:
    base = _base(family)
    before = _state(base.pipe)
    writers = _files(family)
    wanted: dict[str, torch.Tensor] = {}
    read = []
    for place, (weight, layers) in enumerate([(0.5, ALL), (-1.25, DENOISER), (0.0, ALL), (1.0, "^text")]):
        parts = layouts.known(base.pipe, layers, seed=place)
        read.append(_read(writers[place % len(writers)](parts, tmp_path / f"{place}.safetensors"), weight))
        for layer, change in _changes(parts, weight).items():
            wanted[layer] = wanted.get(layer, torch.zeros(())) + change
    both = arms.apply(base, read)
    assert _wrong(before, both, wanted) == []
    assert _wrong(before, both, {}, "base") == []


@pytest.mark.parametrize("weight", [-1.0, 0.0])
@pytest.mark.parametrize("family", _LAYOUTS)
def test_an_adapter_of_text_encoders_alone(family: str, weight: float, tmp_path: Path) -> None:
    for writer in _files(family):
        base = _base(family)
        before = _state(base.pipe)
        parts = layouts.known(base.pipe, "^text")
        both = arms.apply(base, [_read(writer(parts, tmp_path / f"{writer.__name__}.safetensors"), weight)])
        assert both.denoiser_layers() == []
        assert _wrong(before, both, _changes(parts, weight)) == []


def _with(path: Path, more: dict[str, torch.Tensor]) -> lora.Adapter:
    """The file with more tensors in it."""
    with safe_open(path, "pt") as stream:
        metadata = stream.metadata()
    save_file(load_file(path) | more, path, metadata)
    return _read(path)


@pytest.mark.parametrize(
    "key",
    ["{0}.alien.weight", "alien", "lora_te1_alien.alpha", "{0}.alien.lora_A.weight", "{0}.alien.lora_magnitude_vector"],
)
@pytest.mark.parametrize("family", _LAYOUTS)
def test_one_unknown_key_is_an_error_that_names_it(family: str, key: str, tmp_path: Path) -> None:
    pipe = _made(family)
    for writer in _files(family):
        path = writer(layouts.known(pipe, ALL), tmp_path / f"{writer.__name__}.safetensors")
        with pytest.raises(UserError, match=r"alien"):
            lora.fit(pipe, _with(path, {key.format(_denoiser(pipe)): torch.ones(2, 2)}))


def _denoiser(pipe: Any) -> str:
    return next(name for name in ("unet", "transformer") if name in pipe.components)


@pytest.mark.parametrize("family", _LAYOUTS)
def test_a_layer_that_the_base_lacks_is_an_error_that_names_it(family: str, tmp_path: Path) -> None:
    pipe = _made(family)
    names = ["{0}.alien.lora_A.weight", "lora_unet_alien.lora_down.weight", "lora_te2_alien.lora_down.weight"]
    for place, name in enumerate(names):
        path = layouts.peft_with_alphas(layouts.known(pipe, ALL), tmp_path / f"{place}.safetensors")
        down = name.format(_denoiser(pipe))
        up = down.replace("lora_A", "lora_B").replace("lora_down", "lora_up")
        with pytest.raises(UserError, match=r"missing: \w+\.alien"):
            lora.fit(pipe, _with(path, {down: torch.ones(2, 4), up: torch.ones(4, 2)}))


@pytest.mark.parametrize("family", _LAYOUTS)
def test_a_layer_that_is_held_twice_is_an_error(family: str, tmp_path: Path) -> None:
    """Two layouts of one layer: diffusers takes one of them, or the sum would be merged."""
    pipe = _made(family)
    first, second = _files(family)[-1], layouts.peft_wrapped
    parts = layouts.known(pipe, ALL)
    path = first(parts, tmp_path / "first.safetensors")
    inner = r"(mlp\.fc1|mlp\.gate_proj|DenseReluDense\.wi_0)$"  # of CLIP, Qwen or Gemma, and T5
    one = {name: part for name, part in parts.items() if re.search(inner, name)}
    more = load_file(second(one, tmp_path / "second.safetensors"))
    with pytest.raises(UserError, match=rf"holds \S+{inner[:-1]} twice"):
        lora.fit(pipe, _with(path, more))


def test_factors_in_two_spellings_are_an_error(tmp_path: Path) -> None:
    pipe = _made("sd1")
    path = layouts.peft(layouts.known(pipe, ALL), tmp_path / "made.safetensors")
    tensors = {key.replace("lora_A", "lora_down"): value for key, value in load_file(path).items() if "conv_in" in key}
    with pytest.raises(UserError, match="conv_in"):
        lora.fit(pipe, _with(path, tensors))


@pytest.mark.parametrize(("key", "kind"), REFUSED)
@pytest.mark.parametrize("family", _LAYOUTS)
def test_another_kind_of_adapter_is_refused_by_name(family: str, key: str, kind: str, tmp_path: Path) -> None:
    pipe = _made(family)
    path = layouts.peft(layouts.known(pipe, "proj_out|fc1"), tmp_path / "made.safetensors")
    with pytest.raises(UserError, match=kind):
        lora.fit(pipe, _with(path, {key.format(_denoiser(pipe)): torch.ones(2)}))


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"use_dora": True}], ids=str)
@pytest.mark.parametrize("family", ["sd1", "sd3", "flux"])
def test_a_folder_that_peft_saved_is_merged_as_peft_merges_it(
    family: str, settings: dict[str, bool], tmp_path: Path
) -> None:
    base = _base(family)
    name = _denoiser(base.pipe)
    torch.manual_seed(3)
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["to_q", "to_out.0", "conv1", "net.2", "proj_out"],
        rank_pattern={"to_out.0": 2, r"transformer_blocks\.0\.attn1?\.to_q": 3},
        alpha_pattern={"to_out.0": 5, r"^(transformer_blocks|down_blocks)\..*net\.2": 9},
        init_lora_weights=False,
        **settings,
    )
    model = get_peft_model(copy.deepcopy(base.pipe.components[name]), config)
    for key, value in model.named_parameters():
        if "magnitude" in key:  # as training moves it; at first it rescales nothing
            value.data = value.data * torch.linspace(0.8, 1.2, value.numel()).view(value.shape)
    model.save_pretrained(tmp_path)
    merged = model.merge_and_unload().state_dict()
    both = arms.apply(base, [_read(tmp_path)])
    assert len(both.layers) > 3
    with both.held("adapted"):
        after = {key: value.clone() for key, value in base.pipe.components[name].state_dict().items()}
    assert all(torch.allclose(after[key], merged[key], atol=1e-5, rtol=0) for key in after)


def test_the_folders_config_is_part_of_the_digest(tmp_path: Path) -> None:
    folder = layouts.peft_folder(layouts.known(_made("sd1"), DENOISER), tmp_path / "made")
    first = _read(folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 99}))
    assert _read(folder).digest != first.digest
    assert _read(folder / "adapter_model.safetensors").digest == _read(folder).digest


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_names_that_may_mean_either_of_two_text_encoders_are_refused(family: str, tmp_path: Path) -> None:
    pipe = _made(family)
    folder = layouts.peft_folder(layouts.known(pipe, r"^text_encoder_2\."), tmp_path / "made")
    with pytest.raises(UserError, match=r"may be text_encoder\..* or text_encoder_2\."):
        lora.fit(pipe, _read(folder))


@pytest.mark.parametrize("started", ["pissa", "olora", "corda", "lora_ga"])
def test_an_adapter_that_began_by_changing_the_base_is_refused(started: str, tmp_path: Path) -> None:
    folder = layouts.peft_folder(layouts.known(_made("sd1"), DENOISER), tmp_path / "made")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": started}))
    with pytest.raises(UserError, match=f"began as {started}"):
        lora.fit(_made("sd1"), _read(folder))


def test_a_fused_layer_with_too_few_outputs_is_an_error(tmp_path: Path) -> None:
    path = layouts.kohya_flux(layouts.known(_made("flux"), ALL), tmp_path / "made.safetensors")
    more = {f"lora_unet_single_blocks_7_linear1.lora_{side}.weight": torch.ones(64, 64) for side in ("down", "up")}
    with pytest.raises(UserError, match="single_blocks_7_linear1 has 64 outputs"):
        lora.fit(_made("flux"), _with(path, more))


@pytest.mark.parametrize("family", ["sd3", "sd3.5-medium"])
def test_the_original_names_of_sd3_are_those_of_its_checkpoints(family: str, tmp_path: Path) -> None:
    """The oracle is diffusers' conversion of a whole checkpoint of the original code."""
    pipe = copy.deepcopy(_made(family))
    before = _state(pipe)
    parts = layouts.known(pipe, "^transformer")
    checkpoint = {"pos_embed": torch.zeros(1)}
    for name, part in layouts.original(parts, layouts.SAI).items():
        layer = name.removeprefix("transformer.")
        checkpoint |= {f"{layer}.weight": part.change(), f"{layer}.bias": torch.zeros(len(part.up))}
        if layer.endswith("qkv") and any("attn2" in known for known in parts):
            checkpoint |= {f"{layer.removesuffix('qkv')}ln_{side}.weight": torch.zeros(1) for side in "qk"}
    converted = convert_sd3_transformer_checkpoint_to_diffusers(checkpoint)
    for name, part in parts.items():
        assert torch.allclose(converted[f"{name.removeprefix('transformer.')}.weight"], part.change(), atol=1e-6), name
    path = layouts.kohya_sd3(parts, tmp_path / "made.safetensors")
    both = arms.apply(_loaded(pipe), [_read(path)])
    assert _wrong(before, both, _changes(parts)) == []


def test_the_original_names_of_z_image_are_those_of_its_checkpoints() -> None:
    parts = layouts.known(_made("z-image"), DENOISER)
    named = {
        f"{name.removeprefix('transformer.')}.weight": part.change()
        for name, part in layouts.original(parts, layouts.COMFY_Z_IMAGE).items()
    }
    converted = convert_z_image_transformer_checkpoint_to_diffusers(named)
    for name, part in parts.items():
        assert torch.allclose(converted[f"{name.removeprefix('transformer.')}.weight"], part.change(), atol=1e-6), name


@pytest.fixture(scope="module")
def medium() -> Any:
    """Stable Diffusion 3.5 medium's transformer in its own size, without values."""
    with init_empty_weights(include_buffers=True):
        transformer = SD3Transformer2DModel(
            sample_size=128,
            num_layers=24,
            attention_head_dim=64,
            num_attention_heads=24,
            joint_attention_dim=4096,
            caption_projection_dim=1536,
            pooled_projection_dim=2048,
            out_channels=16,
            pos_embed_max_size=384,
            dual_attention_layers=tuple(range(13)),
            qk_norm="rms_norm",
        )
    return SimpleNamespace(components={"transformer": transformer}, transformer=transformer)


@pytest.mark.parametrize("writer", [layouts.peft_with_alphas, layouts.kohya_sd3, layouts.comfy, layouts.one_trainer])
def test_every_layer_of_sd35_medium_is_known_in_every_layout(medium: Any, writer: Writer, tmp_path: Path) -> None:
    parts = layouts.known(medium, ALL, shared=True)
    assert len([name for name in parts if ".attn2." in name]) == 4 * 13
    fit = lora.fit(medium, _read(writer(parts, tmp_path / "made.safetensors")))
    assert set(fit.factors) == set(parts) == set(layouts.weights(medium))
    for name in (
        "transformer.transformer_blocks.12.attn2.to_k",
        "transformer.transformer_blocks.23.norm1_context.linear",
    ):
        assert torch.allclose(fit.factors[name].change(), parts[name].change().float(), atol=1e-5), name


@pytest.mark.parametrize(
    ("trained", "given"),
    [
        ("sd1", "flux"),
        ("flux", "sd3"),
        ("sd3", "sdxl"),
        ("sdxl", "sd1"),
        ("z-image", "flux"),
        ("flux", "z-image"),
        ("qwen-image", "flux"),
    ],
)
def test_an_adapter_of_another_family_is_an_error(trained: str, given: str, tmp_path: Path) -> None:
    for writer in _files(trained):
        path = writer(layouts.known(_made(trained), DENOISER), tmp_path / f"{writer.__name__}.safetensors")
        with pytest.raises(UserError, match=r"exist in this base|do not fit"):
            lora.fit(_made(given), _read(path))


def test_the_original_names_of_flux_are_split_as_diffusers_splits_them() -> None:
    """diffusers splits at the real model's widths alone, so the factors here have those, with rank 2."""
    torch.manual_seed(0)
    rows = {"qkv": 3 * 3072, "linear1": 21504, "adaLN_modulation_1": 2 * 3072}
    tensors = {}
    for dotted in layouts.BFL:
        name = "lora_unet_" + dotted.replace("#", "0").replace(".", "_")
        outputs = next((count for end, count in rows.items() if name.endswith(end)), 3072)
        tensors |= {f"{name}.lora_down.weight": torch.randn(2, 3072), f"{name}.alpha": torch.tensor(3.0)}
        tensors |= {f"{name}.lora_up.weight": torch.randn(outputs, 2)}
    theirs = FluxLoraLoaderMixin.lora_state_dict(dict(tensors))
    found, shifts, strange = layout.entries(tensors, {})
    assert strange == []
    assert shifts == {}
    ours = {k: v for name, part in found.items() for k, v in layout.placed(name, part, layout.Names()).items()}
    assert len(ours) == len(theirs) // 2
    for name, part in ours.items():
        layer = name.removeprefix("transformer.")
        key = f"{'transformer.' if f'{name}.lora_A.weight' in theirs else ''}{layer}"
        # diffusers leaves the scale out in the last layers
        scale = 1.0 if layer in {"proj_out", "norm_out.linear"} else part.scale
        assert torch.equal(theirs[f"{key}.lora_B.weight"], part.up), name
        assert torch.allclose(theirs[f"{key}.lora_A.weight"], scale * part.down), name


@pytest.mark.parametrize("writer", [layouts.ai_toolkit_flux2, layouts.kohya_flux])
def test_the_original_names_of_flux2_are_those_that_diffusers_converts(writer: Writer, tmp_path: Path) -> None:
    pipe = _made("flux2-klein")
    # diffusers knows fewer layers of kohya's, and leaves the order of scale and shift in the last modulation
    wanted = r"^transformer\.(?!norm_out|.*_modulation)"
    path = writer(layouts.known(pipe, wanted, alphas=False, shared=True), tmp_path / "made.safetensors")
    tensors = load_file(path)
    theirs = Flux2LoraLoaderMixin.lora_state_dict(dict(tensors))
    names = lora.names_of(pipe)
    entries, shifts, strange = layout.entries(tensors, {})
    assert not shifts
    assert strange == []
    ours = {k: v for name, part in entries.items() for k, v in layout.placed(name, part, names).items()}
    assert len(ours) == len(theirs) // 2 > 20
    for name, part in ours.items():
        assert torch.equal(theirs[f"{name}.lora_B.weight"], part.up), name
        assert torch.equal(theirs[f"{name}.lora_A.weight"], part.down), name


@pytest.mark.parametrize("based", [True, False], ids=["base", "no-base"])
@pytest.mark.parametrize("family", _LAYOUTS)
def test_inspect_reads_ranks_and_scales_of_every_layout(
    family: str, based: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspect, "_COUNTS", (None,))  # every weight, so that relative sizes are exact
    pipe = _made(family)
    folder = str(families.saved(family, tmp_path / "base")) if based else None
    for writer in _files(family):
        parts = layouts.known(pipe, DENOISER, shared=_denoiser(pipe) == "transformer")
        path = writer(parts, tmp_path / f"{writer.__name__}.safetensors")
        found = inspect.inspect(str(path), folder, inspect.Question(1.0, [], ORDERS, recipe.find("general")))
        seen = {layer.name.replace(".", "_"): layer for layer in found.layers}
        wanted = {name.replace(".", "_"): part for name, part in parts.items()}
        assert set(seen) == set(wanted)
        # a fused layer has one scale, in which its writer put all of theirs
        fused = writer in {layouts.kohya_flux, layouts.comfy, layouts.kohya_sd3}
        assert all(fused or layer.scale == pytest.approx(wanted[name].scale) for name, layer in seen.items())
        assert all(fused or layer.rank == wanted[name].rank for name, layer in seen.items())
        assert found.unmatched == []
        weights = layouts.weights(pipe)
        for name, part in parts.items() if based else ():
            relative = float(part.change().norm() / weights[name].double().norm())
            assert seen[name.replace(".", "_")].relative == pytest.approx(relative, rel=1e-4), name


@pytest.mark.parametrize("family", ["z-image", "qwen-image"])
def test_flat_names_of_a_transformer_are_known_without_a_base(family: str, tmp_path: Path) -> None:
    parts = layouts.known(_made(family), BLOCKS)
    path = layouts.musubi(parts, tmp_path / "made.safetensors")
    question = inspect.Question(1.0, [], ORDERS, recipe.find("general"))
    seen = {layer.name for layer in inspect.inspect(str(path), None, question).layers}
    assert seen == {f"transformer.{name.removeprefix('transformer.').replace('.', '_')}" for name in parts}


def test_names_of_several_kinds_are_those_of_flux_without_a_base() -> None:
    factors = layout.Factors(torch.ones(1, 4), torch.ones(4, 1), 1.0)
    wanted = {"img_in": "x_embedder", "lycoris_x_embedder": "x_embedder", "final_layer.linear": "proj_out"}
    for name, layer in wanted.items():
        assert list(layout.placed(name, factors, layout.Names())) == [f"transformer.{layer}"]


PAGE = PACKAGE.parent / "docs" / "adapters.md"
MARKED = re.compile(r"(<!-- layouts:begin -->\n)(.*?)(\n<!-- layouts:end -->)", re.DOTALL)


def _table() -> str:
    """Layout x family: what ``test_a_file_is_applied_exactly_and_to_nothing_else`` and the refusals above hold."""
    exact = {(case.writer, case.family) for case in CASES}
    writers = dict.fromkeys(case.writer for case in CASES)
    rows = [["layout", *_LAYOUTS], ["---"] * (len(_LAYOUTS) + 1)]
    for writer in writers:
        title = (writer.__doc__ or "").partition("\n")[0].rstrip(".").replace("``", "`")
        rows.append([title, *("exact" if (writer, family) in exact else "-" for family in _LAYOUTS)])
    kinds = dict.fromkeys(kind for mark, kind in OTHER_KINDS.items() if any(re.search(mark, key) for key, _ in REFUSED))
    rows += [[kind, *["refused by name"] * len(_LAYOUTS)] for kind in kinds]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def test_every_kind_that_is_refused_by_name_is_tried() -> None:
    untried = {mark for mark in OTHER_KINDS if not any(re.search(mark, key) for key, _ in REFUSED)}
    assert untried <= {"modules_to_save"}


def test_the_table_of_layouts_is_what_these_tests_hold() -> None:
    text = PAGE.read_text("utf-8")
    if os.environ.get("QCHECK_WRITE_DOCS"):
        PAGE.write_text(MARKED.sub(lambda found: f"{found[1]}{_table()}{found[3]}", text), "utf-8")
    else:
        found = MARKED.search(text)
        assert found is not None
        assert found[2] == _table()
