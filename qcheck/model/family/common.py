"""The interface of a family of pipelines, with the implementation that most families share."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import nn

from qcheck.core.errors import UserError
from qcheck.model.components import ROWS, Component, Decoder, Mask, TextEncoder, copied
from qcheck.model.quiet import quiet
from qcheck.spec.probe import Probe

Conditions = dict[str, torch.Tensor]
Shape = tuple[int, int, int, int]
_LEAST = 4  # latents a side: the longest period of a pattern that is looked for
_OPTIONAL = frozenset({"safety_checker", "feature_extractor", "image_encoder"})


class Family(ABC):
    """One pipeline of a kind. ``pipe`` is diffusers' own object, with either arm's weights in place.

    ``pipeline`` and ``kind`` are diffusers' classes of the pipeline and of its denoiser; ``denoiser`` is the denoiser's
    attribute, ``latent`` and ``output`` its input and output of latents. ``fixed`` are inputs whose first axis is not
    the batch, ``kept`` are inputs that are always float32. ``encoders`` are the text encoders with the maximum number
    of tokens of each, None where its tokenizer defines it; a pipeline may lack the encoders in ``spare``. They return
    ``inner_states``, all or those of some layers, and take a ``mask`` of padding or none. The names are those of
    optimum's files. ``branches`` are those of guidance. ``tile`` is the side in latents of the squares in which a
    guided output is rescaled to the norm of its positive branch, 0 where it is not; the denoiser's output then is in
    the shape of the latents.
    """

    pipeline: ClassVar[str]
    kind: ClassVar[str]
    denoiser: ClassVar[str] = "transformer"
    encoders: ClassVar[Mapping[str, int | None]]
    spare: ClassVar[frozenset[str]] = frozenset()
    latent: ClassVar[str] = "hidden_states"
    output: ClassVar[str] = "out_hidden_states"
    fixed: ClassVar[frozenset[str]] = frozenset()
    kept: ClassVar[frozenset[str]] = frozenset({"timestep"})
    inner_states: ClassVar[bool | tuple[int, ...]] = False
    mask: ClassVar[Mask | None] = None
    branches: int = 2
    tile: ClassVar[int] = 0

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe

    @classmethod
    def fits(cls, present: Mapping[str, str]) -> bool:
        """Whether a pipeline of these components, class names by attribute, is of this family."""
        needed = {cls.denoiser, "vae", "scheduler", *cls._with_tokenizers(set(cls.encoders) - cls.spare)}
        allowed = needed | cls._with_tokenizers(cls.spare) | _OPTIONAL
        return present.get(cls.denoiser) == cls.kind and needed <= set(present) <= allowed

    @classmethod
    def _with_tokenizers(cls, encoders: Collection[str]) -> set[str]:
        return {*encoders, *(cls.tokenizer_of(name) for name in encoders)}

    @staticmethod
    def tokenizer_of(encoder: str) -> str:
        """The attribute of a text encoder's tokenizer."""
        return encoder.replace("text_encoder", "tokenizer")

    def parts(self) -> list[nn.Module]:
        """The pipeline's modules: the denoiser, text encoders and the autoencoder."""
        return [part for part in self.pipe.components.values() if isinstance(part, nn.Module)]

    def on(self, device: torch.device) -> Self:
        """A copy of the pipeline on ``device``, without its text encoders."""
        parts = {name: part for name, part in self.pipe.components.items() if isinstance(part, nn.Module)}
        return self._with({name: None if name in self.encoders else copied(p, device) for name, p in parts.items()})

    def encoding_on(self, device: torch.device) -> Self:
        """The pipeline with copies of its text encoders on ``device``."""
        encoders = {name: getattr(self.pipe, name) for name in self.encoders}
        return self._with({name: copied(part, device) for name, part in encoders.items() if part is not None})

    def forget_encoders(self) -> None:
        """Drop the text encoders, whoever still holds this pipeline."""
        vars(self.pipe).update(dict.fromkeys(self.encoders))

    def _with(self, parts: Mapping[str, nn.Module | None]) -> Self:
        """The pipeline with other modules under some names."""
        pipe = copy.copy(self.pipe)
        vars(pipe).update(parts)
        return type(self)(pipe)

    @staticmethod
    def positive_weight(guidance: float) -> float:
        """The weight of the positive branch in the guided output, where the negative one has the rest of 1."""
        return guidance

    @property
    def device(self) -> torch.device:
        """The device that the denoiser's weights are on."""
        return next(self.module.parameters()).device

    @property
    def text_device(self) -> torch.device:
        """The device that the text encoders' weights are on."""
        encoders = (getattr(self.pipe, name) for name in self.encoders)
        first: nn.Module = next(encoder for encoder in encoders if encoder is not None)
        return next(first.parameters()).device

    @property
    def module(self) -> nn.Module:
        """The denoiser, which is the module that is quantized."""
        denoiser: nn.Module = getattr(self.pipe, self.denoiser)
        return denoiser

    @property
    def config(self) -> Any:
        """The denoiser's configuration."""
        return self.module.config

    @property
    def channels(self) -> int:
        """The channels of the latents."""
        channels: int = self.config.in_channels
        return channels

    @property
    def factor(self) -> int:
        """The side of a latent in pixels."""
        factor: int = self.pipe.vae_scale_factor
        return factor

    @property
    def multiple(self) -> int:
        """The number that a side of the picture in pixels has to be a multiple of."""
        return self.factor

    def unsupported(self) -> str | None:
        """The unsupported property of this pipeline, in words; None if there is none."""
        inward, outward = self.config.in_channels, self.config.out_channels
        return None if outward in {None, inward} else f"a denoiser of {inward} -> {outward} channels"

    def sides(self) -> tuple[int, int]:
        """Height and width of the pipeline's own pictures, in latents."""
        size = self.config.sample_size
        return (size[0], size[1]) if isinstance(size, tuple | list) else (size, size)

    def shape(self, width: int | None, height: int | None) -> Shape:
        """Latents [1, C, h, w] of a picture; the pipeline's own sides where None.

        Raises:
            UserError: a side is no multiple of ``multiple``, or shorter than what measurements need.
        """
        least = _LEAST * self.factor
        for name, side in (("width", width), ("height", height)):
            if side and (side % self.multiple or side < least):
                nearest = max(side - side % self.multiple, -(-least // self.multiple) * self.multiple)
                raise UserError(
                    f"--{name} {side} is no multiple of {self.multiple}, the pipeline's factor, from {least} on",
                    f"Take {nearest}.",
                )
        factor, default = self.factor, self.sides()
        return 1, self.channels, height // factor if height else default[0], width // factor if width else default[1]

    def start(self, probe: Probe) -> tuple[torch.Tensor, torch.Generator]:
        """The probe's first latents [1, C, h, w] in unit variance, drawn as diffusers draws them, and their generator.

        Raises:
            UserError: as ``shape``.
        """
        generator = torch.Generator("cpu").manual_seed(probe.seed)
        return torch.randn(self.shape(probe.width, probe.height), generator=generator), generator

    @torch.no_grad()
    def conditions(self, probe: Probe) -> Conditions:
        """The denoiser's inputs beside latents and time, each [1 or 2, ...]: of two branches the negative is first."""
        return {name: value.cpu() for name, value in self._conditions(probe).items()}

    @abstractmethod
    def _conditions(self, probe: Probe) -> Conditions:
        """As ``conditions``, on the text encoders' device."""

    def schedule(self, shape: Shape, steps: int) -> dict[str, Any]:
        """The solver's settings that depend on the latents' size."""
        return {}

    def spaced(self, steps: int) -> dict[str, Any]:
        """The solver's settings of its steps."""
        return {"num_inference_steps": steps}

    def solver(self, steps: int, shape: Shape) -> Any:
        """A new solver with its timesteps set; solvers keep state, so no two runs share one."""
        with quiet():  # some of them still call NumPy as its first version was called
            solver = type(self.pipe.scheduler).from_config(self.pipe.scheduler.config)
            solver.set_timesteps(**self.spaced(steps), **self.schedule(shape, steps))
        if hasattr(solver, "set_begin_index"):
            solver.set_begin_index(0)
        return solver

    def feed(self, latents: np.ndarray, timestep: float, conditions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The denoiser's inputs in their order, from latents [n, C, h, w] and conditions [n, ...]."""
        times = np.full(1 if "timestep" in self.fixed else len(latents), timestep, np.float32)
        return {self.latent: latents, "timestep": times, **conditions}

    def read(self, output: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The denoiser's output as latents of ``shape`` [n, C, h, w]."""
        return output

    @abstractmethod
    def entry(self, denoiser: nn.Module) -> nn.Module:
        """``denoiser`` (under that name) as a module from ``feed``'s inputs, by keyword, to one tensor."""

    def growing(self) -> Mapping[str, Mapping[int, str]]:
        """The axes that grow with the picture, by input; axes of equal length have the same name."""
        return {self.latent: {2: "height", 3: "width"}}

    @property
    def step(self) -> int:
        """The number that those axes are multiples of where the size is not fixed."""
        return 1

    def component(self, inputs: Mapping[str, np.ndarray]) -> Component:
        """The denoiser as it is exported, from inputs of any number of rows."""
        examples = {
            name: torch.from_numpy(value)
            if name in self.fixed
            else torch.zeros(ROWS, *value.shape[1:], dtype=torch.from_numpy(value).dtype)
            for name, value in inputs.items()
        }
        return Component(
            self.denoiser,
            self.entry(self.module),
            examples,
            (self.output,),
            fixed=self.fixed,
            kept=self.kept,
            growing=self.growing(),
            step=self.step,
        )

    def others(self, shape: Shape) -> list[Component]:
        """The other components of a picture: text encoders, and the decoder of latents ``shape``.

        The decoder's input are unscaled latents, as the pipeline passes them.
        """
        components = []
        for name, tokens in self.read_by().items():
            encoder = getattr(self.pipe, name)
            module = self.reader(encoder)
            ids = torch.ones(ROWS, tokens, dtype=torch.int64)
            inputs = {"input_ids": ids} | ({"attention_mask": ids.clone()} if self.mask else {})
            components.append(Component(name, module, inputs, module.outputs()))
        raw, ones = (self.unscaled(torch.full((ROWS, *shape[1:]), value)) for value in (0.0, 1.0))
        latents, sides = {"latent_sample": torch.zeros_like(raw)}, {"latent_sample": {2: "height", 3: "width"}}
        spread = float((ones - raw).mean())
        upcast = bool(self.pipe.vae.config.get("force_upcast", False))
        decoder = Component(
            "vae_decoder", self.decoder(), latents, ("sample",), growing=sides, spread=spread, upcast=upcast
        )
        return [*components, decoder]

    def reader(self, encoder: nn.Module) -> TextEncoder:
        """A text encoder as it is exported."""
        return TextEncoder(encoder, self.inner_states, self.mask)

    def decoder(self) -> Decoder:
        """The autoencoder's decoder as it is exported."""
        return Decoder(self.pipe.vae)

    @torch.no_grad()
    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """Latents [n, C, h, w] of pictures [n, 3, H, W] in [0, 1]: where the VAE gives a distribution, its mode."""
        latents = [self._encoded(x[None].to(self.device) * 2 - 1) for x in pictures]
        return self.scaled(torch.cat(latents)).cpu()

    def _encoded(self, picture: torch.Tensor) -> torch.Tensor:
        """What the autoencoder makes of a picture in [-1, 1]."""
        coded, names = self.pipe.vae.encode(picture), ("latents", "latent")  # of AutoencoderTiny and AutoencoderDC
        latents: torch.Tensor = (
            coded.latent_dist.mode() if "latent_dist" in coded else next(coded[name] for name in names if name in coded)
        )
        return latents

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures [n, 3, H, W] in [0, 1] of final latents [n, C, h, w]."""
        decode = self.decoder()
        pictures = [decode(x[None].to(self.device)).cpu() for x in self.unscaled(latents)]
        return (torch.cat(pictures) / 2 + 0.5).clamp(0, 1)

    def unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        """Final latents [n, C, h, w] as the autoencoder's decoder takes them."""
        config = self.pipe.vae.config
        raw: torch.Tensor = latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
        return raw

    def scaled(self, raw: torch.Tensor) -> torch.Tensor:
        """The inverse of ``unscaled``."""
        config = self.pipe.vae.config
        latents: torch.Tensor = (raw - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor
        return latents

    def read_by(self) -> dict[str, int]:
        """The tokens that each text encoder of this pipeline reads at most."""
        names = [name for name in self.encoders if getattr(self.pipe, self.tokenizer_of(name), None) is not None]
        return {name: self.encoders[name] or self._tokenizer(name).model_max_length for name in names}

    def _tokenizer(self, encoder: str) -> Any:
        return getattr(self.pipe, self.tokenizer_of(encoder))

    def cut(self, encoder: str, prompt: str) -> str:
        """The end of a prompt that a text encoder does not read; "" where it reads all of it."""
        tokenizer, most = self._tokenizer(encoder), self.read_by()[encoder]
        ids = tokenizer(self.asked(encoder, prompt)).input_ids
        rest: str = tokenizer.decode(ids[most - 1 : -1]).strip() if len(ids) > most else ""
        return rest

    def asked(self, encoder: str, prompt: str) -> str:
        """The text that a text encoder's tokenizer gets for a prompt."""
        return prompt

    def tokens(self, encoder: str, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """A text encoder's inputs [n, L] by name: the tokens of prompts and, with a ``mask``, those that are read."""
        tokenizer, length = self._tokenizer(encoder), self.read_by()[encoder]
        options = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
        texts = tokenizer([self.asked(encoder, prompt) for prompt in prompts], padding_side="right", **options)
        return {"input_ids": texts.input_ids} | ({"attention_mask": texts.attention_mask} if self.mask else {})


def guided(probe: Probe) -> bool:
    """Whether classifier-free guidance needs the negative branch."""
    return probe.guidance > 1


def joined(negative: torch.Tensor | None, positive: torch.Tensor) -> torch.Tensor:
    """Both branches of guidance, the negative first, or the positive alone."""
    return positive if negative is None else torch.cat([negative, positive])
