"""Qwen-Image: a joint transformer over latents packed 2 x 2 into tokens, trained by flow matching."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from qcheck.model.components import Decoder, leave_unread
from qcheck.model.family.common import Conditions, Shape, guided
from qcheck.model.family.language import MASK, WORDS, LanguageFamily, MaskedEntry, padded
from qcheck.model.family.rotary import Rotation, rotate, rotation
from qcheck.model.family.shift import equal_sigmas, shift, takes_sigmas
from qcheck.spec.probe import Probe

_PATCH = 2  # the side of a token in latents
_NOTHING = " "  # the negative prompt of those who have none; the pipeline guides only where there is one
_DROPPED = 34  # tokens of the template before the prompt


class _Processor:
    """diffusers' QwenDoubleStreamAttnProcessor2_0 with rotations in real numbers; the mask is added to the scores."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: None,
        encoder_hidden_states_mask: torch.Tensor,
        image_rotary_emb: tuple[Rotation, Rotation],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        def split(x: torch.Tensor) -> torch.Tensor:
            parts: torch.Tensor = x.reshape(*x.shape[:2], attn.heads, -1)
            return parts

        here, there = image_rotary_emb
        words = encoder_hidden_states.shape[1]
        query = rotate(attn.norm_q(split(attn.to_q(hidden_states))), here)
        key = rotate(attn.norm_k(split(attn.to_k(hidden_states))), here)
        asked = rotate(attn.norm_added_q(split(attn.add_q_proj(encoder_hidden_states))), there)
        answers = rotate(attn.norm_added_k(split(attn.add_k_proj(encoder_hidden_states))), there)
        value, meaning = split(attn.to_v(hidden_states)), split(attn.add_v_proj(encoder_hidden_states))
        pairs = ((asked, query), (answers, key), (meaning, value))
        query, key, value = (torch.cat(pair, dim=1).transpose(1, 2) for pair in pairs)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=encoder_hidden_states_mask)
        output = mixed.transpose(1, 2).flatten(2)
        picture = output[:, words:]
        for layer in attn.to_out:
            picture = layer(picture)
        return picture, attn.to_add_out(output[:, :words])


