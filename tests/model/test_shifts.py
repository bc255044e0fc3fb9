"""Additions to biases and norms, which nothing quantizes, are in the adapted arm alone, in torch and in every file."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lycoris import create_lycoris
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file

from qcheck.core.cache import Cache
from qcheck.core.errors import UserError
from qcheck.demo import library
from qcheck.model import arms, load, lora
from qcheck.model.arms import Arms
from qcheck.model.lora import layout, place, trainable
from qcheck.quantize import contents, fake, plan
from qcheck.quantize.artifact import Exporter
from qcheck.runtime.ort_runner import OnnxRunner
from qcheck.runtime.torch_runner import TorchRunner
from qcheck.spec import recipe, scheme
from qcheck.spec.arm import Side
from qcheck.spec.use import Use
from qcheck.tasks import inspect
from tests import families

Tensors = dict[str, torch.Tensor]
NORM, LAYER = "down_blocks.0.resnets.0.norm1", "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
NAME = "lora_unet_" + LAYER.replace(".", "_")


@pytest.fixture
def base() -> load.Base:
    return load.load(str(library.PIPELINE))


def _saved(tensors: Tensors, path: Path, weight: float = 1.0) -> lora.Adapter:
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    return lora.read(Use(source=str(path), weight=weight))


def _randomized(tensors: Tensors) -> Tensors:
    draws = torch.Generator().manual_seed(5)
    return {
        name: value if name.endswith("alpha") else 0.1 * torch.randn(value.shape, generator=draws)
        for name, value in tensors.items()
    }


def _state(both: Arms, side: Side) -> Tensors:
    with both.held(side) as family:
        return {name: value.clone() for name, value in family.module.state_dict().items()}


def _agree(ours: Tensors, theirs: Tensors) -> None:
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        assert torch.allclose(ours[name], value, atol=2e-6 * float(value.abs().max())), name


@pytest.mark.parametrize("weight", [1.0, -0.5])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_biases_and_norms_are_merged_as_lycoris_merges_them(
    base: load.Base, kind: str, weight: float, tmp_path: Path
) -> None:
    before, oracle = copy.deepcopy(base.denoiser.state_dict()), copy.deepcopy(base.denoiser)
    network = create_lycoris(oracle, 1.0, linear_dim=2, linear_alpha=1, algo=kind, train_norm=True)
    network.apply_to()
    tensors = _randomized(network.state_dict())
    network.load_state_dict(dict(tensors))
    network.restore()
    network.merge_to(weight)
    assert any(name.endswith(".w_norm") for name in tensors)
    assert (kind == "full") == any(name.endswith(".diff_b") for name in tensors)
    both = arms.apply(base, [_saved(tensors, tmp_path / "lycoris.safetensors", weight)])
    theirs = oracle.state_dict()
    _agree(_state(both, "adapted"), theirs)
    _agree(_state(both, "base"), before)
    _agree(dict(both.state("adapted").items()), theirs)
    assert not both.graphs_alike
    assert both.encode_alike


def test_biases_of_peft_are_scaled_as_peft_scales_them(base: load.Base, tmp_path: Path) -> None:
    oracle = copy.deepcopy(base.denoiser)
    config = LoraConfig(
        r=2, lora_alpha=6, target_modules=["to_out.0", "conv1"], lora_bias=True, init_lora_weights=False
    )
    inject_adapter_in_model(config, oracle)
    inner = {name.replace(".default", ""): value for name, value in oracle.state_dict().items() if ".lora_" in name}
    tensors = _randomized(inner)
    assert sum(name.endswith("lora_B.bias") for name in tensors) == len(tensors) / 3
    folder = tmp_path / "peft"
    folder.mkdir()
    config.save_pretrained(folder)
    named = {f"base_model.model.{name}": value for name, value in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors")
    both = arms.apply(base, [lora.read(Use(source=str(folder), weight=0.5))])
    changed = 0
    for name, module in oracle.named_modules():
        if isinstance(module, LoraLayer):
            expected = module.get_base_layer().bias + 0.5 * 3 * tensors[f"{name}.lora_B.bias"]
            assert torch.allclose(both.shifted["adapted"][f"unet.{name}.bias"], expected, atol=1e-6)
            changed += 1
    assert changed == len(both.shifted["adapted"]) > 0


def _mixed(base: load.Base) -> Tensors:
    """A LoRA of one layer with a difference of its bias, and a norm's, loud enough to be heard."""
    module: Any = base.denoiser.get_submodule(LAYER)
    norm: Any = base.denoiser.get_submodule(NORM)
    flat = NORM.replace(".", "_")
    made = {
        f"{NAME}.lora_down.weight": torch.empty(2, module.in_features),
        f"{NAME}.lora_up.weight": torch.empty(module.out_features, 2),
        f"{NAME}.diff_b": module.bias,
        f"lora_unet_{flat}.w_norm": norm.weight,
        f"lora_unet_{flat}.b_norm": norm.bias,
    }
    return {name: 5 * value for name, value in _randomized(made).items()}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Arms, Exporter, dict[str, Any]]:
    folder, loaded = tmp_path_factory.mktemp("mixed"), load.load(str(library.PIPELINE))
    both = arms.apply(loaded, [_saved(_mixed(loaded), folder / "mixed.safetensors")])
    draws = torch.Generator().manual_seed(3)
    inputs = {
        "sample": torch.randn(2, 4, 16, 16, generator=draws).numpy(),
        "timestep": torch.tensor([500.0]).numpy(),
        "encoder_hidden_states": torch.randn(2, 16, 128, generator=draws).numpy(),
    }
    return both, Exporter(both, Cache(folder), inputs), inputs


