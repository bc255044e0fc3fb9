"""The exam on the user's own pictures: what the denoiser should say, and what is left of the adapter's benefit."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from qcheck.api.request import check_spec
from qcheck.core.cache import Cache
from qcheck.core.errors import UserError
from qcheck.core.progress import Silent, Stopwatch
from qcheck.measure.sample import Sample
from qcheck.model.arms import Arms
from qcheck.sampling import solvers, subject
from qcheck.sampling.sampler import Sampler
from qcheck.tasks import exam

DRAWN = Path(__file__).parent / "report" / "folder" / "pictures"


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("DDIMScheduler", {"prediction_type": "epsilon"}),
        ("DDIMScheduler", {"prediction_type": "v_prediction"}),
        ("DDIMScheduler", {"prediction_type": "sample"}),
        ("EulerDiscreteScheduler", {"prediction_type": "epsilon"}),
        ("EulerDiscreteScheduler", {"prediction_type": "v_prediction"}),
    ],
)
@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")
def test_a_solver_that_is_told_the_target_sees_the_picture(name: str, config: dict[str, Any]) -> None:
    def solver() -> Any:
        made = getattr(diffusers, name)(**config, **({"clip_sample": False} if name == "DDIMScheduler" else {}))
        made.set_timesteps(4)
        return made

    latents, noise = (torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(n)) for n in (0, 1))
    setup: Any = SimpleNamespace(solver=solver)
    for index, timestep in enumerate(solver().timesteps):
        state = solvers.noised(solver(), index, latents, noise)
        walked = solvers.walk(solver(), 0, index)
        solvers.scaled(walked, state, timestep)
        told = walked.step(exam.target(setup, index, latents, noise), timestep, state).pred_original_sample
        assert torch.allclose(told, latents, atol=1e-4), (index, (told - latents).abs().max())


def test_flow_goes_from_the_picture_to_the_noise() -> None:
    def solver() -> Any:
        made = diffusers.FlowMatchEulerDiscreteScheduler()
        made.set_timesteps(4)
        return made

    latents, noise = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    setup: Any = SimpleNamespace(solver=solver)
    assert torch.equal(exam.target(setup, 0, latents, noise), noise - latents)
    odd = SimpleNamespace(solver=lambda: SimpleNamespace(config={"prediction_type": "score"}))
    with pytest.raises(UserError, match="'score', whose loss is not known"):
        exam.target(odd, 0, latents, noise)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def asked(demo_arms: Arms, tmp_path_factory: pytest.TempPathFactory) -> exam.Exam:
    """Pictures that the adapter "flat" drew, with their prompts."""
    folder = tmp_path_factory.mktemp("style")
    for number in range(6):
        with Image.open(DRAWN / f"f1-{number // 2 + 1}.webp") as picture:
            (picture if number % 2 else ImageOps.mirror(picture)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("green frog" if number % 2 else "red apple")
    spec = check_spec("demo", "flat", scheme="int8", style_pictures=folder, threads=1)
    store, watch = Cache(tmp_path_factory.mktemp("cache")), Stopwatch(Silent())
    found = exam.of(demo_arms, spec, Sampler.of(demo_arms, spec.probes, 2, 8, store), watch)
    assert found is not None
    return found


def test_the_whole_benefit_is_one_and_the_base_has_none_of_it(demo_arms: Arms, asked: exam.Exam) -> None:
    for side, expected in (("adapted", 1.0), ("base", 0.0)):
        found = asked.measure(subject.full(demo_arms, side))  # type: ignore[arg-type]
        assert isinstance(found, Sample), found
        assert found.values == pytest.approx(np.full(6, expected))


def test_losses_are_taken_without_guidance_and_kept(demo_arms: Arms, asked: exam.Exam) -> None:
    assert {one.guidance for one in asked.sampler.probes} == {1.0}
    assert [one.prompt for one in asked.sampler.probes[:2]] == ["red apple", "green frog"]
    arm = subject.full(demo_arms, "adapted")
    first = asked.losses(arm)
    assert ((first > 0) & (first < 1)).all()

    def never() -> Any:
        raise AssertionError

    assert np.array_equal(asked.losses(subject.Subject(arm.name, arm.side, arm.content, never)), first)


def test_no_pictures_no_exam_and_two_are_too_few(demo_arms: Arms, tmp_path: Path) -> None:
    spec = check_spec("demo", "flat", scheme="int8", threads=1)
    sampler, watch = Sampler.of(demo_arms, spec.probes, 2, 8, Cache(tmp_path / "cache")), Stopwatch(Silent())
    assert exam.of(demo_arms, spec, sampler, watch) is None
    few = tmp_path / "few"
    few.mkdir()
    for match in ("--style-pictures .* holds no picture", "holds 2 pictures"):
        with pytest.raises(UserError, match=match):
            exam.of(demo_arms, spec.changed(style_pictures=str(few)), sampler, watch)
        for number in (1, 2):
            shutil.copy(DRAWN / f"f1-{number}.webp", few)


def test_a_folder_has_the_digest_of_the_exam_on_it(asked: exam.Exam) -> None:
    spec, folder = check_spec("demo", "flat", scheme="int8"), Path(asked.folder)
    assert exam.digest_of_pictures(spec, folder) == asked.digest
    (folder / "1.txt").write_text("blue whale")
    assert exam.digest_of_pictures(spec, folder) != asked.digest
