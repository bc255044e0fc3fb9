"""``qcheck export``: a folder that any runtime of its parts can run, built as asked, with the device's script."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from torch import nn

from qcheck.build import script
from qcheck.core.digest import digest_of
from qcheck.demo import library
from qcheck.model.arms import Arms
from qcheck.model.components import Component
from qcheck.model.family.unet import StableDiffusion
from qcheck.runtime.ort_runner import session
from qcheck.tasks import export
from tests import builder, families
from tests.conftest import run


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The demo with "flat" as int8 for the default target, engines included."""
    folder = tmp_path_factory.mktemp("export") / "out"
    result = run("export", "demo", "--lora", "flat", "--scheme", "int8", "-o", str(folder))
    assert result.exit_code == 0, result.output
    assert "not judged" in result.output
    return folder, json.loads((folder / "manifest.json").read_text())


def test_the_layout_is_optimums(exported: tuple[Path, dict[str, Any]]) -> None:
    folder, page = exported
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    for name in ("text_encoder", "unet", "vae_decoder"):
        assert (folder / name / "model.onnx").is_file()
        assert json.loads((folder / name / "config.json").read_text())[
            "_class_name" if name != "text_encoder" else "architectures"
        ]
    for name in ("vocab.json", "merges.txt", "tokenizer.json"):
        assert (folder / "tokenizer" / name).is_file()
    assert (folder / "build.sh").stat().st_mode & 0o111
    assert {part["name"]: part["compute"] for part in page["parts"]} == dict.fromkeys(
        ("unet", "text_encoder", "vae_decoder"), "float16"
    )


def test_the_manifest_knows_every_file_and_every_layer(exported: tuple[Path, dict[str, Any]]) -> None:
    folder, page = exported
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(page["files"]) == written - {"manifest.json"}
    assert all(digest_of(folder / name) == digest for name, digest in page["files"].items())
    assert len(page["denoiser"]["layers"]) == 198
    assert {(layer["weight"], layer["activation"]) for layer in page["denoiser"]["layers"]} == {("int8", "int8")}


@builder.needed
def test_every_component_is_built_and_the_denoiser_as_asked(exported: tuple[Path, dict[str, Any]]) -> None:
    folder, page = exported
    for part in page["parts"]:
        build = part["build"]
        assert (build["status"], build["proxy"], build["capability"]) == ("built", True, "8.6"), part
        assert (folder / "engines" / "sm86" / f"{part['name']}.engine").stat().st_size == build["bytes"]
    assert page["parts"][0]["build"]["realised"]["operands"] == {"int8 x int8": 198}
    assert (folder / "engines" / "sm86" / "timing.cache").is_file()


def test_the_other_components_compute_what_torch_does(exported: tuple[Path, dict[str, Any]], demo_arms: Arms) -> None:
    folder, _ = exported
    pipe = demo_arms.base.pipe
    tokens = pipe.tokenizer(["cat face", ""], padding="max_length", return_tensors="pt").input_ids
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), demo_arms.held("adapted"):
        text = pipe.text_encoder(tokens)[0].numpy()
        picture = pipe.vae.decode(latents, return_dict=False)[0].numpy()
    ran = session(folder / "text_encoder" / "model.onnx", 1).run(None, {"input_ids": tokens.numpy()})
    decoded = session(folder / "vae_decoder" / "model.onnx", 1).run(
        None, {"latent_sample": latents.numpy().astype(np.float16)}
    )
    assert len(ran) == 2
    for found, wanted in ((ran[0], text), (decoded[0], picture)):
        assert found.dtype == np.float16
        assert float(np.linalg.norm(found.astype(np.float32) - wanted) / np.linalg.norm(wanted)) < 1e-2


