"""SmoothQuant and AWQ: ModelOpt's factors in our plan, artifact and build."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from qcheck.calibration import histogram
from qcheck.calibration import smoothing as modelopt
from qcheck.model.arms import Arms
from qcheck.quantize import contents, fake, plan
from qcheck.quantize.plan import Input
from qcheck.runtime.ort_runner import OnnxRunner
from qcheck.spec import recipe, scheme
from qcheck.spec.order import MERGES, Order
from tests import builder, rivals, stored
from tests.conftest import Prepared

NAMES = ("int8-sq", "int4-awq")


@pytest.fixture(scope="module", params=NAMES)
def factors(request: pytest.FixtureRequest, demo_arms: Arms, exported: Prepared) -> tuple[str, dict[str, Input]]:
    x, t, h = (torch.from_numpy(exported.inputs[k]) for k in ("sample", "timestep", "encoder_hidden_states"))
    chosen = scheme.find(request.param)
    assert chosen.smoothing is not None
    with demo_arms.held("adapted") as family:
        layers = plan.chosen_layers(family.module, chosen, recipe.find("emoji"))
        found = modelopt.smoothed(family.module, layers, chosen.smoothing, lambda model: model(x, t, h))
    return request.param, found


def test_every_linear_layer_gets_positive_factors_and_convolutions_none(
    prepared: Prepared, factors: tuple[str, dict[str, Input]]
) -> None:
    _, found = factors
    assert len(found) > 100
    for layer, inputs in found.items():
        weight = prepared.state[f"{layer}.weight"]
        assert weight.dim() == 2
        assert inputs.smooth is not None
        assert inputs.smooth.shape == weight.shape[1:]
        assert (inputs.smooth > 0).all()


@pytest.mark.parametrize("order", MERGES)
def test_the_artifact_multiplies_inputs_and_holds_the_divided_weights(
    demo_arms: Arms, prepared: Prepared, factors: tuple[str, dict[str, Input]], order: Order, tmp_path: Path
) -> None:
    name, found = factors
    chosen, inputs = scheme.find(name), prepared.ranges | found
    content = contents.of_adapted(demo_arms, chosen, recipe.find("emoji"), order, {"base": inputs, "adapted": inputs})
    path = prepared.exporter.twin(content, chosen, tmp_path / "q1.onnx", {})
    codes = stored.codes(onnx.load(path))
    for layer, numbers in content.plan.items():
        assert np.array_equal(codes[layer], numbers.codes(content.state[f"{layer}.weight"]).numpy()), layer
    x, t, h = (torch.from_numpy(prepared.inputs[k]) for k in ("sample", "timestep", "encoder_hidden_states"))
    unet = prepared.unet
    kept = {key: value.clone() for key, value in unet.state_dict().items()}
    with torch.no_grad():
        full = unet(x, t, h).sample.numpy()
        unet.load_state_dict(content.state)
        with fake.simulated(unet, content.plan, content.branches) as model:
            simulated = model(x, t, h).sample.numpy()
        unet.load_state_dict(kept)
    ran = OnnxRunner(path, 1)(prepared.inputs)

    def sqnr(signal: np.ndarray, other: np.ndarray) -> float:
        return float(10 * np.log10(np.square(signal).sum() / np.square(signal - other).sum()))

    assert sqnr(full, ran) > 20
    if name == "int4-awq":
        assert sqnr(simulated, ran) > 100
    else:
        assert sqnr(full, ran) == pytest.approx(sqnr(full, simulated), abs=1.0)


def test_awq_lowers_the_error_of_what_it_was_fitted_on(
    prepared: Prepared, factors: tuple[str, dict[str, Input]]
) -> None:
    name, found = factors
    if name != "int4-awq":
        pytest.skip("SmoothQuant helps where inputs have outliers, which this batch need not have")
    x, t, h = (torch.from_numpy(prepared.inputs[k]) for k in ("sample", "timestep", "encoder_hidden_states"))
    unet, errors = prepared.unet, []
    with torch.no_grad():
        full = unet(x, t, h).sample
        for inputs in (prepared.ranges, prepared.ranges | found):
            numbers = plan.make(found, prepared.state, scheme.find(name), inputs)
            with fake.simulated(unet, numbers) as model:
                errors.append(float((model(x, t, h).sample - full).norm()))
    assert errors[1] < errors[0]


def test_smoothquant_factors_are_the_formula(prepared: Prepared) -> None:
    """x is multiplied by max|W|^(1 - alpha) / max|x|^alpha of each feature (Xiao et al., arXiv 2211.10438, eq. 4)."""
    layer = torch.nn.Sequential(torch.nn.Linear(8, 4))
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 9.0)
    smoothing = scheme.find("int8-sq").smoothing
    assert smoothing is not None
    assert smoothing.alpha is not None
    found = modelopt.smoothed(layer, ["0"], smoothing, lambda model: model(x))["0"]
    weight = layer[0].weight.detach().abs().amax(0)
    expected = weight ** (1 - smoothing.alpha) / x.abs().amax(0) ** smoothing.alpha
    assert found.smooth is not None
    assert torch.allclose(found.smooth, expected, rtol=1e-5)
    assert found.cut == pytest.approx(float((x * expected).abs().max()), rel=1e-5)
    assert rivals.quantized(layer, "INT8_SMOOTHQUANT_CFG", lambda model: model(x)) is not layer


def test_factors_survive_saving(factors: tuple[str, dict[str, Input]], tmp_path: Path) -> None:
    _, found = factors
    histogram.save_inputs(found, tmp_path)
    back = histogram.load_inputs(tmp_path)
    assert {layer: inputs.cut for layer, inputs in back.items()} == {k: v.cut for k, v in found.items()}
    assert all(torch.equal(back[k].smooth, v.smooth) for k, v in found.items())  # type: ignore[arg-type]


@builder.needed
def test_tensorrt_takes_the_smoothed_file(
    demo_arms: Arms, prepared: Prepared, factors: tuple[str, dict[str, Input]], tmp_path: Path
) -> None:
    name, found = factors
    chosen, inputs = scheme.find(name), prepared.ranges | found
    both = {"base": inputs, "adapted": inputs}
    content = contents.of_adapted(demo_arms, chosen, recipe.find("emoji"), "merge-quantize", both)  # type: ignore[arg-type]
    path = prepared.exporter.deployed(content, chosen, tmp_path / "model.onnx", {})
    built = builder.build(path, "8.6")
    assert built.engine is not None, built.problems
