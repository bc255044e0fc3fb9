"""The pipelines of the zoo: where each is, what it is asked, and the pictures that judge what becomes of adapters."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny

from qcheck.demo import library
from qcheck.spec import probe
from qcheck.spec import recipe as recipes
from qcheck.spec.probe import ProbeSet
from qcheck.spec.recipe import PromptSet, Recipe
from tools.train_demo import pictures as icons
from tools.train_demo.adapter import split
from tools.train_demo.denoiser import encode, prompt, scheduler
from tools.train_demo.distill import FEW
from tools.train_demo.pictures import PACKAGES, Pictures
from tools.train_zoo import base
from tools.train_zoo.kinds import Noised, discrete

ROOT = Path(__file__).parents[2]
SCALARS = ROOT / "zoo"
GUIDANCES = (7.5, 3.0, 1.0)
_PROBES, _CALIBRATING = 16, 20


@dataclass(frozen=True)
class Pipeline(ABC):
    """One pipeline.

    ``styles`` are the base's own and then those of its adapters. ``folder`` has the adapters, their ``training.json``
    and the style judge. ``source`` is the base as ``check`` takes it, with the adapters ``beside`` in every arm;
    ``guidances`` are the scales it is sampled at.
    """

    name: str
    styles: tuple[str, ...]
    folder: Path
    source: str
    guidances: tuple[float, ...]
    beside: tuple[str, ...] = field(default=(), kw_only=True)

    @abstractmethod
    def probes(self) -> ProbeSet:
        """What every check asks; the guidance is to be replaced."""

    @abstractmethod
    def recipe(self) -> Recipe:
        """How ranges are calibrated."""

    @abstractmethod
    def style_pictures(self, pictures: Path, style: str) -> tuple[Pictures, torch.Tensor]:
        """Pictures for the style judge with prompts for names, and which of them [n] it does not learn from."""

    @abstractmethod
    def held_out(self, pictures: Path, style: str, count: int) -> Pictures:
        """``count`` pictures that no adapter learned from, with prompts for names; the same for every run."""

    @abstractmethod
    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, place: torch.Tensor) -> Noised:
        """As ``tools.train_zoo.kinds.Kind.add_noise``."""

    def vae(self) -> AutoencoderTiny:
        """The autoencoder, in float32."""
        return base.autoencoder()

    def encoded(self, pictures: Pictures) -> torch.Tensor:
        """Latents [n, C, h, w]."""
        return encode(self.vae(), pictures)

    def records(self) -> list[dict[str, Any]]:
        """The records of its adapters."""
        trained: list[dict[str, Any]] = json.loads((self.folder / "training.json").read_text("utf-8"))
        return trained

    def adapter(self, name: str) -> Path:
        """An adapter's file."""
        return self.folder / "adapters" / f"{name}.safetensors"

    def cases(self, adapter: str, guidance: float) -> Path:
        """The file of an adapter's cases."""
        return SCALARS / self.name / "cases" / f"{adapter}-{guidance:g}.json.gz"


def _in_order(names: Sequence[str], salt: str) -> list[str]:
    """Names in the order of a hash, which is the same everywhere."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{salt} {name}".encode()).digest())


class Demo(Pipeline):
    """The demo's pipeline: output eps."""

    def probes(self) -> ProbeSet:
        """The demo's own."""
        return probe.find(library.PROBES)

    def recipe(self) -> Recipe:
        """The demo's own."""
        return recipes.find("emoji")

    def style_pictures(self, pictures: Path, style: str) -> tuple[Pictures, torch.Tensor]:
        """The style's pictures of everything that the base's own style draws too; every sixth subject is kept."""
        known = {_plain(name) for name in icons.load(pictures, self.styles[0]).names}
        every = icons.load(pictures, style)
        common = every.only({name for name in every.names if _plain(name) in known})
        return common, torch.tensor([icons.held_out(_plain(name)) for name in common.names])

    def held_out(self, pictures: Path, style: str, count: int) -> Pictures:
        """Of subjects that the base knows."""
        every, learned = icons.load(pictures, style), {name for name in icons.common() if not icons.held_out(name)}
        names = (set(every.names) & icons.subjects(pictures)) - learned
        chosen = every.only(set(_in_order(list(names), "utility")[:count]))
        return Pictures(tuple(map(prompt, chosen.names)), chosen.images)

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, place: torch.Tensor) -> Noised:
        """The output is the noise."""
        times, level = discrete(scheduler().alphas_cumprod, place)
        return level.sqrt() * latents + (1 - level).sqrt() * noise, times, noise


class FewSteps(Demo):
    """The demo's pipeline with its step-distillation adapter in every arm: four steps without guidance."""

    def probes(self) -> ProbeSet:
        """The demo's, of four steps."""
        return super().probes().model_copy(update={"steps": FEW.steps, "guidance": FEW.guidance})


def _plain(name: str) -> str:
    return name.replace("-", "")  # fxemoji writes names without dashes


@dataclass(frozen=True)
class Trained(Pipeline):
    """A pipeline that ``tools.train_zoo`` made."""

    training: base.Base

    def _prompts(self) -> list[str]:
        """All prompts that the base learned, in an order of their own."""
        learned = json.loads((self.folder / base.PROMPTS).read_text("utf-8"))
        return _in_order(learned, "probes")

    def probes(self) -> ProbeSet:
        """Prompts that the base learned."""
        asked = tuple(self._prompts()[:_PROBES])
        return ProbeSet(name=self.name, prompts=asked, seed=100, steps=20, guidance=3.0)

    def recipe(self) -> Recipe:
        """The demo's, on other prompts that the base learned."""
        asked = tuple(self._prompts()[_PROBES : _PROBES + _CALIBRATING])
        return recipes.find("emoji").model_copy(update={"prompts": PromptSet(name=self.name, prompts=asked)})

    def style_pictures(self, pictures: Path, style: str) -> tuple[Pictures, torch.Tensor]:
        """All pictures of the style."""
        every = self.training.pictures(pictures, style)
        return every, torch.tensor([icons.held_out(name) for name in every.names])

    def held_out(self, pictures: Path, style: str, count: int) -> Pictures:
        """Held out from the adapters."""
        every = split(self.training.pictures(pictures, style), True)
        return every.only(set(_in_order(every.names, "utility")[:count]))

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, place: torch.Tensor) -> Noised:
        """As it was trained."""
        return self.training.kind.add_noise(latents, noise, place)


def _trained(training: base.Base) -> Trained:
    folder = SCALARS / training.name
    styles = training.style, *training.styles
    return Trained(training.name, styles, folder, str(folder / "pipeline"), GUIDANCES, training)


PIPELINES: Mapping[str, Pipeline] = {
    one.name: one
    for one in (
        Demo("demo", tuple(PACKAGES), SCALARS / "demo", library.NAME, GUIDANCES),
        FewSteps("few", tuple(PACKAGES), SCALARS / "demo", library.NAME, (FEW.guidance,), beside=(FEW.name,)),
        *map(_trained, base.BASES.values()),
    )
}
