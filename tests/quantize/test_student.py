"""What QAT trains is what the artifact computes: the same codes and outputs, and gradients for the factors alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcheck.model.arms import Arms
from qcheck.model.lora import trainable
from qcheck.quantize import contents, fake, plan
from qcheck.quantize.contents import QuantizedWeights
from qcheck.runtime.ort_runner import OnnxRunner
from qcheck.spec import recipe, scheme
from qcheck.spec.order import MERGES, Order
from qcheck.training import student
from tests.conftest import Prepared, adapted_by

RECIPE = recipe.find("emoji")


@pytest.fixture(scope="module")
def faint() -> Arms:
    """An adapter that the dead zone swallows: one code that differs is one that was wrong."""
    return adapted_by("faint")


def _made(arms: Arms, prepared: Prepared, name: str, order: Order) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    chosen, (adapter,) = scheme.find(name), arms.adapters
    found = trainable.find(arms.base.pipe, adapter)
    factors = {key: value.float().requires_grad_() for key, value in trainable.trained(found, adapter).items()}
    layers = frozenset(plan.chosen_layers(arms.base.denoiser, chosen, RECIPE))
    ground = student.StudentSetup(chosen, order, layers, prepared.ranges, prepared.ranges, adapter.weight)
    with arms.held("base") as family:
        model = student.make(family.module, ground, found, lambda layer: found[layer].factors(factors))
    return model, factors


def _content(arms: Arms, prepared: Prepared, name: str, order: Order) -> QuantizedWeights:
    ranges = {"base": prepared.ranges, "adapted": prepared.ranges}
    return contents.of_adapted(arms, scheme.find(name), RECIPE, order, ranges)  # type: ignore[arg-type]


def _fed(prepared: Prepared) -> list[torch.Tensor]:
    return [torch.from_numpy(prepared.inputs[k]) for k in ("sample", "timestep", "encoder_hidden_states")]


def _sqnr(signal: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(np.square(signal).sum() / max(np.square(signal - other).sum(), 1e-30)))


@pytest.mark.parametrize("order", [*MERGES, "refit"])
@pytest.mark.parametrize("name", ["int8", "fp8", "int4-g128", pytest.param("nvfp4", marks=pytest.mark.slow)])
def test_the_student_computes_what_the_simulated_artifact_computes(
    faint: Arms, prepared: Prepared, name: str, order: Order
) -> None:
    """Activations too: one code more or less anywhere would move later ones (tests/test_artifact.py has the files)."""
    model, _ = _made(faint, prepared, name, order)
    ranges = dict.fromkeys(("base", "adapted", "shared"), prepared.ranges)
    content = contents.of_adapted(faint, scheme.find(name), RECIPE, order, ranges)  # type: ignore[arg-type]
    with faint.held("adapted") as family:
        unet = family.module
        kept = {key: value.clone() for key, value in unet.state_dict().items()}
        unet.load_state_dict(content.state)
        with torch.no_grad(), fake.simulated(unet, content.plan, content.branches) as simulated:
            expected = simulated(*_fed(prepared)).sample.numpy()
        unet.load_state_dict(kept)
    with torch.no_grad():
        found = model(*_fed(prepared)).sample.numpy()
    rounding = order == "unmerged" and name not in {"int4-g128"}  # the branch's factors differ by float rounding
    assert _sqnr(expected, found) > (30 if rounding else 120)


@pytest.mark.parametrize("order", MERGES)
def test_the_student_computes_what_onnx_runtime_computes_from_the_file(
    faint: Arms, prepared: Prepared, order: Order, tmp_path: Path
) -> None:
    model, _ = _made(faint, prepared, "int4-g128", order)
    content = _content(faint, prepared, "int4-g128", order)
    path = prepared.exporter.twin(content, scheme.find("int4-g128"), tmp_path / "q1.onnx", {})
    with torch.no_grad():
        ours = model(*_fed(prepared)).sample.numpy()
    assert _sqnr(OnnxRunner(path, 1)(prepared.inputs), ours) > 100


@pytest.mark.parametrize("order", MERGES)
def test_gradients_reach_every_factor_and_nothing_of_the_base(faint: Arms, prepared: Prepared, order: Order) -> None:
    model, factors = _made(faint, prepared, "int8", order)
    model(*_fed(prepared)).sample.square().mean().backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in factors.values())
    assert all(value.grad is None for value in model.parameters())


def test_the_copy_leaves_the_pipeline_as_it_was(faint: Arms, prepared: Prepared) -> None:
    with faint.held("base") as family:
        unet = family.module
        before = {key: value.clone() for key, value in unet.state_dict().items()}
        _made(faint, prepared, "int8", "quantize-merge")
        assert all(torch.equal(value, before[key]) for key, value in unet.state_dict().items())
        assert not any("forward" in vars(module) for module in unet.modules())


@given(st.floats(-3, 3), st.floats(-3, 3))
def test_straight_through_is_the_stand_in_with_the_gradient_of_the_values(value: float, stand_in: float) -> None:
    x = torch.tensor(value, requires_grad=True)
    y = fake.straight(x, torch.tensor(stand_in))
    y.backward()
    assert y.item() == torch.tensor(stand_in).item()
    assert x.grad == 1


def test_a_static_input_passes_gradients_inside_its_range_alone() -> None:
    numbers = plan.make_layer(torch.ones(2, 3), scheme.find("int8"), plan.Input(1.0))
    x = torch.tensor([[-2.0, 0.3, 2.0]], requires_grad=True)
    y = fake.straight_input(numbers, x)
    assert torch.equal(y, numbers.fake_input(x))
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0.0, 1.0, 0.0]]
