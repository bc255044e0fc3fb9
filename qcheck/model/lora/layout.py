"""The layouts of adapter files: which tensors belong together, and which layer of the base a name means.

A layer is ``component.module`` in diffusers' names. Trainers write those names, or flat ones (kohya, OneTrainer,
LyCORIS), or the names of the original code, where one layer stands for several of diffusers'.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.loaders import StableDiffusionXLLoraLoaderMixin
from peft.utils.other import get_pattern_key

from qcheck.model.lora import original
from qcheck.model.quiet import quiet


@dataclass(frozen=True)
class Factors:
    """What an adapter holds for one layer: ``down`` [r, in, ...], ``up`` [out, r, ...], alpha / rank, DoRA's sizes."""

    down: torch.Tensor
    up: torch.Tensor
    scale: float
    magnitude: torch.Tensor | None = None

    def change(self) -> torch.Tensor:
        """The change of the weight [out, in, ...] at weight 1."""
        product = self.up.float().flatten(1) @ self.down.float().flatten(1)
        return (self.scale * product).view(len(self.up), *self.down.shape[1:])

    def rows(self, chosen: torch.Tensor) -> "Factors":
        """Of the outputs only ``chosen``, in that order."""
        magnitude = None if self.magnitude is None else self.magnitude.flatten()[chosen]
        return replace(self, up=self.up[chosen], magnitude=magnitude)


@dataclass(frozen=True)
class Names:
    """What a base calls its layers; empty where no base is known."""

    denoiser: str = ""
    layers: frozenset[str] = frozenset()
    layers_per_block: int = 2  # as in the UNet of every Stable Diffusion

    @cached_property
    def flat(self) -> dict[str, str]:
        """The layers by their names with underscores for dots."""
        return {layer.replace(".", "_"): layer for layer in self.layers}

    @cached_property
    def components(self) -> tuple[str, ...]:
        """The denoiser first."""
        every = {layer.split(".")[0] for layer in self.layers}
        return tuple(sorted(every, key=lambda name: (name != self.denoiser, name)))


class LayoutError(ValueError):
    """A file's names or shapes make no sense."""


_PARTS = {"lora_A": "down", "lora_down": "down", "down": "down", "lora_B": "up", "lora_up": "up", "up": "up"}
_KEYS = tuple(
    re.compile(pattern)
    for pattern in (
        r"^(?P<name>.+?)(\.lora_linear_layer|\.lora)?\.(?P<part>lora_A|lora_B|lora_down|lora_up|down|up)"
        r"(\.default)?\.weight$",
        r"^(?P<name>.+)\.(?P<part>alpha)$",
        r"^(?P<name>.+)\.lora_(?P<part>magnitude)_vector(\.default)?(\.weight)?$",
    )
)


