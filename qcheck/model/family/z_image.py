"""Z-Image: one transformer over the tokens of the picture and of the prompt, trained by flow matching."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from qcheck.model.family.common import Conditions, Shape
from qcheck.model.family.language import MASK, WORDS, LanguageFamily, MaskedEntry, padded
from qcheck.model.family.rotary import Rotation, rotate, rotation
from qcheck.model.family.shift import equal_sigmas, shift, takes_sigmas
from qcheck.spec.probe import Probe

_PATCH, _KIND = 2, "2-1"  # the side of a token in latents, and the name of its layers
_BLOCK = 32  # tokens of the prompt, and those of the picture, are padded to a multiple of it
_SIDE = 1024  # of the pipeline's own pictures, in pixels


class _Processor:
    """diffusers' ZSingleStreamAttnProcessor with rotations in real numbers; the mask is added to the scores."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        freqs_cis: Rotation | None = None,
    ) -> torch.Tensor:
        query, key, value = (
            layer(hidden_states).unflatten(-1, (attn.heads, -1)) for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        if freqs_cis is not None:
            query, key = rotate(query, freqs_cis), rotate(key, freqs_cis)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        output = mixed.transpose(1, 2).flatten(2)
        for layer in attn.to_out:
            output = layer(output)
        return output


class _Entry(MaskedEntry):
    """The denoiser on prompts of one length with a mask; in diffusers every row has the length of its own prompt."""

    processor = _Processor

    def __init__(self, denoiser: Any) -> None:
        super().__init__(denoiser)
        rope = denoiser.rope_embedder
        tables = rope.precompute_freqs_cis(rope.axes_dims, rope.axes_lens, rope.theta)
        self._tables = [rotation(table) for table in tables]  # no buffers, which are cast: these stay float32

    def compute(
        self, latents: torch.Tensor, timestep: torch.Tensor, embeddings: torch.Tensor, given: torch.Tensor
    ) -> torch.Tensor:
        """As ``MaskedEntry.compute``."""
        model: Any = self.denoiser
        rows, channels, height, width = latents.shape
        high, wide = height // _PATCH, width // _PATCH
        clock = model.t_embedder  # its own forward reads the type of a weight, which may be stored in another
        waves = clock.timestep_embedding(timestep * model.t_scale, clock.frequency_embedding_size)
        time = clock.mlp(waves.type_as(latents))
        read = torch.div(given.sum(1, keepdim=True) + (_BLOCK - 1), _BLOCK, rounding_mode="floor") * _BLOCK  # [n, 1]
        tokens = latents.reshape(rows, channels, high, _PATCH, wide, _PATCH).permute(0, 2, 4, 3, 5, 1)
        picture = model.all_x_embedder[_KIND](tokens.reshape(rows, high * wide, -1))
        picture, here = self._extended(picture), self._places(read, high, wide)
        words = torch.where(given[..., None], model.cap_embedder(embeddings), model.cap_pad_token)
        there, ignored = self._order(words), self._ignored(words, read)
        for block in model.noise_refiner:
            picture = block(picture, None, here, time)
        for block in model.context_refiner:
            words = block(words, ignored, there)
        both = torch.cat((picture, words), dim=1)
        turns = tuple(torch.cat((a, b.expand(rows, -1, -1)), 1) for a, b in zip(here, there, strict=True))
        ignored = functional.pad(ignored, (picture.shape[1], 0))
        for block in model.layers:
            both = block(both, ignored, turns, time)
        output = model.all_final_layer[_KIND](both[:, : high * wide], c=time)
        output = output.reshape(rows, high, wide, _PATCH, _PATCH, channels).permute(0, 5, 1, 3, 2, 4)
        velocity: torch.Tensor = -output.reshape(latents.shape)
        return velocity

    def _extended(self, picture: torch.Tensor) -> torch.Tensor:
        """Tokens [n, t, D] of the picture and, up to a multiple of ``_BLOCK``, the token that stands for none."""
        tokens = picture.shape[1]
        rest = -tokens % _BLOCK
        if isinstance(rest, int) and rest == 0:
            return picture
        inside = torch.arange(tokens + rest, device=picture.device)[:, None] < tokens
        nothing: Any = self.denoiser.x_pad_token
        return torch.where(inside, functional.pad(picture, (0, 0, 0, rest)), nothing)

    def _places(self, read: torch.Tensor, high: int, wide: int) -> Rotation:
        """Rotations [n, t, d/2] of the picture's tokens: after the prompt, in their row and column; 0 for the rest."""
        rows, rest = read.shape[0], -(high * wide) % _BLOCK
        parts = []
        for cosine_or_sine, nothing in zip(zip(*self._tables, strict=True), (1.0, 0.0), strict=True):
            after, row, column = (table.to(read.device) for table in cosine_or_sine)
            grid = (
                after[read[:, 0] + 1][:, None, None].expand(-1, high, wide, -1),
                row[None, :high, None].expand(rows, -1, wide, -1),
                column[None, None, :wide].expand(rows, high, -1, -1),
            )
            places = torch.cat(grid, dim=-1).flatten(1, 2)
            parts.append(functional.pad(places, (0, 0, 0, rest), value=nothing))
        return parts[0], parts[1]

    def _order(self, words: torch.Tensor) -> Rotation:
        """Rotations [1, L, d/2] of the prompt's tokens, which count from 1."""
        count = words.shape[1]
        cosines, sines = (
            torch.cat([first[1 : count + 1], *(table[:1].expand(count, -1) for table in others)], dim=-1)
            for first, *others in zip(*self._tables, strict=True)
        )
        return cosines[None].to(words.device), sines[None].to(words.device)

    def _ignored(self, words: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
        """What is added to scores [n, 1, 1, L]: 0 for tokens that are read, minus infinity for the others."""
        outside = torch.arange(words.shape[1], device=words.device) >= read
        return torch.zeros_like(outside, dtype=words.dtype).masked_fill(outside, float("-inf"))[:, None, None]


class ZImage(LanguageFamily):
    """A language model reads the prompt as a message of a chat; guidance adds to a weight of 1.

    Conditions are encoder_hidden_states [1 or 2, L, D] and encoder_hidden_states_mask [1 or 2, L].
    """

    pipeline = "ZImagePipeline"
    kind = "ZImageTransformer2DModel"
    inner_states = (-2,)

    def unsupported(self) -> str | None:
        """A solver that takes no sigmas, tokens of other sizes, pictures as inputs, or too few places for tokens."""
        config = self.config
        if (list(config.all_patch_size), list(config.all_f_patch_size)) != ([_PATCH], [1]):
            return f"a denoiser with patches of {config.all_patch_size} x {config.all_f_patch_size}"
        if config.siglip_feat_dim is not None:
            return "a denoiser that also takes pictures"
        if config.axes_lens[0] < WORDS + 2:
            return f"a denoiser with places for {config.axes_lens[0] - 2} tokens of a prompt, of {WORDS}"
        return takes_sigmas(self.pipe.scheduler)

    @staticmethod
    def positive_weight(guidance: float) -> float:
        """The pipeline adds the guidance to the positive branch itself."""
        return 1 + guidance

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
        side = _SIDE // self.factor
        return side, side

    def around(self) -> tuple[str, str]:
        """The chat template's text, up to the answer."""
        return self.chat(enable_thinking=True)

    def _conditions(self, probe: Probe) -> Conditions:
        """The conditions that the class lists; the pipeline's guidance begins above 0."""
        guided = probe.guidance > 0
        positive, negative = self.pipe.encode_prompt(probe.prompt, self.text_device, guided, probe.negative or None)
        return padded([*negative, *positive])

    def spaced(self, steps: int) -> dict[str, Any]:
        """Sigmas in equal steps from 1."""
        return equal_sigmas(steps)

    def schedule(self, shape: Shape, steps: int) -> dict[str, Any]:
        """The shift for that number of tokens."""
        return {"mu": shift(self.pipe.scheduler.config, (shape[2] // _PATCH) * (shape[3] // _PATCH))}

    def feed(self, latents: np.ndarray, timestep: float, conditions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """hidden_states [n, C, h, w], time from 0 to 1 [n], encoder_hidden_states [n, L, D] and their mask [n, L]."""
        times = np.full(len(latents), (1000 - timestep) / 1000, np.float32)
        words = {name: conditions[name] for name in ("encoder_hidden_states", MASK)}
        return {self.latent: latents, "timestep": times, **words}

    def entry(self, denoiser: nn.Module) -> nn.Module:
        """A module of the inputs of ``feed``; its output is what the solver takes."""
        return _Entry(denoiser)
