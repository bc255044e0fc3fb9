"""The one-backward score against its definition, and what a check makes of it."""

import functools
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from qcheck.core.cache import Cache
from qcheck.core.errors import UserError
from qcheck.core.progress import Silent, Stopwatch
from qcheck.demo import library
from qcheck.diagnose import kept, scores, sensitivity
from qcheck.diagnose.scores import Scores
from qcheck.diagnose.sensitivity import Errors, EvaluationPoint, LayerError, disturbed
from qcheck.model import arms, lora
from qcheck.model.arms import Arms
from qcheck.model.device import CPU, Device
from qcheck.quantize import contents, formats, plan
from qcheck.quantize.artifact import ArtifactSources
from qcheck.quantize.contents import QuantizedWeights
from qcheck.quantize.plan import LayerPlan, Static
from qcheck.spec import recipe, scheme
from qcheck.spec.order import Order
from qcheck.spec.use import Use
from tests.conftest import Finished, Prepared

INT8 = scheme.find("int8")


class Chain(nn.Module):
    """A convolution and two linear layers that read one tensor: linear in each of its weights and inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.left, self.right = nn.Linear(4, 5), nn.Linear(4, 5, bias=False)

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        tokens = self.first(sample).flatten(2).mT
        return self.left(tokens) + 0.5 * self.right(tokens)


@pytest.fixture
def chain() -> Chain:
    torch.manual_seed(5)
    return Chain().requires_grad_(False)


def _errors(model: nn.Module) -> dict[str, LayerError]:
    return {
        name: LayerError(
            functools.partial(torch.clone, 0.1 * torch.randn_like(module.weight)),
            LayerPlan(
                plan.make_layer(module.weight, INT8, plan.Input(3.0)).weight,
                Static(formats.find("int8"), torch.tensor(0.3)),
            ),
        )
        for name, module in plan.linear_layers(model)
    }


def _around(model: nn.Module, weights: tuple[float, ...] = (1.0, 3.0)) -> tuple[Any, Any]:
    family = SimpleNamespace(module=model, entry=lambda module: module, fixed=frozenset(), tile=0)
    setup = SimpleNamespace(family=family, guidance=3.0, weights=np.array(weights))
    computing = SimpleNamespace(denoiser=model)
    return SimpleNamespace(running=lambda _: nullcontext(family), computing=computing, device=CPU), setup


def _spot(rows: int, stratum: int = 0) -> EvaluationPoint:
    draws = torch.Generator().manual_seed(stratum)
    return EvaluationPoint(
        {"sample": torch.randn(rows, 3, 6, 6, generator=draws).numpy()}, rows, stratum, f"spot {stratum}"
    )


@pytest.mark.parametrize("rows", [1, 2], ids=["no guidance", "guidance"])
def test_parts_are_what_each_error_alone_adds_to_the_guided_output_along_z(chain: Chain, rows: int) -> None:
    both, setup = _around(chain)
    held, spot = _errors(chain), _spot(rows)
    sample = torch.from_numpy(spot.given["sample"])
    found = sensitivity.score(both, setup, {"case": held}, [spot], 2)["case"]
    for draw in range(2):
        z = sensitivity.cotangent(spot, chain(sample).shape, 3.0, draw)
        for place, layer in enumerate(found.layers):
            error = held[layer]
            exact = LayerPlan(error.numbers.weight)
            with disturbed(chain, {layer: replace(error, numbers=exact)}):
                weight = float((z * (chain(sample))).sum())
            with disturbed(chain, {layer: replace(error, weight=lambda: torch.zeros(()))}):
                inputs = float((z * chain(sample)).sum())
            whole = float((z * chain(sample)).sum())
            expected = (weight - whole, inputs - whole)
            np.testing.assert_allclose(found.parts[draw, place], expected, rtol=1e-3, atol=1e-3)
    assert not np.allclose(found.parts[0], found.parts[1])


def test_where_memory_runs_out_a_point_is_taken_row_by_row(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums over the rows are those of one pass; half of the samples of the pass that failed are forgotten."""
    both, setup = _around(chain)
    held, spots = _errors(chain), [_spot(2), _spot(2, 1)]
    whole = sensitivity.score(both, setup, {"case": held}, spots, 3)["case"]
    sizes, original = list[int](), Chain.forward

    def forward(model: Chain, sample: torch.Tensor) -> torch.Tensor:
        sizes.append(len(sample))
        if len(sample) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(model, sample)

    monkeypatch.setattr(Chain, "forward", forward)
    parts = sensitivity.score(both, setup, {"case": held}, spots, 3)["case"]
    assert sizes == [2, 1, 1, 1, 1]
    np.testing.assert_allclose(parts.parts, whole.parts, rtol=1e-3, atol=1e-3)
    monkeypatch.setattr(Chain, "forward", Mock(side_effect=MemoryError))
    with pytest.raises(UserError, match="the gradient of one row does not fit into the memory of cpu"):
        sensitivity.score(both, setup, {"case": held}, spots, 3)


