"""The zoo's further pipelines before training: their conditions, noise and pictures are what the pipelines use."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qcheck.model.quiet import quiet
from tools.train_demo.denoiser import tokenizer
from tools.train_zoo import drawings
from tools.train_zoo.adapters import conditions_of
from tools.train_zoo.base import BASES, autoencoder
from tools.train_zoo.kinds import ids_of

PROMPTS = ["fine red waves on blue", "coarse green dots on black", "small pink star left on cyan"]
NO_MORE: dict[str, dict[str, None]] = {
    "velocity": {},
    "pair": {"prompt_2": None},
    "flow": {"prompt_2": None, "prompt_3": None},
}


@pytest.fixture(scope="module", params=sorted(BASES))
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any]]:
    """A kind's name, and its pipeline with random weights as it is saved and loaded."""
    name, folder = request.param, tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    vocabulary, kind = tokenizer(PROMPTS), BASES[request.param].kind
    with quiet():
        kind.save(dict(kind.parts(vocabulary).items()), autoencoder().half(), vocabulary, folder)
        yield name, kind.load(folder)


def test_conditions_are_those_of_the_pipeline(base: tuple[str, Any]) -> None:
    name, pipe = base
    with torch.no_grad(), quiet():
        positive, negative, *pooled = pipe.encode_prompt(
            prompt=PROMPTS[0],
            device="cpu",
            num_images_per_prompt=1,
            do_classifier_free_guidance=True,
            **NO_MORE[name],
        )
    kind = BASES[name].kind
    asked, empty = conditions_of(kind, pipe, PROMPTS[:1]), conditions_of(kind, pipe, ("",), dropped=True)
    assert torch.equal(asked["encoder_hidden_states"], positive)
    assert torch.equal(empty["encoder_hidden_states"], negative)
    for key in {"text_embeds", "pooled_projections"} & set(asked):
        assert torch.equal(asked[key], pooled[0])
        assert torch.equal(empty[key], pooled[1])


def test_noise_and_target_undo_each_other_through_the_solver(base: tuple[str, Any]) -> None:
    """One step of the solver from the noised latents along the right output lies on the way to the picture."""
    kind = BASES[base[0]].kind
    latents, noise = torch.randn(2, 2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    noised, times, target = kind.add_noise(latents, noise, torch.full((2,), 0.55))
    solver: Any = kind.scheduler()
    if hasattr(solver, "alphas_cumprod"):
        signal = solver.alphas_cumprod[times].sqrt().view(-1, 1, 1, 1)
        rest = (1 - signal**2).sqrt()
        velocity = getattr(solver.config, "prediction_type", "") == "v_prediction"
        picture = signal * noised - rest * target if velocity else (noised - rest * target) / signal
        assert solver.config.prediction_type == ("v_prediction" if velocity else "epsilon")
    else:
        picture = noised - (times / 1000).view(-1, 1, 1, 1) * target
    assert torch.allclose(picture, latents, atol=1e-4)


def test_a_loss_reaches_the_denoiser_and_every_encoder(base: tuple[str, Any]) -> None:
    name, pipe = base
    kind, vocabulary = BASES[name].kind, pipe.tokenizer
    parts = kind.parts(vocabulary)
    conditions = kind.conditions(parts, ids_of(vocabulary, PROMPTS), torch.zeros(len(PROMPTS), dtype=torch.bool))
    losses = kind.loss(parts, conditions, torch.randn(len(PROMPTS), 4, 16, 16), torch.Generator().manual_seed(0))
    losses.mean().backward()
    assert losses.shape == (len(PROMPTS),)
    for part in (kind.denoiser, *kind.encoders):
        assert any(p.grad is not None and bool(p.grad.abs().max() > 0) for p in parts[part].parameters())


def test_the_schedule_of_v_ends_in_pure_noise() -> None:
    kind, latents = BASES["velocity"].kind, torch.ones(1, 4, 2, 2)
    noise = torch.full_like(latents, 3.0)
    noised, times, target = kind.add_noise(latents, noise, torch.tensor([0.9999]))
    assert int(times) == 999
    assert torch.equal(noised, noise)
    assert torch.equal(target, -latents)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_and_a_seed_are_one_picture_and_styles_differ(prompt: str) -> None:
    pictures = {style: drawings.draw(prompt, style, 5) for style in drawings.STYLES}
    assert all(picture.shape == (64, 64, 3) for picture in pictures.values())
    assert np.array_equal(pictures["plain"], drawings.draw(prompt, "plain", 5))
    assert not np.array_equal(pictures["plain"], drawings.draw(prompt, "plain", 6))
    assert len({picture.tobytes() for picture in pictures.values()}) == len(pictures)


def test_every_prompt_names_what_is_drawn(tmp_path: Path) -> None:
    for prompts in (drawings.pattern_prompts(), drawings.scene_prompts()):
        assert len(set(prompts)) == len(prompts)
        chosen = prompts[:: len(prompts) // 3]
        once = drawings.pictures(chosen, "plain", 1, tmp_path)
        again = drawings.pictures(chosen, "plain", 1, tmp_path)
        assert once.names == tuple(chosen)
        assert torch.equal(once.images, again.images)
        assert float(once.images.abs().max()) <= 1
