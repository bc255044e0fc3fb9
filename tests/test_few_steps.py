"""Few steps without guidance: a step-distillation adapter in both arms, under a style that is judged."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
)

from qcheck.demo import library
from qcheck.model import arms, load, lora
from qcheck.model.arms import Arms
from qcheck.sampling import subject as subjects
from qcheck.spec.arm import SIDES, Side
from qcheck.spec.probe import ProbeSet
from qcheck.spec.use import Use
from tests.conftest import run
from tests.test_trace import quiet, sampler_for

CHOSEN = ProbeSet(name="four", prompts=("red apple", "panda", "ghost", "fish"), seed=7, steps=4, guidance=1.0)


def stacked(pipeline: Path = library.PIPELINE) -> Arms:
    """The demo's style "flat" judged on a base to which "few" belongs."""
    flat, few = (
        lora.read(Use(source=str(library.ADAPTERS / f"{name}.safetensors"), weight=1.0)) for name in ("flat", "few")
    )
    return arms.apply(load.load(str(pipeline)), [flat], [few])


@pytest.fixture(scope="module")
def stack() -> Arms:
    return stacked()


def test_what_belongs_to_both_arms_is_in_the_base_and_not_judged(stack: Arms, demo_arms: Arms) -> None:
    def weights(both: Arms, side: Side) -> dict[str, torch.Tensor]:
        return {name: weight.clone() for name, weight in both.state(side).items()}

    with_few, without = ({side: weights(both, side) for side in SIDES} for both in (stack, demo_arms))
    distilled = {n for n, w in with_few["base"].items() if not torch.equal(w, without["base"][n])}
    assert any("resnets" in name for name in distilled)
    assert all(stack.content(side) != demo_arms.content(side) for side in SIDES)
    assert stack.layers == demo_arms.layers
    for name in with_few["base"]:
        judged, alone = (w["adapted"][name] - w["base"][name] for w in (with_few, without))
        assert torch.allclose(judged, alone, atol=1e-6), name


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_a_check_of_few_steps_sees_each_of_them_and_ends_in_a_verdict(tmp_path: Path, steps: int) -> None:
    out, prompts = tmp_path / "out", tmp_path / "prompts.txt"
    prompts.write_text("[fruit]\nred apple\n[animal]\npanda\n")
    stack = ("--lora", "flat", "--with-lora", "few", "--steps", str(steps), "--guidance", "1")
    quick = ("--scheme", "int4-g128", "--max-probes", "2", "--no-build", "--threads", "1", "--prompts", str(prompts))
    result = run("check", "demo", *stack, *quick, "--out", str(out))
    assert result.exit_code in (0, 1, 3), result.exception
    report = json.loads((out / "report.json").read_text())
    assert [(Path(a["source"]).stem, a["arms"]) for a in report["adapters"]] == [("flat", "adapted"), ("few", "both")]
    assert report["probes"]["timesteps"] == [999 - round(1000 / steps * index) for index in range(steps)]
    case = report["cases"][0]
    found = {(m["name"], m["arm"]): m for m in case["measurements"]}
    measured = [m for m in found.values() if m["status"] != "not measured"]
    assert all(isinstance(m["value"], float) for m in measured)  # a number that is not finite is a string
    assert found["export_control", "adapted"]["status"] == "pass"
    assert len(case["stratum_sqnr"]["adapted"]) == steps
    assert case["verdict"] != "INVALID"
    assert [(one["name"], one["probes"], one["survival"]["status"]) for one in case["groups"]] == [
        ("fruit", [1], "undecided"),
        ("animal", [2], "undecided"),
    ]
    assert found["group_survival", "adapted"]["status"] == "undecided"
    assert "group fruit: survival" in result.output
    assert run("audit", str(out)).exit_code == 0


def finals(both: Arms, chosen: ProbeSet, folder: Path, side: Side = "base") -> np.ndarray:
    """Final latents [n, C, h, w] of an arm's free run."""
    return np.stack(sampler_for(both, folder, chosen).reference(subjects.full(both, side), quiet).finals())


@pytest.mark.parametrize(
    ("prompts", "most"),
    [(("strawberry", "cat face", "fox", "penguin"), 0.6), (CHOSEN.prompts, 0.85)],
    ids=["prompts of its training", "unseen prompts"],
)
def test_four_steps_with_the_adapter_end_nearer_to_the_guided_base(
    stack: Arms, demo_arms: Arms, tmp_path: Path, prompts: tuple[str, ...], most: float
) -> None:
    """Unseen prompts gain less (training.json has their distances); noise is unseen in both."""
    chosen = CHOSEN.model_copy(update={"prompts": prompts})

    def distance(reached: np.ndarray) -> float:
        return float(np.mean([np.linalg.norm(r - t) / np.linalg.norm(t) for r, t in zip(reached, taught, strict=True)]))

    taught = finals(demo_arms, chosen.model_copy(update={"steps": 40, "guidance": 3.0}), tmp_path / "teacher")
    distilled = distance(finals(stack, chosen, tmp_path / "few"))
    plain = distance(finals(demo_arms, chosen, tmp_path / "plain"))
    guided = distance(finals(demo_arms, chosen.model_copy(update={"guidance": 3.0}), tmp_path / "guided"))
    assert distilled < most * min(plain, guided), (distilled, plain, guided)


def _with_solver(folder: Path, solver: type) -> None:
    """Give the pipeline in ``folder`` another solver, trailing like its own."""
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", solver.__name__]}))
    solver.from_config(solver.load_config(folder / "scheduler")).save_pretrained(folder / "scheduler")


@pytest.mark.parametrize(
    "solver",
    [
        LCMScheduler,
        TCDScheduler,  # Hyper-SD
        DDIMScheduler,
        EulerDiscreteScheduler,  # Lightning
        EulerAncestralDiscreteScheduler,  # Turbo
        DPMSolverMultistepScheduler,
    ],
)
def test_solvers_of_few_steps_draw_the_same_noise_in_every_arm_and_run(
    pipeline_copy: Path, tmp_path: Path, solver: type
) -> None:
    _with_solver(pipeline_copy, solver)
    both = stacked(pipeline_copy)
    sampling, f1 = sampler_for(both, tmp_path / "one", CHOSEN), subjects.full(both, "adapted")
    assert isinstance(sampling.setup.solver(), solver)
    reached = sampling.reference(f1, quiet)
    again = sampler_for(both, tmp_path / "two", CHOSEN).arm(f1, reached, quiet)
    assert np.array_equal(np.stack(again.finals()), np.stack(reached.finals()))
    single = sampler_for(both, tmp_path / "three", CHOSEN, batch=1)
    alone = replace(single, probes=single.probes[2:]).reference(f1, quiet)
    assert np.allclose(np.stack(alone.finals()), np.stack(reached.finals()[2:]), atol=1e-4)
    first = sampling.probes[0]
    with both.held("adapted") as family:
        drawn = family.pipe(
            first.prompt,
            num_inference_steps=first.steps,
            guidance_scale=first.guidance,
            generator=torch.Generator().manual_seed(first.seed),
            output_type="latent",
        ).images[0]
    assert np.abs(reached.finals()[0] - drawn.numpy()).max() < 1e-3
