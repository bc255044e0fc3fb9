"""Every solver that a text-to-image pipeline of diffusers accepts, against the pipeline itself."""

from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import KDPM2DiscreteScheduler, StableDiffusionXLPipeline
from diffusers.utils import is_torchsde_available

from qcheck.core.cache import Cache
from qcheck.model import load
from qcheck.model.arms import Arms
from qcheck.sampling import solvers, subject
from qcheck.sampling.sampler import Sampler
from qcheck.sampling.store import Trace
from qcheck.spec.probe import ProbeSet
from tests import families

DISCRETE = sorted({kind.__name__ for kind in families.FAMILIES["sd1"]().scheduler.compatibles})
OTHERS = ["DDIMParallelScheduler", "IPNDMScheduler", "LCMScheduler", "SASolverScheduler", "TCDScheduler"]
FLOW = ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler"]
# some solvers still call NumPy as its first version was called
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")
STEPS, PROMPT, SEED = 5, "a red fox", 5


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("base")
    return {family: families.saved(family, folder / family) for family in ("sd1", "sd3")}


def _traces(base: load.Base, folder: Path) -> tuple[Trace, Trace]:
    """Free runs, and the same arm asked at the states that they visited."""
    both = Arms(base, base, (), (), (), {"base": {}, "adapted": {}}, {})
    asked = ProbeSet(name="one", prompts=(PROMPT,), seed=SEED, steps=STEPS, guidance=3.0, width=32, height=32)
    sampler = Sampler.of(both, asked, 2 * STEPS, 1, Cache(folder))
    arm = subject.full(both, "adapted")
    free = sampler.reference(arm, lambda _: None)
    return free, sampler.forced(arm, free, lambda _: None)


@pytest.mark.parametrize("name", [*DISCRETE, *OTHERS, *FLOW])
def test_a_solver_is_asked_as_the_pipeline_asks_it(saved: dict[str, Path], name: str, tmp_path: Path) -> None:
    base, kind = load.load(str(saved["sd3" if name in FLOW else "sd1"])), getattr(diffusers, name)
    config = {} if name == "EDMEulerScheduler" else base.pipe.scheduler.config  # it has nothing in common with others
    if name == "DPMSolverSDEScheduler" and not is_torchsde_available():
        pytest.skip("diffusers needs torchsde for it")
    with families.quiet():
        base.pipe.scheduler = kind.from_config(config)
    free, forced = _traces(base, tmp_path)
    assert np.array_equal(forced.outputs()[0], free.outputs()[0])
    if name == "FlowMatchLCMScheduler":
        return  # Stable Diffusion 3's pipeline lets it draw noise that no seed determines
    theirs = base.pipe(
        PROMPT,
        num_inference_steps=STEPS,
        guidance_scale=3.0,
        width=32,
        height=32,
        generator=torch.Generator().manual_seed(SEED),
        output_type="latent",
    ).images
    assert np.abs(free.finals()[0] - theirs[0].numpy()).max() < 1e-4


def test_the_scale_of_an_input_is_that_of_its_call() -> None:
    """KDPM2's two calls of a step are scaled by different sigmas, which the number of the call alone does not tell."""
    solver, walked = KDPM2DiscreteScheduler(), []
    solver.set_timesteps(4)
    ones = torch.ones(1, 1, 1, 1)
    for timestep in solver.timesteps:
        walked.append(float(solvers.scaled(solver, ones, timestep)))
        solvers.step(solver, torch.zeros_like(ones), timestep, ones, None)
    for index, expected in enumerate(walked):
        fresh = KDPM2DiscreteScheduler()
        fresh.set_timesteps(4)
        reached = solvers.walk(fresh, 0, index)
        assert float(solvers.scaled(reached, ones, reached.timesteps[index])) == expected


def test_the_moments_of_latents_by_channel_are_read(tmp_path: Path) -> None:
    """As in Playground 2.5, whose autoencoder has them instead of one scale."""
    pipe: StableDiffusionXLPipeline = families.FAMILIES["sdxl"]()
    pipe.vae.register_to_config(
        latents_mean=[-1.6574, 1.886, -1.383, 2.5155], latents_std=[8.4927, 5.9022, 6.5498, 5.2299], scaling_factor=0.5
    )
    with families.quiet():
        pipe.save_pretrained(tmp_path / "base")
    base = load.load(str(tmp_path / "base"))
    options = {"num_inference_steps": 2, "guidance_scale": 3.0, "width": 32, "height": 32}
    latents, pictures = (
        base.pipe(PROMPT, generator=torch.Generator().manual_seed(SEED), output_type=kind, **options).images
        for kind in ("latent", "pt")
    )
    assert float((base.family.decode(latents) - pictures).abs().max()) < 1e-4
    raw = base.family.unscaled(latents)
    assert torch.allclose(base.family.scaled(raw), latents, atol=1e-4)
