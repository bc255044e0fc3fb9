"""A pipeline that stays in its 16-bit files computes what the same pipeline in float32 computes, bit for bit."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import qcheck
from qcheck.core.cache import Cache
from qcheck.demo import library
from qcheck.diagnose import sensitivity
from qcheck.diagnose.hooks import tapped
from qcheck.diagnose.layer_errors import LayerError
from qcheck.model import arms, load, lora, parts, stored
from qcheck.model.arms import Arms
from qcheck.model.components import copied
from qcheck.model.device import CPU, Device
from qcheck.model.lora import Adapter
from qcheck.quantize import fake, formats, plan
from qcheck.quantize.artifact import Exporter
from qcheck.sampling import subject
from qcheck.spec import probe as probes
from qcheck.spec.arm import SIDES
from qcheck.spec.probe import Probe
from qcheck.spec.use import Use
from tests import families
from tests.conftest import Prepared


@pytest.fixture
def keeping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model counts as large, and so does every layer's weight."""
    monkeypatch.setattr(parts, "SHARE", 0.0)
    monkeypatch.setattr(stored, "LEAST", 1)


def _arms(base: Path, adapter: Path) -> Arms:
    return arms.apply(load.load(str(base)), [lora.read(Use(source=str(adapter), weight=1.0))])


PUBLISHED = ["sd1", "sdxl", "sd3", "flux", "z-image", "qwen-image", "flux2-klein", "chroma", "sana"]


@pytest.fixture(scope="module", params=PUBLISHED)
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Arms]:
    """A family's pipeline in 16-bit files, an adapter of it, and both in float32."""
    root = tmp_path_factory.mktemp(request.param)
    pipe = families.FAMILIES[request.param]()
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.to(torch.bfloat16 if "flux" in request.param else torch.float16)
    pipe.save_pretrained(root / "base")
    adapter = families.adapter(request.param, root / "lora.safetensors")
    return root / "base", adapter, _arms(root / "base", adapter)


@pytest.mark.usefixtures("keeping")
def test_outputs_and_conditions_are_those_of_float32(published: tuple[Path, Path, Arms]) -> None:
    base, adapter, whole = published
    kept = _arms(base, adapter)
    assert any(stored.is_stored(layer) for layer in kept.base.denoiser.modules())
    assert not any(stored.is_stored(layer) for layer in whole.base.denoiser.modules())
    given = {"prompt": "a red heart", "negative": "", "weights": (1.0,), "seed": 5, "guidance": 3.0, "steps": 2}
    probe = Probe.model_validate({**given, "width": 32, "height": 32})
    for side in SIDES:
        inputs = []
        for both in (whole, kept):
            with both.held(side) as family:
                conditions = {name: value.numpy() for name, value in family.conditions(probe).items()}
                latents = np.repeat(family.start(probe)[0].numpy(), len(next(iter(conditions.values()))), 0)
                inputs.append(family.feed(latents, 500.0, conditions))
        for name, value in inputs[0].items():
            np.testing.assert_array_equal(value, inputs[1][name], name)
        with subject.full(whole, side).open() as here, subject.full(kept, side).open() as there:
            np.testing.assert_array_equal(here(inputs[0]), there(inputs[0]))


@pytest.fixture
def kept(keeping: None) -> Arms:
    """The demo's arms, stored."""
    return _arms(library.PIPELINE, library.ADAPTERS / "flat.safetensors")


def test_no_weight_of_an_arm_is_kept_in_float32(kept: Arms) -> None:
    for layer in kept.layers:
        base, adapted = (kept.changed[side][layer].stored for side in SIDES)
        assert base.dtype == torch.float16
        assert base.data_ptr() == adapted.data_ptr()


def test_a_state_has_the_float32_weights_whichever_arm_is_held(kept: Arms, demo_arms: Arms) -> None:
    for held in SIDES:
        with kept.held(held):
            for side in SIDES:
                ours, known = kept.state(side), demo_arms.state(side)
                assert set(ours) == set(known)
                assert all(torch.equal(ours[name], known[name]) for name in known)


@pytest.mark.slow
def test_files_are_those_of_float32(kept: Arms, exported: Prepared, tmp_path: Path) -> None:
    exporter = Exporter(kept, Cache(tmp_path), exported.inputs)
    assert exporter.full("adapted", "float32").read_bytes() == exported.exporter.full("adapted", "float32").read_bytes()


@pytest.fixture(params=["kept", "device"])
def layers(request: pytest.FixtureRequest, kept: Arms) -> Iterator[nn.Module]:
    """The adapted denoiser, stored here or copied to a device."""
    both = kept if request.param == "kept" else kept.on(Device("cpu", "another processor"))
    with both.running("adapted") as family:
        yield family.entry(family.module)


