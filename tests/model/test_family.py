"""Every family against diffusers' own pipeline: conditions, noise, solver and how the denoiser is called."""

import inspect
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

from qcheck.core.cache import Cache
from qcheck.core.errors import UserError
from qcheck.model import family, load
from qcheck.model.arms import Arms
from qcheck.model.family.shift import empirical_shift
from qcheck.sampling import solvers, subject
from qcheck.sampling.sampler import Sampler
from qcheck.sampling.store import Trace
from qcheck.spec.probe import Probe, ProbeSet
from tests import families

PROMPTS = ("a red fox", "two boats, oil on canvas")
WIDE = {"width": 64, "height": 32}


@pytest.fixture(scope="module", params=list(families.FAMILIES))
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> load.Base:
    return load.load(str(families.saved(request.param, tmp_path_factory.mktemp("base") / request.param)))


def _traced(loaded: load.Base, chosen: ProbeSet, folder: Path) -> Trace:
    both = Arms(loaded, loaded, (), (), (), {"base": {}, "adapted": {}}, {})
    sampler = Sampler.of(both, chosen, 4, 2, Cache(folder))
    return sampler.reference(subject.full(both, "adapted"), lambda _: None)


def _told(of: family.Family, guidance: float) -> dict[str, float]:
    """The guidance under the pipeline's own name."""
    return {"true_cfg_scale" if isinstance(of, family.QwenImage) else "guidance_scale": guidance}


@pytest.mark.parametrize(("guidance", "negative"), [(0.0, ""), (1.0, ""), (4.0, ""), (4.0, "blurry")])
def test_the_reference_is_what_diffusers_draws(
    loaded: load.Base, guidance: float, negative: str, tmp_path: Path
) -> None:
    chosen = ProbeSet(name="two", prompts=PROMPTS, negative=negative, seed=5, steps=3, guidance=guidance, **WIDE)
    if negative and loaded.family.branches == 1:
        with pytest.raises(UserError, match="no use for one"):
            _traced(loaded, chosen, tmp_path)
        return
    found = np.stack(_traced(loaded, chosen, tmp_path).finals())
    pictures = loaded.family.decode(torch.from_numpy(found)).permute(0, 2, 3, 1).numpy()
    assert pictures.shape == (2, 32, 64, 3)
    refusing = _refusing(loaded.pipe, negative)
    for index, prompt in enumerate(PROMPTS):
        theirs = loaded.pipe(
            prompt=prompt,
            num_inference_steps=3,
            **_told(loaded.family, guidance),
            generator=torch.Generator().manual_seed(5 + index),
            output_type="np",
            **WIDE,
            **refusing,
            **_own(loaded.pipe),
        ).images[0]
        assert np.abs(pictures[index] - theirs).max() < 1e-4


def _own(pipe: Any) -> dict[str, Any]:
    """What a pipeline has to be told to draw three steps at that size."""
    own = {"use_resolution_binning": False, "intermediate_timesteps": None}
    asked = inspect.signature(pipe.__call__).parameters
    return {name: value for name, value in own.items() if name in asked}


def _refusing(pipe: Any, negative: str) -> dict[str, Any]:
    """A negative prompt as the pipeline takes it; Qwen-Image guides with one alone, FLUX.2 klein takes embeddings."""
    if isinstance(pipe, diffusers.QwenImagePipeline):
        negative = negative or " "
    if not negative:
        return {}
    if "negative_prompt" in inspect.signature(pipe.__call__).parameters:
        return {"negative_prompt": negative}
    return {"negative_prompt_embeds": pipe.encode_prompt(negative)[0]}


def test_guidance_reaches_the_output_where_the_family_has_it(loaded: load.Base, tmp_path: Path) -> None:
    finals = []
    for guidance in (2.0, 6.0):
        chosen = ProbeSet(name="one", prompts=PROMPTS[:1], seed=5, steps=2, guidance=guidance, **WIDE)
        finals.append(_traced(loaded, chosen, tmp_path).finals()[0])
    told = loaded.family.branches > 1 or loaded.family.config.guidance_embeds
    assert np.array_equal(*finals) != told