def keys(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """The file's keys of each part (down, up, alpha, magnitude) by its own names of layers, and keys that are no part.

    Raises:
        LayoutError: one part twice.
    """
    found: dict[str, dict[str, str]] = defaultdict(dict)
    strange = []
    for key, value in tensors.items():
        matched = next((match for match in (pattern.match(key) for pattern in _KEYS) if match), None)
        part = matched["part"] if matched else ""
        if matched is None or (part == "alpha" and value.numel() != 1) or (part in _PARTS and value.ndim < 2):
            strange.append(key)
        elif _PARTS.get(part, part) in found[matched["name"]]:
            raise LayoutError(f"it holds the same as {key} under another name")
        else:
            found[matched["name"]][_PARTS.get(part, part)] = key
    return dict(found), strange


def entries(tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> tuple[dict[str, Factors], list[str]]:
    """What the file holds by the file's own names, and the keys that are no part of an adapter.

    ``config`` is PEFT's, by component where the names begin with one: it gives alpha where the file has no such key.

    Raises:
        LayoutError: a name with only one of its factors, or a part twice.
    """
    found, strange = keys(tensors)
    whole = {}
    for name, named in found.items():
        parts = {part: tensors[key] for part, key in named.items()}
        if not {"down", "up"} & set(parts):
            strange += [f"{name}.{part}" for part in parts]
            continue
        if not {"down", "up"} <= set(parts):
            raise LayoutError(f"{name} has only the factor {'down' if 'down' in parts else 'up'}")
        scale = _scale(name, len(parts["down"]), parts.get("alpha"), config)
        whole[name] = Factors(parts["down"], parts["up"], scale, parts.get("magnitude"))
    return whole, strange


def _scale(name: str, rank: int, alpha: torch.Tensor | None, config: Mapping[str, Any]) -> float:
    """Alpha / rank: from the file's alpha key, else from PEFT's config, else 1 as loaders assume."""
    if alpha is not None:
        return float(alpha) / rank
    component, _, layer = name.partition(".")
    if f"{component}.r" in config:
        config = {key.removeprefix(f"{component}."): value for key, value in config.items()}
    else:
        layer = name.removeprefix("base_model.model.")
    patterns = config.get("alpha_pattern") or {}
    stored = patterns.get(get_pattern_key(list(patterns), layer), config.get("lora_alpha"))
    if stored is None:
        return 1.0
    return float(stored) / (math.sqrt(rank) if config.get("use_rslora") else rank)


_T5 = ("text_encoder_3", "text_encoder_2")  # Stable Diffusion 3's third, Flux's second
_CLIP, _CLIP_2 = ("text_encoder",), ("text_encoder_2",)
_WRAPPERS = ("base_model.model.", "model.diffusion_model.", "diffusion_model.")
# how a name begins, and the components that it may then mean; () is the denoiser
_BEGINNINGS: dict[str, tuple[str, ...]] = {
    "lora_unet_": (),
    "lora_transformer_": ("transformer",),
    "lora_te_": _CLIP,
    "lora_te1_": _CLIP,
    "lora_te2_": _CLIP_2,
    "lora_te3_": _T5,
    "text_encoders.clip_l.transformer.": _CLIP,
    "text_encoders.clip_g.transformer.": _CLIP_2,
    "text_encoders.t5xxl.transformer.": _T5,
    "unet.": ("unet",),
    "transformer.": ("transformer",),
    "text_encoder.": _CLIP,
    "text_encoder_2.": _CLIP_2,
    "text_encoder_3.": ("text_encoder_3",),
}
# without a base, what a name without a component belongs to
_GUESSES = {
    r"(down|up)_blocks|mid_block|conv_(in|out)|(time|add)_embedding": "unet",
    r"text_model|encoder": "text_encoder",
}


def placed(name: str, factors: Factors, names: Names) -> dict[str, Factors]:
    """The layers that a file's ``name`` means in this base, each with its part of the factors.

    A name that the base does not have is given back as far as it could be read.

    Raises:
        LayoutError: factors of a fused layer that cannot be split.
    """
    components, body = _begun(name, names)
    parts = () if components[0].startswith("text_encoder") else original.layers(body)
    if parts:
        denoiser = names.denoiser or "transformer"
        return {f"{denoiser}.{layer}": part for layer, part in _split(name, parts, factors)}
    return {_layer(name, components, body, names): factors}


def _begun(name: str, names: Names) -> tuple[tuple[str, ...], str]:
    """The components that a name may mean, the likeliest first, and the rest of it."""
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    for beginning, components in _BEGINNINGS.items():
        if name.startswith(beginning):
            return components or (names.denoiser or "unet",), name.removeprefix(beginning)
    guess = next((component for pattern, component in _GUESSES.items() if re.match(pattern, name)), "transformer")
    return names.components or (guess,), name


def _split(name: str, parts: tuple[str, ...], factors: Factors) -> Iterator[tuple[str, Factors]]:
    """The outputs of a fused layer: as many as it has inputs for each part, and the last one has the rest."""
    total, width = factors.up.shape[0], factors.down.shape[1]
    starts = [width * place for place in range(len(parts))]
    if total <= starts[-1]:
        raise LayoutError(f"{name} has {total} outputs, too few for its {len(parts)} parts of {width}")
    for layer, start, end in zip(parts, starts, [*starts[1:], total], strict=True):
        rows = torch.arange(start, end)
        swapped = layer.endswith(original.SWAPPED) and total == 2 * width
        yield layer, factors.rows(rows.roll(width) if swapped else rows)


def _layer(name: str, components: tuple[str, ...], body: str, names: Names) -> str:
    """The one layer of a base that a name without parts means."""
    body = _renamed(body, components[0])
    found = _found(components, body, names)
    if found is None and name.startswith("lora_"):
        body = _renamed(_converted(name, names) or body, components[0])
        found = _found(components, body, names)
    return found or f"{components[0]}.{body}"


def _found(components: tuple[str, ...], body: str, names: Names) -> str | None:
    """The base's layer, whether ``body`` is flat or dotted; text encoders have a ``text_model`` level or have not."""
    flat = body.replace(".", "_")
    variants = (flat, flat.removeprefix("text_model_"), f"text_model_{flat}")
    known = (names.flat.get(f"{component}_{variant}") for component in components for variant in variants)
    found = list(dict.fromkeys(layer for layer in known if layer is not None))
    if len(found) > 1 and components == names.components:
        raise LayoutError(f"{body} may be {' or '.join(found)}: write the component before its names")
    return found[0] if found else None


def _renamed(body: str, component: str) -> str:
    """``body`` without the attention processor that held the factors in older releases of diffusers."""
    body = body.replace(".processor.", ".")
    matched = re.match(r"(?P<block>.*\.)to_(?P<part>q|k|v|out)_lora$", body)
    if matched is None:
        return body
    if component.startswith("text_encoder"):
        return f"{matched['block']}{matched['part']}_proj"
    return f"{matched['block']}to_{matched['part']}" + (".0" if matched["part"] == "out" else "")


def _converted(name: str, names: Names) -> str | None:
    """A flat name of a UNet or of CLIP, without its component, by diffusers, which knows SDXL's original blocks."""
    if "add_embedding" in name:
        return None  # it would lose which of the two layers
    pair = {f"{name}.lora_{side}.weight": torch.zeros(1, 1) for side in ("down", "up")}
    try:
        with quiet():
            config = SimpleNamespace(layers_per_block=names.layers_per_block)
            state = StableDiffusionXLLoraLoaderMixin.lora_state_dict(pair, unet_config=config)[0]
    except (ValueError, LookupError):
        return None
    matched = _KEYS[0].match(next(iter(state), ""))
    return matched["name"].partition(".")[2] if matched else None
