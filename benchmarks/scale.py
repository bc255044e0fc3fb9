"""A full-size pipeline through ``qcheck export``: time and peak memory of the export and of its builds.

``python benchmarks/scale.py [SCHEME ...]`` writes a pipeline of Stable Diffusion 1.5's shapes with random weights (UNet
of 860 M parameters, CLIP ViT-L text encoder, AutoencoderKL; 2.1 GB in float16 in a temporary folder) with a rank-16
adapter on its attention, and exports it for each scheme (int8 and int4-g128) at 512 x 512 with its TensorRT-RTX builds.
Calibration is one prompt at one of two steps, without guidance: what is measured is size, not quality.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from qcheck.demo import library

_TARGET = "jetson-agx-orin-64gb"
_RECIPE = """title = "One state of one prompt"
method = "max"
prompts = "general"
samples = 1
strata = 1
seed = 910000
keep = ["conv_in", "conv_out", "time_embedding.*"]
"""


def write(folder: Path) -> None:
    """The pipeline, below ``folder``/base, and the adapter beside it."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from safetensors.torch import save_file
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    blocks = (128, 256, 512, 512)
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8).half()
    vae = AutoencoderKL(
        block_out_channels=blocks,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
    ).half()
    tokenizer = CLIPTokenizer.from_pretrained(library.PIPELINE / "tokenizer", model_max_length=77)
    text = CLIPTextModel(
        CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    ).half()
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False)
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder / "base")
    lora = {}
    for key, value in unet.state_dict().items():
        if ("attn1.to" in key or "attn2.to" in key) and key.endswith("weight"):
            layer = key.removesuffix(".weight")
            lora[f"unet.{layer}.lora_A.weight"] = torch.randn(16, value.shape[1]).half() * 0.02
            lora[f"unet.{layer}.lora_B.weight"] = torch.randn(value.shape[0], 16).half() * 0.02
    save_file(lora, folder / "lora.safetensors")
    (folder / "one.toml").write_text(_RECIPE, "utf-8")
    print(f"{sum(p.numel() for p in unet.parameters()) / 1e6:.0f} M parameters in the UNet", flush=True)


def _high(process: int) -> float:
    """Highest resident memory of a process so far, GB; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text("ascii").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1e6 for line in lines if line.startswith("VmHWM")), 0.0)


def export(folder: Path, scheme: str) -> None:
    """One export in a process of its own; prints its peak and that of each build."""
    out = folder / scheme
    command = [
        sys.executable,
        "-m",
        "qcheck",
        "export",
        str(folder / "base"),
        "--lora",
        str(folder / "lora.safetensors"),
    ]
    options = ["--scheme", scheme, "--target", _TARGET, "--recipe", str(folder / "one.toml"), "--steps", "2"]
    start = time.monotonic()
    child = subprocess.Popen(
        [*command, *options, "--guidance", "1", "--no-cache", "--json", "-o", str(out)],
        stdout=subprocess.PIPE,
        text=True,
    )
    peak, done = 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, _high(child.pid))
            time.sleep(0.2)

    watcher = threading.Thread(target=watch)
    watcher.start()
    printed, _ = child.communicate()
    done.set()
    watcher.join()
    print(f"{scheme}: exit {child.returncode}, {time.monotonic() - start:.0f} s, peak {peak:.1f} GB", flush=True)
    for part in json.loads(printed)["parts"]:
        build, realised = part["build"], (part["build"]["realised"] or {})
        size = f"{part['bytes'] / 1e6:.0f} MB file"
        if build["bytes"]:
            size += f", {build['bytes'] / 1e6:.0f} MB engine"
        cost = f"{build['status']} in {build['seconds']} s with {(build['peak_memory_mb'] or 0) / 1e3:.1f} GB"
        print(f"  {part['name']}: {size}, {cost} {realised.get('operands', '')} {build['detail'][:300]}", flush=True)


def main() -> None:
    """Write once, export each scheme."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("schemes", nargs="*", default=["int8", "int4-g128"])
    with tempfile.TemporaryDirectory() as name:
        write(Path(name))
        for scheme in parser.parse_args().schemes:
            export(Path(name), scheme)


if __name__ == "__main__":
    main()
