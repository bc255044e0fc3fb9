"""Costs from shapes alone, and the lower bounds made of them."""

import pytest
import torch
from torch import nn

from qcheck.build import profile
from qcheck.build.profile import Needs, Profile
from qcheck.model.arms import Arms
from qcheck.model.components import Component
from qcheck.result import estimate
from qcheck.result.manifest import Layer
from qcheck.spec import target
from tests.conftest import Prepared

ORIN = target.find("jetson-agx-orin-64gb")


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.entry = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 16, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.entry(x)


def test_operations_are_two_a_multiply_accumulate_and_known_by_layer() -> None:
    found = profile.profile(Component("chain", Chain(), {"x": torch.zeros(2, 3, 4, 4)}, ("y",)), rows=5)
    convolution, linear = 2 * 5 * 16 * 8 * 3 * 9, 2 * 5 * 128 * 10
    assert found.by_layer == {"0": convolution, "2": linear}
    assert found.operations == convolution + linear
    assert found.parameters == 8 * 3 * 9 + 8 + 128 * 10 + 10
    assert found.alive == 5 * (16 * (3 + 8) + 10)  # the input, the convolution's output and the last one


def test_the_pipelines_components_are_profiled_without_their_weights(demo_arms: Arms, exported: Prepared) -> None:
    fed = {name: value[:2] for name, value in exported.inputs.items()}
    with demo_arms.held("adapted") as family:
        component, others = family.component(fed), family.others((1, 4, 16, 16))
        found = profile.needs(component, others, rows=2)
    assert found.denoiser.parameters == sum(value.numel() for value in family.module.parameters())
    assert found.denoiser.by_layer["conv_in"] == 2 * 2 * 256 * 32 * 4 * 9
    assert 0 < sum(found.denoiser.by_layer[layer] for layer in ("conv_in", "conv_out")) < found.denoiser.operations
    assert [part.name for part in others] == ["text_encoder", "vae_decoder"]
    assert next(iter(family.module.parameters())).device.type == "cpu"
    assert component.step == 4


def test_a_call_takes_at_least_its_reading_or_its_computing() -> None:
    reading = estimate.estimate(ORIN, 2_048_000_000, 10**8, 5 * 10**8, {"int8": 85 * 10**9})
    assert (reading.call_ms, reading.bound) == (pytest.approx(10.0), "memory")
    computing = estimate.estimate(ORIN, 2_048_000, 0, 0, {"int8": 85 * 10**10, "float16": 425 * 10**8})
    assert (computing.call_ms, computing.bound) == (pytest.approx(11.0), "compute")
    assert reading.total_mb == pytest.approx(2648)
    assert reading.fits
    assert (
        "artifact 2,048.0 MB + other components 100.0 MB + activations 500.0 MB = 2,648.0 MB of its 64 GB memory"
        in reading.text()
    )
    assert "at least 10 ms (memory-bound)" in reading.text()


def test_what_does_not_fit_or_is_not_known_is_said() -> None:
    small = target.find("jetson-orin-nano-4gb")
    assert "does not fit" in estimate.estimate(small, 5 * 10**9, 0, 0, {"float16": 1}).text()
    card = estimate.estimate(target.find("rtx-ada"), 10**9, 0, 0, {"float16": 1})
    assert (card.memory_gb, card.fits, card.call_ms) == (None, None, None)
    assert "depend on the card" in card.text()
    assert "no sourced peak for int4" in estimate.estimate(ORIN, 1, 1, 1, {"int4": 1}).text()


def test_weight_only_layers_count_at_the_rate_of_the_compute_type() -> None:
    needs = Needs(Profile(100, 10, {"a": 40, "b": 20}, 100), (Profile(50, 30, {}, 7),))
    layers = [
        Layer(name="a", node="", dequantizer=None, weight="int8", activation="int8", parameters=1),
        Layer(name="b", node="", dequantizer=None, weight="int4", activation=None, parameters=1),
    ]
    found = profile.estimated(needs, ORIN, 1000, layers, "float16")
    rate = {peak.format: peak.tera_ops * 1e12 for peak in ORIN.peaks}
    assert found.call_ms == pytest.approx(1e3 * max(1000 / 204.8e9, 40 / rate["int8"] + 60 / rate["float16"]))
    assert found.others_mb == pytest.approx(100e-6)
    assert found.activations_mb == pytest.approx(60e-6)
