"""Our folders load and sample in optimum, and what optimum exported can be checked: in its own environment.

``make test-all`` makes that environment and names its Python in QCHECK_OPTIMUM.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from qcheck.demo import library
from qcheck.model import arms, load, lora
from qcheck.model.arms import Arms
from qcheck.model.family.unet import StableDiffusion
from qcheck.spec.use import Use
from qcheck.tasks import export
from tests import families
from tests.conftest import run

PYTHON = os.environ.get("QCHECK_OPTIMUM", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="QCHECK_OPTIMUM names no Python; `make test-all` does"),
]
PROMPT, STEPS, GUIDANCE, SEED = "cat face", 8, 3.0, 3  # as in in_optimum.py


def _there(*command: str) -> None:
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def picture(demo_arms: Arms) -> np.ndarray:
    """What diffusers itself paints with the adapter, [1, H, W, 3]."""
    with demo_arms.held("adapted") as family:
        return _painted(family.pipe)


def _painted(pipe: Any, **size: int) -> np.ndarray:
    settings = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "np"}
    found: np.ndarray = pipe(PROMPT, generator=torch.Generator().manual_seed(SEED), **settings, **size).images
    return found


def _sampled(folder: Path, side: int) -> np.ndarray:
    """What optimum's pipeline paints from an exported folder."""
    out = folder.with_suffix(".npy")
    _there(PYTHON, str(Path(__file__).with_name("in_optimum.py")), str(folder), str(out), str(side))
    found: np.ndarray = np.load(out)
    return found


@pytest.mark.parametrize(("scheme", "least"), [("fp16", 30.0), ("int8", 12.0), ("int4-g64", 8.0)])
def test_an_exported_folder_samples_in_optimums_pipeline(
    scheme: str, least: float, picture: np.ndarray, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    result = run("export", "demo", "--lora", "flat", "-s", scheme, "-o", str(folder), "--no-build")
    assert result.exit_code == 0, result.output
    found = _sampled(folder, 64)
    assert found.shape == picture.shape
    assert _sqnr(picture, found) > least


def _sqnr(picture: np.ndarray, found: np.ndarray) -> float:
    return float(10 * np.log10((picture**2).mean() / ((found - picture) ** 2).mean()))


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux"])
def test_an_exported_folder_of_every_family_samples_there(name: str, tmp_path: Path) -> None:
    source = families.saved(name, tmp_path / name)
    adapter, out = families.adapter(name, tmp_path / "lora.safetensors"), tmp_path / "out"
    options = ("-s", "fp16", "--size", "32x32", "--no-build", "-o", str(out))
    result = run("export", str(source), "--lora", str(adapter), *options)
    assert result.exit_code == 0, result.output
    both = arms.apply(load.load(str(source)), [lora.read(Use(source=str(adapter), weight=1.0))])
    with both.held("adapted") as family:
        picture = _painted(family.pipe, width=32, height=32)
    assert _sqnr(picture, _sampled(out, 32)) > 30


def test_a_pipeline_that_optimum_exported_is_judged(demo_arms: Arms, tmp_path: Path) -> None:
    with demo_arms.held("adapted") as family:
        family.pipe.save_pretrained(tmp_path / "merged")
    shutil.rmtree(tmp_path / "merged" / "vae")  # optimum does not know the demo's kind; the denoiser is what is judged
    AutoencoderKL(block_out_channels=(32,), norm_num_groups=8).save_pretrained(tmp_path / "merged" / "vae")
    index = json.loads((tmp_path / "merged" / "model_index.json").read_text())
    index["vae"] = ["diffusers", "AutoencoderKL"]
    (tmp_path / "merged" / "model_index.json").write_text(json.dumps(index))
    older = tmp_path / "older"
    older.mkdir()
    export.copy_rest(library.PIPELINE, older, StableDiffusion, [16, 16])
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(older / "tokenizer" / name, tmp_path / "merged" / "tokenizer" / name)
    tool, out = Path(PYTHON).with_name("optimum-cli"), tmp_path / "onnx"
    _there(str(tool), "export", "onnx", "--model", str(tmp_path / "merged"), "--task", "text-to-image", str(out))
    result = run(
        "check",
        "demo",
        "--lora",
        "flat",
        "--artifact",
        str(out),
        "--no-build",
        "--json",
        "--out",
        str(tmp_path / "check"),
    )
    assert result.exit_code == 0, result.output
    (case,) = json.loads(result.stdout)["cases"]
    seen = {(m["name"], m["arm"]): m["value"] for m in case["measurements"]}
    assert case["verdict"] == "PASS"
    assert seen["effect_survival", "adapted"] == pytest.approx(1.0, abs=1e-3)
    assert seen["effect_to_error", "adapted"] > 60