def test_a_side_that_no_latent_has_is_refused(loaded: load.Base) -> None:
    step = loaded.family.multiple
    with pytest.raises(UserError, match=f"no multiple of {step}"):
        loaded.family.shape(32 + step // 2, 32)


def test_tokens_of_flux_go_there_and_back() -> None:
    made = family.find(
        {"transformer": ["diffusers", "FluxTransformer2DModel"]} | _parts("text_encoder", "text_encoder_2")
    )
    assert made is not None
    spoken = made(None)
    latents = np.random.default_rng(0).normal(size=(2, 16, 4, 6)).astype(np.float32)
    words = {
        "encoder_hidden_states": np.zeros((2, 3, 8), np.float32),
        "pooled_projections": np.zeros((2, 8), np.float32),
    }
    fed = spoken.feed(latents, 500.0, words)
    assert fed["hidden_states"].shape == (2, 6, 64)
    assert fed["img_ids"].tolist()[:4] == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0]]
    assert np.array_equal(spoken.read(fed["hidden_states"], latents.shape), latents)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sd1", "StableDiffusionImg2ImgPipeline"),
        ("sd1", "StableDiffusionInpaintPipeline"),
        ("sdxl", "StableDiffusionXLImg2ImgPipeline"),
        ("sd3.5-medium", "StableDiffusion3InpaintPipeline"),
        ("flux", "FluxInpaintPipeline"),
        ("flux2-klein", "Flux2KleinInpaintPipeline"),
        ("chroma", "ChromaImg2ImgPipeline"),
    ],
)
def test_a_pipeline_of_another_task_is_sampled_from_text(name: str, kind: str, tmp_path: Path) -> None:
    plain = load.load(str(families.saved(name, tmp_path / "plain")))
    with families.quiet():
        getattr(diffusers, kind).from_pipe(families.FAMILIES[name]()).save_pretrained(tmp_path / "other")
    other = load.load(str(tmp_path / "other"))
    chosen = ProbeSet(name="one", prompts=PROMPTS[:1], seed=5, steps=2, guidance=3.0, **WIDE)
    first, second = (_traced(base, chosen, tmp_path / str(place)).finals() for place, base in enumerate((plain, other)))
    assert np.array_equal(first[0], second[0])


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_few_steps_of_sana_sprint_are_those_of_its_pipeline(steps: int, tmp_path: Path) -> None:
    """Two steps have a time of their own between them."""
    base = load.load(str(families.saved("sana-sprint", tmp_path / "base")))
    chosen = ProbeSet(name="two", prompts=PROMPTS, seed=5, steps=steps, guidance=4.5, **WIDE)
    reached = _traced(base, chosen, tmp_path).finals()
    own = _own(base.pipe)
    for index, prompt in enumerate(PROMPTS):
        theirs = base.pipe(
            prompt,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(5 + index),
            output_type="latent",
            **WIDE,
            **({name: value for name, value in own.items() if steps != 2 or "binning" in name}),
        ).images[0]
        assert np.abs(reached[index] - theirs.numpy()).max() < 1e-4


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_picture_of_sana_sprint_is_noised_to_the_state_of_its_step(steps: int) -> None:
    """A model that knows the picture ends at it from every such state."""
    pipe = families.FAMILIES["sana-sprint"]()
    kind = family.find(pipe.config)
    assert kind is not None
    spoken, (picture, noise) = kind(pipe), torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    for index in range(steps):
        solver = solvers.walk(spoken.solver(steps, spoken.shape(32, 32)), 0, index)
        x = solvers.noised(spoken.solver(steps, spoken.shape(32, 32)), index, picture, noise)
        angle = solver.timesteps[index]
        fed = solvers.scaled(solver, x, angle)
        time = torch.sin(angle) / (torch.cos(angle) + torch.sin(angle))
        assert torch.allclose(fed, (1 - time) * picture + time * noise, atol=1e-5)
        _, denoised = solver.inner.step(
            ((1 - 2 * time) * fed + (1 - 2 * time + 2 * time**2) * (noise - picture))
            / torch.sqrt(time**2 + (1 - time) ** 2)
            * solver.init_noise_sigma,
            angle,
            x,
            return_dict=False,
        )
        assert torch.allclose(denoised / solver.init_noise_sigma, picture, atol=1e-4)