@pytest.fixture(params=["sd1", pytest.param("demo", marks=pytest.mark.slow)])  # torch takes long over varying sides
def sized(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[list[str], int, int]:
    """A pipeline with its adapter as arguments; how many pixels are a latent's, and how wide its text is."""
    if request.param == "demo":
        return ["demo", "--lora", "flat"], 4, 128
    adapter = families.adapter(request.param, tmp_path / "adapter.safetensors")
    return [str(families.saved(request.param, tmp_path / request.param)), "--lora", str(adapter)], 2, 32


def test_several_sizes_are_one_file_and_one_engine(sized: tuple[list[str], int, int], tmp_path: Path) -> None:
    given, scale, width_of_text = sized
    shapes = ((16, 16), (16, 24), (32, 16))
    sizes = [word for height, width in shapes for word in ("--size", f"{scale * width}x{scale * height}")]
    result = run("export", *given, "-s", "int4-g128", *sizes, "-o", str(tmp_path / "out"), "--json")
    assert result.exit_code == 0, result.output
    page = json.loads(result.output)
    assert all(part["build"]["status"] in ("built", "not run") for part in page["parts"]), page["parts"]
    running = session(tmp_path / "out" / "unet" / "model.onnx", 1)
    for height, width in shapes:
        fed = {
            "sample": np.zeros((2, 4, height, width), np.float16),
            "timestep": np.array([500.0], np.float32),
            "encoder_hidden_states": np.zeros((2, 16, width_of_text), np.float16),
        }
        assert running.run(None, fed)[0].shape == (2, 4, height, width)
    written = (tmp_path / "out" / "build.sh").read_text()
    assert "--minShapes=sample:1x4x16x16" in written
    assert "--maxShapes=sample:2x4x32x24" in written


def test_the_script_has_the_least_the_usual_and_the_largest_shapes() -> None:
    said = script._call("unet", {"x": ((1, 4), (2, 4), (2, 8))}, [])
    assert said.split()[-6:] == ["\\", "--minShapes=x:1x4", "\\", "--optShapes=x:2x4", "\\", "--maxShapes=x:2x8"]


@pytest.mark.parametrize("shapes", [[(2, 4, 16, 16), (2, 4, 8, 32), (2, 4, 32, 16)], [(2, 4, 32, 16), (2, 4, 16, 16)]])
def test_what_an_export_needs_is_that_of_its_largest_size(
    shapes: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[tuple[int, ...]]()
    monkeypatch.setattr(export, "_latent_shapes", lambda *_: shapes)
    monkeypatch.setattr(export, "_denoiser_inputs", lambda _, shape: asked.append(shape) or {"x": np.zeros(shape)})
    monkeypatch.setattr(export.profile, "needs", lambda *_: None)
    session = MagicMock()
    session.arms.held.return_value.__enter__.return_value.latent = "x"
    export._needs(session, [])
    assert asked == [(2, 4, 32, 16)]


def test_what_is_no_file_or_no_size_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for given, said in (
        (("-s", "bnb-nf4"), "is no file"),
        (("--size", "64by64"), "is no size"),
        (("--size", "65x64"), "no multiple of 4"),
        (("--size", "64x64", "--size", "72x64"), "multiples of 16 where engines take several sizes"),
        (("-s", "fp8"), "FP8 (E4M3) needs SM 8.9"),
        (("--target", "jetson-agx-xavier"), "without strongly typed networks"),
        (("--base-arm",), "--base-arm is given, and no bundle"),
        (("--prompts", __file__), "an export runs no probes"),
    ):
        result = run("export", "demo", "--lora", "flat", *given, "-o", str(out), "--no-build")
        assert said in str(result.exception), given
        assert not out.exists()


def test_what_is_no_bundle_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    for given, said in (
        (("-o", str(tmp_path / "out")), "a bundle takes the place of an export"),
        (("--size", "64x64", "--size", "72x64"), "a bundle's engines take one"),
        (("-s", "nf4-g64"), "a board's engine cannot be built from it"),
    ):
        result = run("export", "demo", "--lora", "flat", *given, "--bundle", str(out), "--no-build")
        assert said in str(result.exception), given
        assert not out.exists()


class Loud(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.inner = nn.Identity()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x * self.factor) / self.factor


@pytest.mark.parametrize(("factor", "compute"), [(1.0, "float16"), (1e6, "bfloat16")])
def test_a_component_that_leaves_float16s_range_gets_bfloat16(factor: float, compute: str) -> None:
    part = Component("loud", Loud(factor), {"x": torch.zeros(2, 8)}, ("y",))
    assert export._safe(part, "float16") == compute
    assert export._safe(part, "bfloat16") == "bfloat16"
    assert export._safe(replace(part, upcast=True), "float16") == "bfloat16"  # as SDXL's autoencoder says of itself


def test_a_pipeline_from_newer_loaders_gets_the_files_that_older_ones_read(tmp_path: Path) -> None:
    export.copy_rest(library.PIPELINE, tmp_path, StableDiffusion, [16, 24])
    whole = json.loads((tmp_path / "tokenizer" / "tokenizer.json").read_text())["model"]
    assert json.loads((tmp_path / "tokenizer" / "vocab.json").read_text()) == whole["vocab"]
    assert json.loads((tmp_path / "unet" / "config.json").read_text())["sample_size"] == [16, 24]
    merges = (tmp_path / "tokenizer" / "merges.txt").read_text().splitlines()
    assert merges[0] == "#version: 0.2"
    assert len(merges) == len(whole["merges"]) + 1