def test_errors_beyond_the_budget_are_computed_again_and_give_the_same(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, setup = _around(chain)
    held, computed = _errors(chain), list[str]()
    counted = {
        name: replace(error, weight=lambda name=name, error=error: (computed.append(name), error.weight())[1])
        for name, error in held.items()
    }
    spots = [_spot(2), _spot(2, 1)]
    once = sensitivity.score(both, setup, {"case": counted}, spots, 4)["case"]
    assert len(computed) == len(held)
    monkeypatch.setattr(kept, "_SHARE", 0.0)
    again = sensitivity.score(both, setup, {"case": counted}, spots, 4)["case"]
    assert len(computed) == 3 * len(held)  # once more for each point, whatever the number of draws
    np.testing.assert_array_equal(once.parts, again.parts)


def test_guidance_weighs_its_branches_and_draws_are_not_the_latents(chain: Chain) -> None:
    spot = _spot(2)
    negative, positive = sensitivity.cotangent(spot, (2, 8, 8), 3.0, 0)
    torch.testing.assert_close(negative, -2 / 3 * positive)
    assert positive.std() == pytest.approx(3, rel=0.4)
    assert not torch.equal(sensitivity.cotangent(spot, (2, 8, 8), 3.0, 1)[1], positive)


def test_a_score_has_the_exact_cost_as_its_mean(chain: Chain) -> None:
    both, setup = _around(chain)
    held, spot = _errors(chain), _spot(2)
    found = sensitivity.score(both, setup, {"case": held}, [spot], 600)["case"]
    sample = torch.from_numpy(spot.given["sample"])

    def guided() -> torch.Tensor:
        negative, positive = chain(sample)
        return negative + 3 * (positive - negative)

    exact = []
    for layer in found.layers:
        with disturbed(chain, {layer: held[layer]}):
            moved = guided()
        exact.append(float((moved - guided()).square().sum()))
    assert found.costs == pytest.approx(exact, rel=4 * (2 / 600) ** 0.5)  # chi-square of one degree
    assert np.all(np.abs(found.shares - np.array(exact) / sum(exact)) < 4 * found.standard_errors())
    with disturbed(chain, held):
        moved = guided()
    assert found.joint == pytest.approx(float((moved - guided()).square().sum()), rel=0.35)


def test_strata_count_by_their_weight_however_many_samples_they_have() -> None:
    parts = np.zeros((3, 1, 2))
    parts[:, 0, 0] = [1, 1, 2]
    chain = nn.Sequential(nn.Linear(3, 3, bias=False)).requires_grad_(False)
    both, setup = _around(chain)
    spots = [
        EvaluationPoint({"input": np.ones((1, 3), np.float32)}, 1, stratum, f"{n}")
        for n, stratum in enumerate((0, 0, 1))
    ]
    found = sensitivity.score(both, setup, {"case": _errors(chain)}, spots)["case"]
    np.testing.assert_allclose(found.weights, [0.125, 0.125, 0.75])
    made = Scores(("0",), np.arange(3), np.array([0, 0, 1]), found.weights, parts)
    assert made.costs == pytest.approx([0.25 + 0.75 * 4])
    np.testing.assert_allclose(made.by_stratum(3)[:2, 0], [1, 4])
    assert np.isnan(made.by_stratum(3)[2, 0])


STATED = {
    "one layer has most": ([9.0, 1.0, 0.5], 0.0, 4),
    "alike": ([1.0, 1.0, 1.0, 1.0], 0.0, 4),
    "states differ": ([3.0, 1.0, 1.0], 0.7, 16),
}


@pytest.mark.parametrize(("costs", "apart", "draws"), STATED.values(), ids=STATED)
def test_about_68_and_95_percent_of_runs_are_within_1_and_2_standard_errors(
    costs: list[float], apart: float, draws: int
) -> None:
    """Layers whose errors point elsewhere in the output: <g, e> is normal; a layer's cost varies with the state."""
    rng, runs, states = np.random.default_rng(7), 400, np.repeat(np.arange(12), draws)
    strata = np.repeat([0] * 9 + [1, 1, 2], draws)
    weights = (np.array([0.8, 0.15, 0.05]) / np.bincount(strata))[strata]
    share = np.array(costs) / sum(costs)
    found = []
    for _ in range(runs):
        scale = np.sqrt(costs) * np.exp(apart * rng.standard_normal((12, len(costs))) / 2)
        parts = np.zeros((len(states), len(costs), 2))
        parts[..., 0] = scale[states] * rng.standard_normal((len(states), len(costs)))
        made = Scores(tuple("abcd"[: len(costs)]), states, strata, weights, parts)
        found.append((made.shares[0] - share[0]) / made.standard_errors()[0])
    within = [float((np.abs(found) < many).mean()) for many in (1, 2)]
    assert 0.63 < within[0] < 0.78, within
    assert 0.92 < within[1] < 0.985, within


def test_everything_is_as_it_was_afterwards(chain: Chain) -> None:
    both, setup = _around(chain)
    sample = torch.from_numpy(_spot(1).given["sample"])
    before = chain(sample)
    sensitivity.score(both, setup, {"case": _errors(chain)}, [_spot(1)])
    with disturbed(chain, _errors(chain)):
        assert not torch.equal(chain(sample), before)
    assert torch.equal(chain(sample), before)
    assert not any(value.requires_grad or value.grad is not None for value in chain.parameters())


@pytest.mark.parametrize("order", ["merge-quantize", "quantize-merge", "unmerged"])
def test_errors_are_the_artifacts_own(demo_arms: Arms, prepared: Prepared, order: Order) -> None:
    given = {"base": prepared.ranges, "adapted": prepared.ranges}
    content = contents.of_adapted(demo_arms, INT8, recipe.find("emoji"), order, given)  # type: ignore[arg-type]
    held = sensitivity.errors(demo_arms, content)
    adapted = demo_arms.state("adapted")
    assert set(held) == set(content.plan)
    for layer in [*content.plan][:3] + demo_arms.denoiser_layers()[:3]:
        if layer in held:
            whole = _whole(content, layer)
            torch.testing.assert_close(adapted[f"{layer}.weight"] + held[layer].weight(), whole, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("order", ["merge-quantize", "unmerged"])
def test_a_calibrated_adapters_scores_are_those_of_what_ships(
    demo_arms: Arms, exported: Prepared, order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """q1 of the calibrated file against f1 of the one that it came from; from the cache as well."""
    tensors = load_file(library.ADAPTERS / "flat.safetensors")
    moved = next(name for name in sorted(tensors) if "attn1.to_q.lora_B" in name)
    save_file(tensors | {moved: 1.5 * tensors[moved]}, tmp_path / "new.safetensors")
    shipped = arms.alike(demo_arms, [lora.read(Use(source=str(tmp_path / "new.safetensors"), weight=1.0))])
    monkeypatch.setattr(sensitivity, "spots", lambda *_: [EvaluationPoint(given, 2, 0, "a state")])
    given = {name: value[:2] if len(value) > 1 else value for name, value in exported.inputs.items()}
    layers: Any = {"base": exported.ranges, "adapted": exported.ranges}
    store = Cache(tmp_path / "cache")
    setup = SimpleNamespace(family=demo_arms.base.family, guidance=3.0, weights=np.ones(1))
    sampler: Any = SimpleNamespace(setup=setup, probes=("a probe",), store=store)
    reached: Any = SimpleNamespace(paths=("a file",), matched=lambda: ["a probe"])

    def shares(of: Arms, against: Arms = demo_arms) -> dict[str, float]:
        sources = ArtifactSources(of, exported.exporter, store, INT8, recipe.find("emoji"), layers)
        found = sensitivity.find(against, sources, sampler, reached, [order], Stopwatch(Silent()))[order]
        return dict(zip(found.layers, found.costs / found.costs.sum(), strict=True))

    before, after = shares(demo_arms), shares(shipped)
    layer = moved.removeprefix("unet.").split(".lora")[0]
    assert after[layer] > 2 * before[layer]
    assert shares(demo_arms) == before
    assert shares(shipped) == after
    assert shares(shipped, shipped)[layer] < after[layer] / 2  # held to itself it is as good as any other
    entries = store.root / "sensitivity"
    count = len(list(entries.glob("[!.]*")))
    shares(demo_arms, demo_arms.on(Device("cpu", "another processor")))
    assert len(list(entries.glob("[!.]*"))) == count + 1


def _whole(content: QuantizedWeights, layer: str) -> torch.Tensor:
    """What the artifact multiplies with, an unmerged branch included."""
    weight = content.plan[layer].fake(content.state[f"{layer}.weight"])
    if layer in content.branches:
        down, up = content.branches[layer]
        weight = weight + (up @ down.flatten(1)).view(weight.shape)
    return weight


def test_the_demos_denoiser_answers_as_the_score_says(demo_arms: Arms, prepared: Prepared) -> None:
    """A small error in a convolution, in layers that share their input, and in one that reads the text."""
    model, draws = prepared.unet, torch.Generator().manual_seed(1)
    names = [
        "down_blocks.0.resnets.0.conv1",
        *(n for n, _ in plan.linear_layers(model) if n.endswith(("attn1.to_q", "attn2.to_k"))),
    ]
    held: Errors = {}
    for name in names[:1] + names[1:3] + names[-2:]:
        weight = model.get_submodule(name).weight
        change = 1e-3 * weight.std() * torch.randn(weight.shape, generator=draws)
        held = {
            **held,
            name: LayerError(functools.partial(torch.clone, change), LayerPlan(prepared.plan[name].weight, None)),
        }
    given = {name: value[:2] if len(value) > 1 else value for name, value in prepared.inputs.items()}
    family: Any = SimpleNamespace(module=model, fixed=frozenset({"timestep"}))
    setup: Any = SimpleNamespace(family=family, guidance=3.0, weights=np.ones(1))
    spot = EvaluationPoint(given, 2, 0, "demo")
    found = sensitivity.score(demo_arms, setup, {"case": held}, [spot])["case"]
    with demo_arms.held("adapted") as family:
        entry = family.entry(model).double()
    try:
        feed = {name: torch.from_numpy(value).double() for name, value in given.items()}
        with torch.no_grad():
            whole = entry(**feed)
            z = sensitivity.cotangent(spot, whole.shape, 3.0, 0).double()
            for place, (layer, error) in enumerate(held.items()):
                with disturbed(model, {layer: error}):
                    expected = float((z * (entry(**feed) - whole)).sum())
                assert found.parts[0, place, 0] == pytest.approx(expected, rel=0.02, abs=1e-4)
                assert found.parts[0, place, 1] == 0
    finally:
        entry.float()


def test_places_cover_the_strata_and_go_where_noise_counts_most() -> None:
    found = sensitivity.places(np.array([8.0, 1.0, 1.0]), 4, 8)
    assert len(set(found)) == len(found) == 8
    counts = np.bincount([stratum for _, stratum in found])
    assert list(counts) == [4, 2, 2]  # all probes at the heavy one
    assert len(sensitivity.places(np.ones(3), 2, 99)) == 6
    heavy = [stratum for _, stratum in sensitivity.places(np.array([6.0, 1.0, 1.0]), 99, 9)]
    assert list(np.bincount(heavy)) == [7, 1, 1]  # 36 / (6 * 7) is still more than 1 / 2


@pytest.mark.parametrize(
    ("layer", "block", "kind"),
    [
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", "down_blocks.1", "attn2.to_k"),
        ("up_blocks.2.resnets.0.conv1", "up_blocks.2", "resnets.conv1"),
        ("mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj", "mid_block", "net.proj"),
        ("transformer_blocks.11.attn.to_out.0", "transformer_blocks.11", "attn.to_out"),
        ("conv_in", "conv_in", "conv_in"),
    ],
)
def test_blocks_and_kinds(layer: str, block: str, kind: str) -> None:
    assert (scores.block(layer), scores.kind(layer)) == (block, kind)


def test_scores_are_read_as_written(tmp_path: Path) -> None:
    draws = np.random.default_rng(3)
    made = Scores(("a.0", "b.1"), np.arange(2), np.array([0, 1]), np.array([0.5, 0.5]), draws.normal(size=(2, 2, 2)))
    made.save(tmp_path / "scores.npz")
    read = scores.load(tmp_path / "scores.npz")
    assert read.layers == made.layers
    np.testing.assert_array_equal(read.costs, made.costs)
    assert read.grouped(lambda _: "all") == pytest.approx({"all": made.costs.sum()})


def test_a_check_names_the_layers_that_carry_the_gap(finished: Finished) -> None:
    (case,) = finished.report["cases"]
    shares = [layer["share"] for layer in case["layers"]]
    assert len(shares) == case["quantized_layers"]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1)
    assert not {layer["name"] for layer in case["layers"]} & set(case["kept_layers"])
    assert any(layer["activation"] > layer["weight"] for layer in case["layers"])
    shown = " ".join(finished.result.output.split())
    assert all(f"of the gap: {layer['name']}, its" in shown for layer in case["layers"][:5])
    assert case["layers"][5]["name"] not in shown