def test_the_instruction_of_sana_is_read_before_every_prompt() -> None:
    pipe = families.FAMILIES["sana"]()
    kind = family.find(pipe.config)
    assert kind is not None
    spoken = kind(pipe)
    for part in spoken.parts():
        part.eval()
    (encoder, *_) = spoken.others(spoken.shape(32, 32))
    with torch.no_grad():
        (states,) = encoder.module(**spoken.tokens("text_encoder", ["A red Fox "]))
        probe = Probe(prompt="A red Fox ", negative="", weights=(), seed=1, guidance=1.0, steps=2, width=32, height=32)
        conditions = spoken.conditions(probe)
    assert torch.equal(conditions["encoder_hidden_states"][:, 1:], states[:, -299:])
    assert spoken.cut("text_encoder", "a red fox") == ""
    assert spoken.cut("text_encoder", "a" * 298 + "bc") == "bc"


@pytest.mark.parametrize(("tokens", "steps"), [(96, 4), (4096, 50), (4300, 28), (4301, 28), (16384, 4)])
def test_the_shift_of_flux2_is_that_of_diffusers(tokens: int, steps: int) -> None:
    assert empirical_shift(tokens, steps) == pytest.approx(compute_empirical_mu(tokens, steps), rel=1e-12)


def test_prompts_of_a_language_model_are_cut_at_their_own_end() -> None:
    pipe = families.FAMILIES["flux2-klein"]()
    kind = family.find(pipe.config)
    assert kind is not None
    spoken, before = kind(pipe), len("<|im_start|>user\n") - len("<|im_start|>") + 1
    fitting = "a" * (512 - before)
    assert spoken.cut("text_encoder", fitting) == ""  # only the end of the template is lost
    assert spoken.cut("text_encoder", f"{fitting}bc") == "bc"


def test_pictures_are_encoded_as_patches_and_back() -> None:
    pipe = families.FAMILIES["flux2-klein"]()
    kind = family.find(pipe.config)
    assert kind is not None
    spoken, pictures = kind(pipe), torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(3))
    for part in spoken.parts():
        part.eval()
    with torch.no_grad():
        theirs = pipe._encode_vae_image(pictures * 2 - 1, torch.Generator())
    assert torch.allclose(spoken.encode(pictures), theirs, atol=1e-5)
    assert torch.allclose(spoken.scaled(spoken.unscaled(theirs)), theirs, atol=1e-5)


def _parts(*encoders: str) -> dict[str, list[str]]:
    tokenizers = [name.replace("text_encoder", "tokenizer") for name in encoders]
    return {name: ["x", "X"] for name in ("vae", "scheduler", *encoders, *tokenizers)}


@pytest.mark.parametrize(
    ("denoiser", "encoders", "expected"),
    [
        ({"unet": ["d", "UNet2DConditionModel"]}, ("text_encoder",), "StableDiffusion"),
        ({"unet": ["d", "UNet2DConditionModel"]}, ("text_encoder", "text_encoder_2"), "StableDiffusionXL"),
        ({"transformer": ["d", "SD3Transformer2DModel"]}, ("text_encoder", "text_encoder_2"), "StableDiffusion3"),
        ({"transformer": ["d", "SD3Transformer2DModel"]}, ("text_encoder",), None),
        ({"unet": ["d", "UNet2DConditionModel"]}, ("text_encoder_2",), None),  # SDXL's refiner
        ({"unet": ["d", "UNet3DConditionModel"]}, ("text_encoder",), None),
        ({"unet": ["d", "UNet2DConditionModel"], "controlnet": ["d", "C"]}, ("text_encoder",), None),
        ({"transformer": ["d", "QwenImageTransformer2DModel"]}, ("text_encoder",), "QwenImage"),
        ({"transformer": ["d", "ChromaTransformer2DModel"]}, ("text_encoder",), "Chroma"),
        ({"transformer": ["d", "SanaTransformer2DModel"]}, ("text_encoder",), "Sana"),
        ({"transformer": ["d", "Flux2Transformer2DModel"]}, ("text_encoder",), None),  # FLUX.2 dev
        ({"transformer": ["d", "HunyuanDiT2DModel"]}, ("text_encoder",), None),
    ],
)
def test_a_pipeline_is_of_the_family_whose_parts_it_has(
    denoiser: dict[str, list[str]], encoders: tuple[str, ...], expected: str | None
) -> None:
    found = family.find({"_class_name": "Any", **denoiser, **_parts(*encoders)})
    assert (found.__name__ if found else None) == expected