class Gradients:
    """The gradients of every layer's output and input."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def enter(self, layer: str, inputs: torch.Tensor) -> None:
        """As ``hooks.Taps``."""

    def leave(self, layer: str, kept: None, gradient: torch.Tensor, of_inputs: torch.Tensor) -> None:
        """As ``hooks.Taps``."""
        self.seen[layer] = gradient, of_inputs


def test_gradients_are_those_of_float32(layers: nn.Module, demo_arms: Arms, exported: Prepared) -> None:
    names = [name for name, _ in plan.linear_layers(demo_arms.base.denoiser)]
    ours, known = Gradients(), Gradients()
    inputs = {name: torch.from_numpy(value) for name, value in exported.inputs.items()}
    with torch.enable_grad(), demo_arms.held("adapted") as family:
        for entry, taps in ((layers, ours), (family.entry(family.module), known)):
            with tapped({name: entry.get_submodule(f"denoiser.{name}") for name in names}, taps):
                entry(**inputs).square().sum().backward()
    assert list(known.seen) == list(ours.seen)
    assert len(known.seen) == len(names)
    for name, pair in known.seen.items():
        for value, other in zip(pair, ours.seen[name], strict=True):
            torch.testing.assert_close(other, value, rtol=1e-4, atol=1e-5 * float(value.abs().max()))


def test_gradients_without_taps_are_those_of_float32(layers: nn.Module, demo_arms: Arms, exported: Prepared) -> None:
    gradients = []
    with torch.enable_grad(), demo_arms.held("adapted") as family:
        for entry in (layers, family.entry(family.module)):
            inputs = {name: torch.from_numpy(value) for name, value in exported.inputs.items()}
            sample = inputs["sample"].requires_grad_()
            entry(**inputs).square().sum().backward()
            gradients.append(sample.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_a_simulation_replaces_the_weights_and_gives_them_back(kept: Arms, demo_arms: Arms, exported: Prepared) -> None:
    outputs = []
    for both in (kept, demo_arms):
        with both.running("adapted") as family:
            before = subject.runner(both, family.module)(exported.inputs)
            with fake.simulated(family.module, exported.plan):
                outputs.append(subject.runner(both, family.module)(exported.inputs))
            np.testing.assert_array_equal(subject.runner(both, family.module)(exported.inputs), before)
    np.testing.assert_array_equal(*outputs)


def test_a_copy_in_a_type_is_of_torchs_own_layers_with_the_arms_weights(kept: Arms, demo_arms: Arms) -> None:
    with kept.held("adapted") as family:
        copy = copied(family.module, dtype=torch.float32)
    state = demo_arms.state("adapted")
    assert all(torch.equal(value, state[name]) for name, value in copy.state_dict().items())
    assert {type(layer) for _, layer in plan.linear_layers(copy)} <= {nn.Linear, nn.Conv2d}


def test_a_machine_with_enough_memory_casts_when_it_loads(demo_arms: Arms) -> None:
    assert {value.dtype for value in demo_arms.base.denoiser.parameters()} == {torch.float32}


def test_the_unmerged_order_has_the_factors(kept: Arms, demo_arms: Arms) -> None:
    layer = kept.denoiser_layers()[0]
    for ours, known in zip(kept.factors(layer), demo_arms.factors(layer), strict=True):
        torch.testing.assert_close(ours, known)


def test_a_check_gives_the_same_values(graphs_alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: Any = {"lora": "flat", "scheme": "int8", "steps": 2, "max_probes": 2, "build": False}
    whole = qcheck.check("demo", **options)
    for kind in (graphs_alone / "qcheck").iterdir():
        if kind.name != "graph":
            shutil.rmtree(kind)
    monkeypatch.setattr(parts, "SHARE", 0.0)
    monkeypatch.setattr(stored, "LEAST", 1)
    kept = qcheck.check("demo", **options)
    (ours,), (known,) = kept.cases, whole.cases
    assert ours.verdict == known.verdict
    assert ours.measurements == known.measurements
    assert ours.estimate == known.estimate
    assert ours.layers == known.layers


def _drawn(path: Path, layers: Mapping[str, nn.Module], dora: bool = False) -> Adapter:
    """An adapter of random factors for some layers."""
    draws, tensors = torch.Generator().manual_seed(3), {}
    for name, layer in layers.items():
        out, width = layer.get_parameter("weight").flatten(1).shape
        tensors[f"{name}.lora_A.weight"] = torch.randn(4, width, generator=draws) / width**0.5
        tensors[f"{name}.lora_B.weight"] = torch.randn(out, 4, generator=draws) / 10
        if dora:
            tensors[f"{name}.lora_magnitude_vector"] = torch.rand(out, generator=draws) + 1
    save_file(tensors, path)
    return lora.read(Use(source=str(path), weight=0.7))


@pytest.mark.parametrize("kind", ["two of the same layers", "common", "DoRA", "text encoder"])
def test_every_kind_of_change_is_that_of_float32(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = load.load(str(library.PIPELINE)).pipe
    linear = {f"unet.{name}": layer for name, layer in plan.linear_layers(pipe.unet) if ".attn1." in name}
    text = {f"text_encoder.{name}": layer for name, layer in plan.linear_layers(pipe.text_encoder) if "_proj" in name}
    drawn = _drawn(tmp_path / "lora.safetensors", text if kind == "text encoder" else linear, kind == "DoRA")
    flat = lora.read(Use(source=str(library.ADAPTERS / "flat.safetensors"), weight=1.0))
    adapters, common = {
        "two of the same layers": ([flat, drawn], []),
        "common": ([flat], [drawn]),
        "DoRA": ([drawn], []),
        "text encoder": ([drawn], []),
    }[kind]
    (probe, *_), found = probes.probes(probes.find("emoji"), (1.0,)), []
    for share, least in ((parts.SHARE, stored.LEAST), (0.0, 1)):
        monkeypatch.setattr(parts, "SHARE", share)
        monkeypatch.setattr(stored, "LEAST", least)
        both = arms.apply(load.load(str(library.PIPELINE)), adapters, common)
        again = arms.alike(both, adapters)
        for each, device in ((both, CPU), (again, CPU), (both, Device("cpu", "another processor"))):
            values = []
            for side in SIDES:
                values += each.state(side).values()
                there = each.on(device)
                with there.encoding(side) as texts, there.running(side) as family:
                    for part in (texts.pipe.text_encoder, family.module):
                        values += [stored.whole(layer).clone() for _, layer in plan.linear_layers(part)]
                    assert texts.conditions(probe)
            found.append(values)
    assert any(stored.is_stored(layer) for layer in both.base.denoiser.modules())
    for values in found[1:]:
        assert all(torch.equal(ours, known) for ours, known in zip(values, found[0], strict=True))
    half = len(found[0]) // 2
    assert not all(torch.equal(*pair) for pair in zip(found[0][:half], found[0][half:], strict=True))


def test_a_disturbed_layer_adds_its_error_to_the_arms_weight(kept: Arms) -> None:
    layer = kept.denoiser_layers()[0]
    numbers = plan.LayerPlan(plan.Grid(formats.find("int8"), "tensor", torch.ones(1)))
    with kept.held("adapted") as family:
        module: Any = family.module.get_submodule(layer)
        before = stored.whole(module)
        error = LayerError(lambda: torch.ones_like(before), numbers)
        with sensitivity.disturbed(family.module, {layer: error}):
            assert torch.equal(stored.whole(module), before + 1)
        assert torch.equal(stored.whole(module), before)


def test_names_are_looked_up_without_computing() -> None:
    weights = stored.Weights({"a": lambda: pytest.fail("computed")})
    assert "a" in weights
    assert "b" not in weights
    assert list(weights.replaced({"b": torch.ones(1)})) == ["a", "b"]


def test_what_is_stored_is_what_has_one_16_bit_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half, single = torch.zeros(4, dtype=torch.bfloat16), torch.zeros(4)
    contents = {
        "unet": {"model.safetensors": {"a": half, "b": torch.zeros(2, dtype=torch.int64)}},
        "mixed": {"model.safetensors": {"a": half, "b": single}},
        "fp8": {"model.safetensors": {"a": single.to(torch.float8_e4m3fn)}},
        "both": {"model.safetensors": {"a": single}, "model.fp16.safetensors": {"a": single.half()}},
        "absent": {},
    }
    for component, files in contents.items():
        (tmp_path / component).mkdir()
        for name, tensors in files.items():
            save_file(tensors, tmp_path / component / name)
    monkeypatch.setattr(parts, "SHARE", 0.0)
    found = {"unet": torch.bfloat16}
    assert parts.types(tmp_path, None, contents, CPU) == found
    assert parts.types(tmp_path, "fp16", contents, CPU) == found | {"both": torch.float16}
    monkeypatch.setattr(parts, "SHARE", 1.0)
    assert parts.types(tmp_path, None, contents, CPU) == {}
    assert parts.types(tmp_path, None, contents, SimpleNamespace(is_host=False, free=lambda: 8)) == found  # type: ignore[arg-type]


def test_a_buffer_that_is_computed_and_was_rounded_is_an_error() -> None:
    part = nn.Linear(2, 2)
    part.register_buffer("frequencies", torch.ones(2, dtype=torch.float16), persistent=False)
    with pytest.raises(RuntimeError, match="Linear computes frequencies"):
        stored.prepare(part)
