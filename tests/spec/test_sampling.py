"""The steps and the guidance of a base that says what it is made for, and of one that does not."""

import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest

from qcheck.api.request import check_spec
from qcheck.model import family
from qcheck.spec import command, sampling
from qcheck.spec.sampling import Sampling
from qcheck.tasks import workload
from tests.spec.test_command import parse

CARD = """# A base
```python
pipe(prompt, num_inference_steps=4, guidance_scale=0.0)
pipe(prompt, num_inference_steps=30, guidance_scale=9)
```
"""


def _base(folder: Path, kind: str = "StableDiffusionPipeline", **files: Any) -> Path:
    for name, content in {"model_index.json": {"_class_name": kind}, **files}.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def _found(folder: Path) -> tuple[int, float]:
    found = sampling.of_base(folder)
    assert found is not None
    return found[0].steps, found[0].guidance


def test_the_defaults_are_those_of_diffusers() -> None:
    assert set(sampling.defaults().pipelines) == {one.pipeline for one in family.FAMILIES}
    for name, usual in sampling.defaults().pipelines.items():
        asked = inspect.signature(getattr(diffusers, name).__call__).parameters
        scale = "true_cfg_scale" if name == "QwenImagePipeline" else "guidance_scale"
        same = Sampling(steps=asked["num_inference_steps"].default, guidance=float(asked[scale].default))
        assert same == usual


@pytest.mark.parametrize(
    ("files", "wanted", "source"),
    [
        ({}, (50, 7.5), "default of StableDiffusionPipeline"),
        ({"README.md": CARD}, (4, 0.0), "README.md"),
        ({"README.md": "pipe(num_inference_steps = 8)"}, (8, 7.5), "README.md and the default"),
        ({"README.md": "pipe(num_inference_steps=9, true_cfg_scale=4.0)"}, (9, 4.0), "README.md"),
        ({"README.md": "no numbers"}, (50, 7.5), "default"),
        ({"scheduler__scheduler_config.json": {"_class_name": "LCMScheduler"}}, (4, 1.0), "LCMScheduler"),
        ({"scheduler__scheduler_config.json": {"_class_name": "DDIMScheduler"}}, (50, 7.5), "default"),
        ({"scheduler__scheduler_config.json": "{"}, (50, 7.5), "default"),
    ],
)
def test_a_base_says_how_it_is_sampled(
    tmp_path: Path, files: dict[str, Any], wanted: tuple[int, float], source: str
) -> None:
    found = sampling.of_base(_base(tmp_path, **files))
    assert found is not None
    assert (found[0].steps, found[0].guidance) == wanted
    assert source in found[1]


def test_a_flux_without_a_guidance_input_takes_few_steps(tmp_path: Path) -> None:
    for guided, wanted in ((True, (28, 3.5)), (False, (4, 1.0))):
        files = {"transformer__config.json": {"guidance_embeds": guided}}
        assert _found(_base(tmp_path / str(guided), "FluxPipeline", **files)) == wanted


def test_z_image_turbo_takes_few_steps_without_guidance(tmp_path: Path) -> None:
    for shift, wanted in ((6.0, (50, 5.0)), (3.0, (8, 0.0))):
        files = {"scheduler__scheduler_config.json": {"shift": shift}}
        assert _found(_base(tmp_path / str(shift), "ZImagePipeline", **files)) == wanted


@pytest.mark.parametrize("kind", ["FluxInpaintPipeline", "FluxImg2ImgPipeline"])
def test_a_pipeline_of_another_task_is_sampled_as_its_models_are(kind: str, tmp_path: Path) -> None:
    assert _found(_base(tmp_path, kind)) == (28, 3.5)


def test_what_is_no_known_pipeline_says_nothing(tmp_path: Path) -> None:
    assert sampling.of_base(_base(tmp_path, "AnotherPipeline")) is None
    assert sampling.of_base(tmp_path / "absent") is None


def test_a_request_takes_them_from_the_base_unless_it_names_others(tmp_path: Path) -> None:
    base, lora = _base(tmp_path / "base", **{"README.md": CARD}), tmp_path / "a.safetensors"
    lora.write_bytes(b"")
    asked = check_spec(base, lora, scheme="int8", threads=1)
    assert (asked.probes.steps, asked.probes.guidance) == (4, 0.0)
    assert (parse(command.words(asked, tmp_path)[1:])) == asked
    assert workload.sampling_origin(asked) == (
        "4 steps at guidance 0, by the base's README.md; --steps and --guidance change that"
    )
    hub = check_spec("some/base", lora, scheme="int8", threads=1)
    assert (hub.probes.steps, hub.probes.guidance, workload.sampling_origin(hub)) == (20, 7.5, None)
    other = check_spec(base, lora, scheme="int8", threads=1, guidance=3.0)
    assert workload.sampling_origin(other) is None
    assert (other.probes.steps, other.probes.guidance) == (4, 3.0)
    own = check_spec(base, lora, scheme="int8", threads=1, probes="emoji")
    assert (own.probes.steps, own.probes.guidance) == (20, 3.0)
    said = check_spec(base, lora, scheme="int8", threads=1, prompts=["a red ball", "a blue ball"])
    assert (said.probes.steps, said.probes.guidance) == (4, 0.0)
    for number, spec in enumerate((said, other, check_spec(base, lora, prompts=["a", "b"], guidance=2.0, threads=1))):
        command.save(spec, tmp_path / str(number))
        assert parse(command.words(spec, tmp_path / str(number))[1:]) == spec