def _distance(path: Path, module: torch.nn.Module, both: Arms, inputs: dict[str, Any]) -> float:
    wanted = torch.from_numpy(TorchRunner(both.base.family.entry(module))(inputs))
    found = torch.from_numpy(OnnxRunner(path, 1)(inputs))
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("side", ["adapted", pytest.param("base", marks=pytest.mark.slow)])
def test_the_files_of_each_arm_have_its_biases_and_norms(
    mixed: tuple[Arms, Exporter, dict[str, Any]], side: Side, tmp_path: Path
) -> None:
    both, exporter, inputs = mixed
    chosen, kept = scheme.find("int4-g128"), recipe.find("emoji")
    layers = plan.chosen_layers(both.base.denoiser, chosen, kept)
    ranges: Any = {origin: dict.fromkeys(layers, plan.Input(1.0)) for origin in ("base", "adapted", "shared")}
    every = {
        "base": contents.of_base(both, chosen, kept, ranges),
        "adapted": contents.of_adapted(both, chosen, kept, "merge-quantize", ranges),
    }
    content = every[side]
    assert {name: one.side for name, one in every.items()} == {"base": "base", "adapted": "adapted"}
    twin = exporter.twin(content, chosen, tmp_path / "twin.onnx", {})
    full = exporter.full(side, "float32")
    with both.held(side) as family:
        assert _distance(full, family.module, both, inputs) < 1e-5
        with fake.simulated(family.module, content.plan, content.branches, content.state) as simulated:
            assert _distance(twin, simulated, both, inputs) < 1e-4
    with both.held("base" if side == "adapted" else "adapted") as family:
        assert _distance(full, family.module, both, inputs) > 0.01


def test_norms_alone_are_an_adapter_too(base: load.Base, tmp_path: Path) -> None:
    tensors = {name: value for name, value in _mixed(base).items() if "norm" in name}
    both = arms.apply(base, [_saved(tensors, tmp_path / "norms.safetensors")])
    assert both.layers == ()
    assert set(both.shifted["adapted"]) == {f"unet.{NORM}.weight", f"unet.{NORM}.bias"}
    asked = inspect.Question(1.0, [scheme.find("int8")], ["quantize-merge"], recipe.find("general"))
    found = inspect.inspect(str(tmp_path / "norms.safetensors"), str(library.PIPELINE), asked)
    assert found.shifted == sorted(both.shifted["adapted"])
    assert found.forecasts[0].fate == "arrives"
    assert "stays in float" in found.forecasts[0].reason
    zeros = {name: torch.zeros_like(value) for name, value in tensors.items()}
    adapter = _saved(zeros, tmp_path / "zeros.safetensors")
    with pytest.raises(UserError, match="saved before it was trained"):
        arms.apply(base, [adapter])
    assert inspect.inspect(str(adapter.path), str(library.PIPELINE), asked).silent is not None


def test_what_biases_and_norms_cannot_do_is_refused_by_name(base: load.Base, tmp_path: Path) -> None:
    path, tensors = tmp_path / "mixed.safetensors", _mixed(base)
    adapter = _saved(tensors, path)
    with pytest.raises(UserError, match="changes biases or norms too"):
        trainable.find(base.pipe, adapter)
    with pytest.raises(UserError, match="both arms changes biases or norms"):
        arms.apply(base, [lora.read(Use(source=str(library.ADAPTERS / "flat.safetensors"), weight=1.0))], [adapter])
    without = {NAME.replace("to_out_0", "to_q") + ".diff_b": torch.ones(128)}
    for more, wrong in (
        (without, "to_q.bias, and the base has none there"),
        ({f"{NAME}.diff_b": torch.ones(3)}, r"one of shape \[128\]"),
        ({f"{NAME}.b_norm": torch.ones(128)}, "an addition to its bias twice"),
        ({"lora_unet_no_layer.w_norm": torch.ones(3)}, "missing: unet.no_layer"),
        ({f"{NAME}.w_norm": torch.ones(3, 2)}, "no LoRA factors"),
    ):
        with pytest.raises(UserError, match=wrong):
            arms.apply(base, [_saved(tensors | more, path)])


def test_biases_of_a_fused_layer_are_split_with_its_factors() -> None:
    pipe = families.FAMILIES["flux"]()
    names, body = lora.names_of(pipe), "lora_unet_double_blocks_0_img_attn_qkv"
    width = pipe.transformer.get_submodule("transformer_blocks.0.attn.to_q").in_features
    values = torch.arange(3.0 * width)
    factors = {f"{body}.lora_down.weight": torch.ones(2, width), f"{body}.lora_up.weight": torch.ones(3 * width, 2)}
    entries = layout.entries(factors | {f"{body}.diff_b": values}, {})
    assert entries.others == []
    shifts = place._shifts(names, entries)
    for start, part in enumerate(("to_q", "to_k", "to_v")):
        found = shifts[f"transformer.transformer_blocks.0.attn.{part}.bias"]
        assert torch.equal(found, values[start * width : (start + 1) * width])
    with pytest.raises(layout.LayoutError, match="how long each is"):
        place._shifts(names, layout.entries({f"{body}.diff_b": values}, {}))


def test_the_original_unet_s_norms_are_found(tmp_path: Path) -> None:
    pipe = families.FAMILIES["sdxl"]()
    norm = pipe.unet.get_submodule("down_blocks.0.resnets.0.norm1")
    tensors = {"lora_unet_input_blocks_1_0_in_layers_0.w_norm": torch.ones(len(norm.weight))}
    adapter = _saved(tensors, tmp_path / "norm.safetensors")
    assert set(lora.fit(pipe, adapter).shifts) == {"unet.down_blocks.0.resnets.0.norm1.weight"}
