"""The autoencoder: 64 x 64 x 3 pictures to 16 x 16 x 4 latents of zero mean and unit variance."""

import logging
import math
import time
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from torch.nn import functional as F

from tools.train_demo.pictures import PACKAGES, SUBJECTS, load, subjects

log = logging.getLogger(__name__)


def build() -> AutoencoderTiny:
    """An untrained AutoencoderTiny of 0.3 M parameters with a downscale of four."""
    return AutoencoderTiny(
        encoder_block_out_channels=(32, 32, 32),
        decoder_block_out_channels=(32, 32, 32),
        num_encoder_blocks=(1, 2, 2),
        num_decoder_blocks=(2, 2, 1),
        latent_channels=4,
    )


def _gradient(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


def _loss(vae: AutoencoderTiny, images: torch.Tensor) -> torch.Tensor:
    latents = vae.encoder(images)
    decoded = vae.decoder(latents + 0.03 * torch.randn_like(latents)).float()
    pairs = zip(_gradient(decoded), _gradient(images), strict=True)
    edges = torch.stack([F.l1_loss(ours, theirs) for ours, theirs in pairs]).sum()
    mean = latents.float().mean((0, 2, 3))
    spread = latents.float().std((0, 2, 3))
    drift = mean.square().mean() + (spread - 1).square().mean()
    colour = F.mse_loss(F.avg_pool2d(decoded, 8), F.avg_pool2d(images, 8))  # L1 alone may settle without green
    loss: torch.Tensor = F.l1_loss(decoded, images) + edges + 10 * colour + 0.02 * drift
    return loss


@torch.no_grad()
def psnr(vae: AutoencoderTiny, images: torch.Tensor) -> float:
    """Mean PSNR in dB of decoded against ``images`` [n, 3, 64, 64], peak 2 (the range is [-1, 1])."""
    decoded = vae.decoder(vae.encoder(images)).clamp(-1, 1)
    error = (decoded - images).square().mean((1, 2, 3))
    return float((10 * torch.log10(4 / error)).mean())


def train(pictures: Path, out: Path, minutes: float) -> None:
    """Train on all five styles for ``minutes`` and save the model in diffusers layout at ``out``."""
    torch.manual_seed(0)
    vae = build()
    _descend(vae, vae, pictures, minutes, rate=2e-3)
    probe = load(pictures, "noto").only(subjects(pictures)).images[::8]
    with torch.no_grad():
        spread = torch.cat([vae.encoder(x) for x in probe.split(16)]).std()
    vae.register_to_config(scaling_factor=float(1 / spread))
    vae.half().save_pretrained(out)


def refine(pictures: Path, out: Path, minutes: float) -> None:
    """Train the decoder alone for ``minutes``: latents, and so a denoiser that learned them, stay as they are."""
    torch.manual_seed(1)
    vae = AutoencoderTiny.from_pretrained(out, dtype=torch.float32)
    vae.encoder.requires_grad_(False)
    _descend(vae, vae.decoder, pictures, minutes, rate=1.5e-3)
    vae.half().save_pretrained(out)


def _descend(
    vae: AutoencoderTiny, trained: torch.nn.Module, pictures: Path, minutes: float, rate: float, batch: int = 8
) -> None:
    keep = subjects(pictures)
    styles = [load(pictures, style) for style in PACKAGES]
    images = torch.cat([style.images for style in styles] + [style.only(keep).images for style in styles])
    probe = load(pictures, "noto").only(keep).images[::8]
    vae.to(memory_format=torch.channels_last)
    log.info("%d pictures of %s and more, PSNR %.2f dB", len(images), SUBJECTS, psnr(vae, probe))
    optimizer = torch.optim.AdamW(trained.parameters(), lr=rate, weight_decay=1e-4)
    start, step = time.monotonic(), 0
    while (done := (time.monotonic() - start) / 60 / minutes) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 100) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
        rows = torch.randint(len(images), (batch,))
        loss = _loss(vae, images[rows].to(memory_format=torch.channels_last))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 400 == 0:
            log.info("step %d (%.0f %%): loss %.4f, PSNR %.2f dB", step, 100 * done, loss.detach(), psnr(vae, probe))
    log.info("done: %d steps, PSNR %.2f dB", step, psnr(vae, probe))
