"""Bad adapters and bases: one clear error each, and good ones applied exactly."""

import copy
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from qcheck.core.errors import UserError
from qcheck.demo import library
from qcheck.model import arms, load, lora
from qcheck.model.arms import Arms
from qcheck.model.family import Family
from qcheck.model.lora import place
from qcheck.model.lora.layout import Names
from qcheck.result.inspection import Inspection
from qcheck.spec import recipe, scheme
from qcheck.spec.arm import SIDES, Side
from qcheck.spec.order import MERGES, Order
from qcheck.spec.use import Use
from qcheck.tasks import inspect

FLAT = library.ADAPTERS / "flat.safetensors"


@pytest.fixture(scope="module")
def loaded() -> load.Base:
    return load.load(str(library.PIPELINE))


def _saved(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> lora.Adapter:
    path = tmp_path / "made.safetensors"
    save_file({k: v.contiguous() for k, v in tensors.items()}, path)
    return lora.read(Use(source=str(path), weight=1.0))


def test_a_missing_file_is_an_error() -> None:
    with pytest.raises(UserError, match="does not exist"):
        lora.read(Use(source="no/such.safetensors", weight=1.0))


@pytest.mark.parametrize("ending", ["bin", "pt", "ckpt", "pth"])
def test_a_pickle_is_refused_and_never_opened(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"adapter.{ending}"
    path.write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(UserError, match="pickle"):
        lora.read(Use(source=str(path), weight=1.0))


@pytest.mark.parametrize("content", ["cut", "junk", "empty"])
def test_a_damaged_file_is_an_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "adapter.safetensors"
    whole = FLAT.read_bytes()
    path.write_bytes({"cut": whole[: len(whole) // 2], "junk": b"\x00" * 4096, "empty": b""}[content])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        lora.read(Use(source=str(path), weight=1.0))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_an_error(tmp_path: Path, value: float) -> None:
    tensors = load_file(FLAT)
    name = sorted(tensors)[5]
    tensors[name] = tensors[name].clone()
    tensors[name][0, 0] = value
    with pytest.raises(UserError, match=f"NaN or infinity in 1 tensors, first {name}"):
        _saved(tmp_path, tensors)


def test_keys_that_match_nothing_are_an_error(tmp_path: Path, loaded: load.Base) -> None:
    tensors = {k.replace("unet.", "unet.inner."): v for k, v in load_file(FLAT).items()}
    with pytest.raises(UserError, match=r"none of the .* layers"):
        lora.fit(loaded.pipe, _saved(tmp_path, tensors))


def test_keys_that_match_partly_are_an_error_that_names_them(tmp_path: Path, loaded: load.Base) -> None:
    tensors = {k.replace("mid_block", "no_block"): v for k, v in load_file(FLAT).items()}
    with pytest.raises(UserError, match=r"only .*no_block"):
        lora.fit(loaded.pipe, _saved(tmp_path, tensors))


def test_a_shape_that_does_not_fit_is_an_error(tmp_path: Path, loaded: load.Base) -> None:
    tensors = load_file(FLAT)
    name = next(k for k in sorted(tensors) if "lora_A" in k)
    tensors[name] = torch.zeros(8, 77)
    with pytest.raises(UserError, match="do not fit the weight"):
        lora.fit(loaded.pipe, _saved(tmp_path, tensors))


def test_a_file_of_no_lora_at_all_is_an_error(tmp_path: Path, loaded: load.Base) -> None:
    with pytest.raises(UserError, match="LoRA"):
        lora.fit(loaded.pipe, _saved(tmp_path, {"unet.conv_in.weight": torch.zeros(32, 4, 3, 3)}))


def test_a_file_of_two_layouts_is_applied_whole(tmp_path: Path) -> None:
    """diffusers loads one of them and says nothing of the other."""
    tensors = {
        k.replace("lora_A", "lora.down").replace("lora_B", "lora.up") if ".to_q." in k else k: v
        for k, v in load_file(FLAT).items()
    }
    mixed, plain = (
        arms.apply(load.load(str(library.PIPELINE)), [_saved(tmp_path, content)])
        for content in (tensors, load_file(FLAT))
    )
    assert mixed.layers == plain.layers
    for layer in plain.layers:
        assert torch.equal(_change(mixed, layer), _change(plain, layer)), layer


def test_layers_whose_factors_are_zero_are_idle_and_an_adapter_of_such_layers_alone_is_an_error(
    tmp_path: Path,
) -> None:
    tensors, base = load_file(FLAT), load.load(str(library.PIPELINE))
    name = next(k for k in sorted(tensors) if "lora_B" in k)
    tensors[name] = torch.zeros_like(tensors[name])
    both, layer = arms.apply(base, [_saved(tmp_path, tensors)]), name.removesuffix(".lora_B.weight")
    assert both.idle == {layer}
    assert layer in both.layers
    assert layer.removeprefix("unet.") not in both.active_layers()
    assert len(both.active_layers()) == len(both.layers) - 1
    untrained = {key: torch.zeros_like(value) if "lora_B" in key else value for key, value in tensors.items()}
    with pytest.raises(UserError, match=r"none of the .* layers of adapter .* changed when it was merged"):
        arms.apply(base, [_saved(tmp_path, untrained)])


def _kohya(alpha: float | None) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for key, value in load_file(FLAT).items():
        module, side = key.split(".lora_")
        name = "lora_unet_" + module.removeprefix("unet.").replace(".", "_")
        found[f"{name}.lora_{'down' if side.startswith('A') else 'up'}.weight"] = value
        if alpha is not None:
            found[f"{name}.alpha"] = torch.tensor(alpha)
    return found


def _old_diffusers() -> dict[str, torch.Tensor]:
    return {k.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): v for k, v in load_file(FLAT).items()}


@pytest.mark.parametrize(
    ("tensors", "scale"),
    [(_kohya(4.0), 0.5), (_kohya(16.0), 2.0), (_kohya(None), 1.0), (_old_diffusers(), 1.0)],
    ids=["kohya-alpha-4", "kohya-alpha-16", "kohya-no-alpha", "old-diffusers"],
)
def test_other_layouts_are_applied_exactly(tmp_path: Path, tensors: dict[str, torch.Tensor], scale: float) -> None:
    both = arms.apply(load.load(str(library.PIPELINE)), [_saved(tmp_path, tensors)])
    factors = {k: v.float() for k, v in load_file(FLAT).items()}
    assert len(both.layers) == len(factors) // 2
    for layer in both.layers:
        delta = factors[f"{layer}.lora_B.weight"].flatten(1) @ factors[f"{layer}.lora_A.weight"].flatten(1)
        before = both.changed["base"][layer].whole()
        assert torch.allclose(
            both.changed["adapted"][layer].whole(), before + scale * delta.view(before.shape), atol=1e-5
        )


@pytest.mark.parametrize("weight", [1.0, 0.5, -1.0])
def test_the_merged_weights_are_the_base_plus_the_scaled_product(weight: float) -> None:
    both = arms.apply(load.load(str(library.PIPELINE)), [lora.read(Use(source=str(FLAT), weight=weight))])
    tensors = {k: v.float() for k, v in load_file(FLAT).items()}
    stored = json.loads(both.adapters[0].metadata["lora_adapter_metadata"])
    scale = stored["unet.lora_alpha"] / stored["unet.r"]
    for layer in both.layers:
        up, down = tensors[f"{layer}.lora_B.weight"], tensors[f"{layer}.lora_A.weight"]
        delta = (up.flatten(1) @ down.flatten(1)).view(both.changed["base"][layer].whole().shape)
        expected = both.changed["base"][layer].whole() + weight * scale * delta
        assert torch.allclose(both.changed["adapted"][layer].whole(), expected, atol=1e-6), layer


def test_switching_arms_brings_the_base_back_bit_for_bit(demo_arms: Arms) -> None:
    whole = load.load(str(library.PIPELINE)).denoiser.state_dict()
    with demo_arms.held("adapted"):
        pass
    with demo_arms.held("base") as family:
        back = {name: value.clone() for name, value in family.module.state_dict().items()}
    assert set(back) == set(whole)
    assert all(torch.equal(back[name], whole[name]) for name in whole)


def test_an_arm_is_held_until_its_block_ends_and_the_other_has_to_wait(demo_arms: Arms) -> None:
    """A runner of one arm would compute with the weights of the other."""
    for side, other in (SIDES, SIDES[::-1]):
        with demo_arms.held(side) as family, demo_arms.held(side) as again:
            assert again is family
            with pytest.raises(RuntimeError, match="another arm"), demo_arms.held(other):
                pytest.fail("both arms were held")
            for layer, weight in demo_arms.changed[side].items():  # nothing moved
                assert torch.equal(_weight(family, layer), weight.whole())
        with demo_arms.held(other):
            pass


def test_an_arm_that_failed_is_held_no_longer(demo_arms: Arms) -> None:
    with pytest.raises(KeyboardInterrupt), demo_arms.held("base"):
        raise KeyboardInterrupt
    with demo_arms.held("adapted"):
        pass


def test_adapters_that_share_a_pipeline_share_its_lease(demo_arms: Arms) -> None:
    """What adapters were calibrated from is another arm of the same base: its weights would be in the way too."""
    other = arms.alike(demo_arms, [lora.read(Use(source=str(FLAT), weight=0.5))])
    with (
        demo_arms.held("adapted") as family,
        pytest.raises(RuntimeError, match="another arm"),
        other.held("adapted"),
    ):
        pytest.fail("both were held")
    with demo_arms.held("base"), other.held("base"):  # one base: the same weights
        pass
    layer = demo_arms.layers[0]
    with other.held("adapted"):
        assert torch.equal(_weight(family, layer), other.changed["adapted"][layer].whole())
    with demo_arms.held("adapted"):
        assert torch.equal(_weight(family, layer), demo_arms.changed["adapted"][layer].whole())


@pytest.mark.parametrize("held", SIDES)
def test_the_state_of_either_arm_can_be_read_whichever_is_held(demo_arms: Arms, held: Side) -> None:
    whole = load.load(str(library.PIPELINE)).denoiser.state_dict()
    with demo_arms.held(held):
        states = {side: demo_arms.state(side) for side in SIDES}
    assert all(torch.equal(states["base"][name], whole[name]) for name in whole)
    for layer in demo_arms.denoiser_layers():
        assert torch.equal(states["adapted"][f"{layer}.weight"], demo_arms.changed["adapted"][f"unet.{layer}"].whole())
        assert not torch.equal(states["adapted"][f"{layer}.weight"], whole[f"{layer}.weight"])


def _weight(family: Family, layer: str) -> torch.Tensor:
    """A weight as it is in the pipeline now."""
    component, _, name = layer.partition(".")
    found: torch.Tensor = getattr(family.pipe, component).get_submodule(name).weight
    return found


def test_a_path_that_is_not_there_is_an_error() -> None:
    with pytest.raises(UserError, match="does not exist"):
        load.load("./no-such-pipeline")


def test_a_folder_that_is_no_pipeline_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a diffusers pipeline"):
        load.load(str(tmp_path))


def test_a_pipeline_of_another_kind_is_an_error(pipeline_copy: Path) -> None:
    index = json.loads((pipeline_copy / "model_index.json").read_text())
    index["transformer"] = index.pop("unet")
    (pipeline_copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"This version checks StableDiffusionPipeline, .*Flux2KleinPipeline"):
        load.load(str(pipeline_copy))


def test_a_pipeline_with_a_part_missing_is_an_error(pipeline_copy: Path) -> None:
    shutil.rmtree(pipeline_copy / "unet")
    with pytest.raises(UserError, match="has no unet/, which its"):
        load.load(str(pipeline_copy))


def test_a_base_with_nan_is_an_error(pipeline_copy: Path) -> None:
    path = pipeline_copy / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["conv_in.bias"][0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"unet/conv_in\.bias holds NaN"):
        load.load(str(pipeline_copy))


def test_an_inpainting_base_is_an_error(pipeline_copy: Path) -> None:
    config = json.loads((pipeline_copy / "unet" / "config.json").read_text())
    config["in_channels"] = 9
    (pipeline_copy / "unet" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"inpainting|does not load"):
        load.load(str(pipeline_copy))


def test_a_base_whose_weights_are_pickles_is_refused(pipeline_copy: Path) -> None:
    folder = pipeline_copy / "unet"
    torch.save(load_file(folder / "diffusion_pytorch_model.safetensors"), folder / "diffusion_pytorch_model.bin")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match="does not load"):
        load.load(str(pipeline_copy))


def _change(both: arms.Arms, layer: str) -> torch.Tensor:
    return both.changed["adapted"][layer].whole() - both.changed["base"][layer].whole()


def test_several_adapters_add_up_and_a_common_one_is_in_both_arms() -> None:
    def applied(names: list[tuple[str, float]], common: list[tuple[str, float]] | None = None) -> arms.Arms:
        read = [
            [
                lora.read(Use(source=str(library.ADAPTERS / f"{name}.safetensors"), weight=weight))
                for name, weight in chosen
            ]
            for chosen in (names, common or [])
        ]
        return arms.apply(load.load(str(library.PIPELINE)), *read)

    flat, ink = applied([("flat", 1.0)]), applied([("ink", -0.5)])
    both = applied([("flat", 1.0), ("ink", -0.5)])
    stacked = applied([("flat", 1.0)], [("ink", -0.5)])
    assert set(both.layers) == set(flat.layers) | set(ink.layers)
    for layer in flat.layers:
        wanted = _change(flat, layer) + (_change(ink, layer) if layer in ink.layers else 0)
        assert torch.allclose(_change(both, layer), wanted, atol=1e-6)
        assert torch.allclose(_change(stacked, layer), _change(flat, layer), atol=1e-6)
        if layer in ink.layers:
            assert torch.allclose(
                stacked.changed["base"][layer].whole(), ink.changed["adapted"][layer].whole(), atol=1e-6
            )
    for layer in both.denoiser_layers():
        down, up = both.factors(layer)
        change = _change(both, f"unet.{layer}")
        assert (up @ down.flatten(1) - change.flatten(1)).norm() <= 1e-5 * change.norm(), layer
    contents = {one.content(side) for one in (flat, both, stacked) for side in SIDES}
    assert len(contents) == 5  # only the plain base is in two of them
    again = arms.alike(stacked, [lora.read(Use(source=str(FLAT), weight=1.0))])
    assert [again.content(side) for side in SIDES] == [stacked.content(side) for side in SIDES]
    layer = flat.layers[0]
    assert torch.allclose(_change(again, layer), _change(stacked, layer), atol=1e-6)


def test_a_partly_matching_adapter_is_an_error_unless_allowed_and_then_the_rest_is_listed(tmp_path: Path) -> None:
    tensors = {k.replace("mid_block", "no_block"): v for k, v in load_file(FLAT).items()}
    partial = _saved(tmp_path, tensors)
    loaded = load.load(str(library.PIPELINE))
    with pytest.raises(UserError, match=r"(?s)only .* exist in this base.*allow-unmatched"):
        arms.apply(loaded, [partial])
    both = arms.apply(loaded, [partial], allow_unmatched=True)
    assert both.unmatched
    assert all("no_block" in name for name in both.unmatched)
    assert not any("mid_block" in layer for layer in both.layers)
    alien = _saved(tmp_path, {k.replace("unet.", "unet.other."): v for k, v in load_file(FLAT).items()})
    with pytest.raises(UserError, match="none of the"):
        arms.apply(load.load(str(library.PIPELINE)), [alien], allow_unmatched=True)


def test_trigger_words_come_from_what_trainers_write_into_the_file(tmp_path: Path) -> None:
    tags = {"10_style": {"flat emoji": 40, "1girl": 3}, "5_more": {"flat emoji": 2, "sky": 9}}
    metadata = {"ss_tag_frequency": json.dumps(tags), "modelspec.trigger_phrase": "flt style"}
    save_file(load_file(FLAT), tmp_path / "kohya.safetensors", metadata=metadata)
    adapter = lora.read(Use(source=str(tmp_path / "kohya.safetensors"), weight=1.0))
    assert lora.trigger_words(adapter) == ["flt style", "flat emoji", "sky", "1girl"]
    assert lora.tag_counts(adapter) == {"flat emoji": 42, "sky": 9, "1girl": 3}
    assert lora.trigger_words(lora.read(Use(source=str(FLAT), weight=1.0))) == []


@pytest.mark.parametrize("written", ["no json", "[1, 2]", '{"a": 3}'])
def test_odd_metadata_offers_no_words(written: str, tmp_path: Path) -> None:
    save_file(load_file(FLAT), tmp_path / "odd.safetensors", metadata={"ss_tag_frequency": written})
    assert lora.trigger_words(lora.read(Use(source=str(tmp_path / "odd.safetensors"), weight=1.0))) == []


@pytest.fixture(scope="module")
def dora(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A DoRA in PEFT's layout with random factors and magnitudes, and its tensors."""
    torch.manual_seed(0)
    unet = copy.deepcopy(load.load(str(library.PIPELINE)).denoiser)
    config = LoraConfig(r=4, lora_alpha=4, target_modules=["to_q"], use_dora=True, init_lora_weights=False)
    unet.add_adapter(config)
    tensors = {name: value.contiguous() for name, value in get_peft_model_state_dict(unet).items()}
    for name, value in tensors.items():
        if "magnitude" in name:  # as training moves it; at first it is |W + BA| and rescales nothing
            tensors[name] = value * torch.linspace(0.8, 1.2, len(value))
    path = tmp_path_factory.mktemp("dora") / "dora.safetensors"
    save_file({f"unet.{name}": value for name, value in tensors.items()}, path)
    return path, tensors


def test_dora_in_pefts_layout_is_merged_as_its_formula_says(dora: tuple[Path, dict[str, torch.Tensor]]) -> None:
    """m (W + BA) / |W + BA| by rows (Liu et al., arXiv 2402.09353, eq. 5)."""
    path, tensors = dora
    both = arms.apply(load.load(str(library.PIPELINE)), [lora.read(Use(source=str(path), weight=1.0))])
    for layer in both.denoiser_layers():
        before, merged = (both.changed[side][f"unet.{layer}"].whole() for side in SIDES)
        down, up, size = (tensors[f"{layer}.lora_{part}"] for part in ("A.weight", "B.weight", "magnitude_vector"))
        summed = before + up @ down
        assert torch.allclose(merged, size[:, None] * summed / summed.norm(dim=1, keepdim=True), atol=1e-6), layer


def test_dora_beside_another_adapter_is_refused(dora: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, _ = dora
    for stack in ((str(FLAT), str(path)), (str(path), str(FLAT))):
        with pytest.raises(UserError, match="beside other adapters"):
            arms.apply(load.load(str(library.PIPELINE)), [lora.read(Use(source=file, weight=1.0)) for file in stack])


def test_dora_cannot_run_unmerged_and_says_so(dora: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, _ = dora
    both = arms.apply(load.load(str(library.PIPELINE)), [lora.read(Use(source=str(path), weight=1.0))])
    with pytest.raises(UserError, match="DoRA rescales") as caught:
        both.factors(both.denoiser_layers()[0])
    assert "unmerged" in caught.value.fix
    with pytest.raises(UserError, match="is a DoRA"):
        _inspected(path, ["unmerged"])


def _inspected(path: Path, orders: Sequence[Order]) -> Inspection:
    asked = inspect.Question(1.0, [scheme.find("int4-g128")], orders, recipe.find("general"))
    return inspect.inspect(str(path), str(library.PIPELINE), asked)


def test_the_forecast_of_a_dora_is_of_its_whole_change(dora: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, _ = dora
    both = arms.apply(load.load(str(library.PIPELINE)), [lora.read(Use(source=str(path), weight=1.0))])
    found = _inspected(path, MERGES)
    assert [seen.order for seen in found.forecasts] == ["merge-quantize", "quantize-merge"]
    for layer in found.layers:
        before, after = (both.changed[side][layer.name].whole() for side in SIDES)
        assert layer.relative == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_factors_in_float8_are_read_exactly(dtype: torch.dtype, tmp_path: Path) -> None:
    stored, base = {key: value.to(dtype) for key, value in load_file(FLAT).items()}, load.load(str(library.PIPELINE))
    both, same = (
        arms.apply(base, [_saved(tmp_path, tensors)])
        for tensors in (stored, {key: value.float() for key, value in stored.items()})
    )
    for layer, weight in both.changed["adapted"].items():
        assert torch.equal(weight.whole(), same.changed["adapted"][layer].whole())


def test_factors_of_rank_0_are_an_error_that_names_the_layer(tmp_path: Path) -> None:
    tensors = load_file(FLAT)
    down = next(key for key in sorted(tensors) if "lora_A" in key)
    up = down.replace("lora_A", "lora_B")
    tensors |= {down: tensors[down][:0].clone(), up: tensors[up][:, :0].clone()}
    with pytest.raises(UserError, match=r"has factors of rank 0"):
        arms.apply(load.load(str(library.PIPELINE)), [_saved(tmp_path, tensors)])


def test_a_factor_without_inputs_is_an_error_that_names_the_layer(tmp_path: Path) -> None:
    tensors = load_file(FLAT)
    down = next(key for key in sorted(tensors) if "lora_A" in key)
    with pytest.raises(UserError, match=r"has an empty factor"):
        arms.apply(load.load(str(library.PIPELINE)), [_saved(tmp_path, tensors | {down: tensors[down][:, :0].clone()})])


def test_a_fused_dora_of_another_number_of_sizes_is_an_error(tmp_path: Path) -> None:
    layer = "diffusion_model.final_layer.linear"
    tensors = {f"{layer}.lora_A.weight": torch.ones(1, 32), f"{layer}.lora_B.weight": torch.ones(64, 1)}
    with pytest.raises(UserError, match=r"has 1 sizes of a DoRA for 64 outputs"):
        place.contents_of(Names(), _saved(tmp_path, tensors | {f"{layer}.lora_magnitude_vector": torch.ones(1)}))


def test_a_dora_of_another_number_of_sizes_is_an_error(tmp_path: Path) -> None:
    tensors = load_file(FLAT)
    layer = next(key for key in sorted(tensors) if "lora_A" in key).removesuffix(".lora_A.weight")
    tensors[f"{layer}.lora_magnitude_vector"] = torch.ones(3)
    with pytest.raises(UserError, match=r"3 sizes of a DoRA do not fit the \d+ outputs"):
        arms.apply(load.load(str(library.PIPELINE)), [_saved(tmp_path, tensors)])