class _Entry(MaskedEntry):
    """The denoiser on latents, which it packs itself, and on prompts of one length with a mask."""

    processor = _Processor

    def __init__(self, denoiser: Any) -> None:
        super().__init__(denoiser)
        rope = denoiser.pos_embed
        self._zero, sizes = len(rope.neg_freqs), [side // 2 for side in rope.axes_dim]
        places = torch.cat([rope.neg_freqs, rope.pos_freqs])  # of -4096 to 4095
        self._tables = [
            rotation(table) for table in torch.split(places, sizes, dim=1)
        ]  # no buffers: these stay float32

    def compute(
        self, latents: torch.Tensor, timestep: torch.Tensor, embeddings: torch.Tensor, given: torch.Tensor
    ) -> torch.Tensor:
        """As ``MaskedEntry.compute``."""
        model: Any = self.denoiser
        rows, channels, height, width = latents.shape
        high, wide = height // _PATCH, width // _PATCH
        tokens = latents.reshape(rows, channels, high, _PATCH, wide, _PATCH).permute(0, 2, 4, 1, 3, 5)
        picture = model.img_in(tokens.reshape(rows, high * wide, -1))
        words = model.txt_in(model.txt_norm(embeddings))
        time = model.time_text_embed(timestep, picture)
        ignored = torch.zeros_like(given, dtype=latents.dtype).masked_fill(~given, float("-inf"))[:, None, None]
        ignored = functional.pad(ignored, (0, picture.shape[1]))
        turns = self._places(high, wide, latents.device), self._order(high, wide, words)
        for block in model.transformer_blocks:
            words, picture = block(picture, words, ignored, time, turns)
        output = model.proj_out(model.norm_out(picture, time))
        output = output.reshape(rows, high, wide, channels, _PATCH, _PATCH).permute(0, 3, 1, 4, 2, 5)
        velocity: torch.Tensor = output.reshape(latents.shape)
        return velocity

    def _places(self, high: int, wide: int, device: torch.device) -> Rotation:
        """Rotations [1, t, d/2] of the picture's tokens, in frame 0, in their row and column from the middle."""
        parts = []
        for frame, row, column in zip(*self._tables, strict=True):
            rows = row[self._zero - (high - high // 2) : self._zero + high // 2]
            columns = column[self._zero - (wide - wide // 2) : self._zero + wide // 2]
            grid = (
                frame[self._zero].expand(high, wide, -1),
                rows[:, None].expand(-1, wide, -1),
                columns[None].expand(high, -1, -1),
            )
            parts.append(torch.cat(grid, dim=-1).reshape(1, high * wide, -1).to(device))
        return parts[0], parts[1]

    def _order(self, high: int, wide: int, words: torch.Tensor) -> Rotation:
        """Rotations [1, L, d/2] of the prompt's tokens, which come after the picture's longer half in all axes."""
        first: int = self._zero + torch.sym_max(high // 2, wide // 2)  # type: ignore[no-untyped-call]
        cosines, sines = (
            torch.cat([table[first : first + words.shape[1]] for table in tables], dim=-1)[None].to(words.device)
            for tables in zip(*self._tables, strict=True)
        )
        return cosines, sines


class _Decoder(Decoder):
    """The decoder of videos, for one frame."""

    def forward(self, latent_sample: torch.Tensor) -> torch.Tensor:
        """Pictures in [-1, 1]."""
        return super().forward(latent_sample[:, :, None])[:, :, 0]


class QwenImage(LanguageFamily):
    """A language model reads the prompt in a template; a guided output gets the norm of its positive branch.

    Conditions are encoder_hidden_states [1 or 2, L, D] and encoder_hidden_states_mask [1 or 2, L].
    """

    pipeline = "QwenImagePipeline"
    kind = "QwenImageTransformer2DModel"
    encoders: ClassVar = {"text_encoder": _DROPPED + WORDS}
    tile = _PATCH

    def __init__(self, pipe: Any) -> None:
        super().__init__(pipe)
        blocks: Any = self.module.transformer_blocks
        last = blocks[-1]  # of which the prompt's half goes nowhere
        for layer in (last.attn.to_add_out, *last.txt_mlp.modules()):
            leave_unread(layer)

    def unsupported(self) -> str | None:
        """A solver that takes no sigmas, a denoiser with other inputs or with other tokens."""
        config, fixed = self.config, ("guidance_embeds", "zero_cond_t", "use_additional_t_cond", "use_layer3d_rope")
        if strange := [name for name in fixed if config.get(name)]:
            return f"a denoiser with {', '.join(strange)}"
        if config.patch_size != _PATCH or config.in_channels != _PATCH**2 * config.out_channels:
            return (
                f"a denoiser of {config.in_channels} -> {config.out_channels} channels, patches of {config.patch_size}"
            )
        return takes_sigmas(self.pipe.scheduler)

    @property
    def channels(self) -> int:
        """The channels of the latents before they are packed."""
        channels: int = self.config.out_channels
        return channels

    @property
    def multiple(self) -> int:
        """The side of a token in pixels."""
        return _PATCH * super().multiple

    @property
    def step(self) -> int:
        """The side of a token in latents."""
        return _PATCH

    def sides(self) -> tuple[int, int]:
        """Height and width of the pipeline's own pictures, in latents."""
        side: int = self.pipe.default_sample_size
        return side, side

    def around(self) -> tuple[str, str]:
        """The pipeline's template."""
        before, _, after = self.pipe.prompt_template_encode.partition("{}")
        return before, after

    def _conditions(self, probe: Probe) -> Conditions:
        """The conditions that the class lists, without the tokens of the template before the prompt."""
        prompts = [probe.negative or _NOTHING, probe.prompt] if guided(probe) else [probe.prompt]
        options = {"device": self.text_device, "max_sequence_length": WORDS}
        return padded([self.pipe.encode_prompt(prompt, **options)[0][0] for prompt in prompts])

    def spaced(self, steps: int) -> dict[str, Any]:
        """Sigmas in equal steps from 1."""
        return equal_sigmas(steps)

    def schedule(self, shape: Shape, steps: int) -> dict[str, Any]:
        """The shift for that number of tokens."""
        return {"mu": shift(self.pipe.scheduler.config, (shape[2] // _PATCH) * (shape[3] // _PATCH))}

    def feed(self, latents: np.ndarray, timestep: float, conditions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """hidden_states [n, C, h, w], time from 1 to 0 [n], encoder_hidden_states [n, L, D] and their mask [n, L]."""
        words = {name: conditions[name] for name in ("encoder_hidden_states", MASK)}
        return {self.latent: latents, "timestep": np.full(len(latents), timestep / 1000, np.float32), **words}

    def entry(self, denoiser: nn.Module) -> nn.Module:
        """A module of the inputs of ``feed``."""
        return _Entry(denoiser)

    def decoder(self) -> Decoder:
        """The autoencoder of videos on one frame."""
        return _Decoder(self.pipe.vae)

    def _encoded(self, picture: torch.Tensor) -> Any:
        return super()._encoded(picture[:, :, None])[:, :, 0]

    def _moments(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and spread [1, C, 1, 1] of the autoencoder's latents by channel."""
        config = self.pipe.vae.config
        mean, spread = (torch.tensor(v).view(1, -1, 1, 1).to(like) for v in (config.latents_mean, config.latents_std))
        return mean, spread

    def unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        """Final latents [n, C, h, w] as the autoencoder's decoder takes them."""
        mean, spread = self._moments(latents)
        return latents * spread + mean

    def scaled(self, raw: torch.Tensor) -> torch.Tensor:
        """The inverse of ``unscaled``."""
        mean, spread = self._moments(raw)
        return (raw - mean) / spread
