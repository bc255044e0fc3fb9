"""The layouts of adapter files: which tensors belong together, and which layer of the base a name stands for.

A layer is ``component.module`` in diffusers' names. Trainers write those names, or flat names (kohya, OneTrainer,
LyCORIS), or the names of the original code, where one layer stands for several layers of diffusers.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch

from qcheck.model.lora import original, products


@dataclass(frozen=True)
class Sizes:
    """DoRA's sizes [n] of a weight's outputs (``axis`` 0) or inputs (1), to which weight and change are rescaled.

    At weights of the adapter other than 1 the whole change is scaled where they are ``blended``, else the factors'.
    """

    values: torch.Tensor
    axis: int = 0
    blended: bool = False

    def rescaled(self, weight: torch.Tensor) -> torch.Tensor:
        """A weight [out, in, ...] of these sizes (arXiv 2402.09353, eq. 5)."""
        others = [axis for axis in range(weight.ndim) if axis != self.axis]
        norms = torch.linalg.vector_norm(weight, dim=others, keepdim=True).clamp(min=1e-30)
        result: torch.Tensor = weight * (self.values.float().view(norms.shape) / norms)
        return result


@dataclass(frozen=True)
class Factors:
    """An adapter's tensors of one layer: ``down`` [r, in, ...], ``up`` [out, r, ...]; alpha / rank; DoRA's sizes."""

    down: torch.Tensor
    up: torch.Tensor
    scale: float
    sizes: Sizes | None = None

    def change(self) -> torch.Tensor:
        """The change of the weight [out, in, ...] at weight 1."""
        product = self.up.float().flatten(1) @ self.down.float().flatten(1)
        return (self.scale * product).view(len(self.up), *self.down.shape[1:])

    def merged(self, before: torch.Tensor, weight: float) -> torch.Tensor:
        """A layer's float32 weight [out, in, ...] with ``weight * scale * up @ down`` added to it, on its device."""
        change = self.change().view(before.shape)
        if self.sizes is None:
            return before + weight * change
        if not self.sizes.blended:
            return self.sizes.rescaled(before + weight * change)
        return torch.lerp(before, self.sizes.rescaled(before + change), weight)

    def added(self, before: torch.Tensor, weight: float) -> torch.Tensor:
        """The change that ``merged`` makes of a layer's float32 weight [out, in, ...]."""
        if self.sizes is None:
            return weight * self.change().view(before.shape)
        return self.merged(before, weight) - before

    def energy(self) -> float:
        """The sum of squares of ``change``, without computing it."""
        up, down = self.up.float().flatten(1), self.down.float().flatten(1)
        return self.scale**2 * float(((up.t() @ up) * (down @ down.t())).sum())

    def idle(self) -> bool:
        """Whether one of the factors is zero, so that nothing is added."""
        return self.sizes is None and not (self.up.any() and self.down.any())

    def shaped(self, shape: torch.Size) -> "Factors":
        """The factors of a weight of ``shape`` [out, in, ...]: some files have convolutions' as matrices."""
        return replace(self, down=self.down.view(len(self.down), *shape[1:]))

    def to(self, device: torch.device) -> "Factors":
        """The same tensors on ``device``."""
        sizes = None if self.sizes is None else replace(self.sizes, values=self.sizes.values.to(device))
        return replace(self, down=self.down.to(device), up=self.up.to(device), sizes=sizes)

    def rows(self, indices: torch.Tensor) -> "Factors":
        """The factors of the outputs ``indices`` alone, in that order.

        Raises:
            ValueError: sizes of inputs, which depend on all outputs.
        """
        if self.sizes is None:
            return replace(self, up=self.up[indices])
        if self.sizes.axis:
            raise ValueError("sizes of inputs depend on all outputs")
        return replace(self, up=self.up[indices], sizes=replace(self.sizes, values=self.sizes.values[indices]))


@dataclass(frozen=True)
class Names:
    """The names of a base's layers; empty where no base is known."""

    denoiser: str = ""
    layers: frozenset[str] = frozenset()
    layers_per_block: int = 2  # as in the UNet of every Stable Diffusion

    @cached_property
    def flat(self) -> dict[str, str]:
        """The layers by their flat names, with underscores for dots."""
        return {layer.replace(".", "_"): layer for layer in self.layers}

    @cached_property
    def components(self) -> tuple[str, ...]:
        """The components that have layers, the denoiser first."""
        names = {layer.split(".")[0] for layer in self.layers}
        return tuple(sorted(names, key=lambda name: (name != self.denoiser, name)))


class LayoutError(ValueError):
    """The names or shapes in a file fit no known layout."""


_PARTS = {"lora_A": "down", "lora_down": "down", "down": "down", "lora_B": "up", "lora_up": "up", "up": "up"}
_FACTOR = re.compile(
    r"^(?P<name>.+?)(\.lora_linear_layer|\.lora)?\.(?P<part>lora_A|lora_B|lora_down|lora_up|down|up)\.weight$"
)
_KEYS = (
    _FACTOR,
    re.compile(r"^(?P<name>.+?)\.(?P<part>lora_A|lora_B|lora_down|lora_up)\.\w+\.weight$"),  # PEFT's adapter's name
    re.compile(r"^(?P<name>.+)\.(?P<part>alpha|dora_scale|diff_b|w_norm|b_norm)$"),
    re.compile(r"^(?P<name>.+?)(\.lora)?\.lora_B(\.\w+)?\.(?P<part>bias)$"),
    re.compile(rf"^(?P<name>.+)\.(?P<part>{'|'.join(products.PARTS)})$"),
    re.compile(r"^(?P<name>.+)\.lora_(?P<part>magnitude)_vector(\.(?!weight$)\w+)?(\.weight)?$"),
)


def keys(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """The keys of each part by the file's names, and all other keys.

    Parts are down, up, alpha, magnitude (PEFT's DoRA), dora_scale (kohya's), those of shifts and ``products.PARTS``.

    Raises:
        LayoutError: a layer has a part twice.
    """
    part_keys: dict[str, dict[str, str]] = defaultdict(dict)
    other_keys = []
    for key, value in tensors.items():
        match = next((candidate for candidate in (pattern.match(key) for pattern in _KEYS) if candidate), None)
        part = match["part"] if match else ""
        axes = {**dict.fromkeys(_PARTS, value.ndim >= 2), **dict.fromkeys(_SHIFTS, value.ndim == 1)}
        if match is None or (part == "alpha" and value.numel() != 1) or not axes.get(part, True):
            other_keys.append(key)
        elif _PARTS.get(part, part) in part_keys[match["name"]]:
            raise LayoutError(f"it holds the same as {key} under another name")
        else:
            part_keys[match["name"]][_PARTS.get(part, part)] = key
    return dict(part_keys), other_keys


_SHIFTS = {
    "diff_b": "bias",
    "b_norm": "bias",
    "bias": "bias",
    "w_norm": "weight",
}  # the parameter that each is added to
Shift = dict[str, torch.Tensor]  # additions [n] to a layer's ``weight`` or ``bias``, which are never quantized


class Entries(NamedTuple):
    """A file's factors and shifts by its names of layers, and the keys that belong to neither."""

    factors: dict[str, Factors]
    shifts: dict[str, Shift]
    others: list[str]


def entries(tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> Entries:
    """What a file holds of each layer.

    ``config`` is PEFT's, by component where the names begin with one: it gives alpha where the file has no alpha key.

    Raises:
        LayoutError: a name with only one of its factors, or a part twice.
    """
    part_keys, other_keys = keys(tensors)
    complete, shifts = {}, {}
    for name, key_of in part_keys.items():
        shift, parts = _shift(name, {part: tensors[key] for part, key in key_of.items()}, config)
        if shift:
            shifts[name] = shift
        if shift and not parts:
            continue
        if product := {part: value for part, value in parts.items() if part in products.PARTS}:
            complete[name] = _product(name, product, {part: v for part, v in parts.items() if part not in product})
            continue
        if not {"down", "up"} & set(parts):
            other_keys += [f"{name}.{part}" for part in parts]
            continue
        if not {"down", "up"} <= set(parts):
            raise LayoutError(f"{name} has only the factor {'down' if 'down' in parts else 'up'}")
        if not len(parts["down"]):
            raise LayoutError(f"{name} has factors of rank 0")
        if not parts["down"].numel() or not parts["up"].numel():
            raise LayoutError(f"{name} has an empty factor")
        scale = _scale(name, len(parts["down"]), parts.get("alpha"), config)
        complete[name] = _sized(name, Factors(parts["down"], parts["up"], scale), parts)
    return Entries(complete, shifts, other_keys)


def _shift(
    name: str, parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> tuple[Shift, dict[str, torch.Tensor]]:
    """The additions to biases and norms among a layer's ``parts``, and the rest. PEFT scales its biases too."""
    shift, rest = Shift(), dict[str, torch.Tensor]()
    for part, value in parts.items():
        parameter = "weight" if part == "diff" and value.ndim == 1 else _SHIFTS.get(part)
        if parameter is None or (part == "bias" and "down" not in parts):
            rest[part] = value
            continue
        if parameter in shift:
            raise LayoutError(f"{name} has an addition to its {parameter} twice")
        scale = _scale(name, max(1, len(parts["down"])), parts.get("alpha"), config) if part == "bias" else 1.0
        shift[parameter] = scale * value.float()
    return shift, rest


def _product(name: str, parts: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> Factors:
    """The factors of a LoHa, a LoKr or a whole difference."""
    try:
        made = products.factors(parts)
    except (RuntimeError, IndexError) as error:
        raise LayoutError(f"{name} has parts that do not multiply: {', '.join(sorted(parts))}") from error
    if made is None or set(others) - {"alpha", "dora_scale"} or ("diff" in parts and others):
        raise LayoutError(f"{name} has parts that make no change together: {', '.join(sorted({*parts, *others}))}")
    down, up, rank = made
    if not down.numel() or not up.numel():
        raise LayoutError(f"{name} has factors of rank 0")
    alpha = others.get("alpha")
    return _sized(name, Factors(down, up, float(alpha) / rank if rank and alpha is not None else 1.0), others)


def _sized(name: str, factors: Factors, parts: Mapping[str, torch.Tensor]) -> Factors:
    """The factors with the sizes of a DoRA in PEFT's layout (of outputs), or in kohya's (of the longer axis)."""
    magnitude, scale = parts.get("magnitude"), parts.get("dora_scale")
    if magnitude is not None and scale is not None:
        raise LayoutError(f"{name} has the sizes of a DoRA twice")
    if magnitude is not None:
        return replace(factors, sizes=Sizes(magnitude.flatten()))
    if scale is None:
        return factors
    if scale.ndim < 2 or scale.numel() != max(scale.shape[:2]):
        raise LayoutError(f"{name} has a dora_scale of shape {list(scale.shape)}, which is of no one axis")
    on_inputs = scale.shape[0] == 1 and len(factors.up) != 1
    return replace(factors, sizes=Sizes(scale.flatten(), int(on_inputs), blended=True))


def _scale(name: str, rank: int, alpha: torch.Tensor | None, config: Mapping[str, Any]) -> float:
    """Alpha / rank: from the file's alpha key, else from PEFT's config, else 1 as loaders assume."""
    if alpha is not None:
        return float(alpha) / rank
    component, _, layer = name.partition(".")
    if f"{component}.r" in config:
        config = {key.removeprefix(f"{component}."): value for key, value in config.items()}
    else:
        layer = name.removeprefix("base_model.model.")
    lora_alpha = config.get("lora_alpha")
    if patterns := config.get("alpha_pattern"):
        from peft.utils.other import get_pattern_key  # seconds to import, and few files need it

        lora_alpha = patterns.get(get_pattern_key(list(patterns), layer), lora_alpha)
    if lora_alpha is None:
        return 1.0
    return float(lora_alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


_T5 = ("text_encoder_3", "text_encoder_2", "text_encoder")  # Stable Diffusion 3's third, Flux's second, Chroma's only
_CLIP, _CLIP_2 = ("text_encoder",), ("text_encoder_2",)
_WRAPPERS = ("base_model.model.", "model.diffusion_model.", "diffusion_model.")
# prefixes of names, and the components that each may stand for; () is the denoiser
_PREFIXES: dict[str, tuple[str, ...]] = {
    "lora_unet_": (),
    "lora_transformer_": ("transformer",),
    "lora_te_": _CLIP,
    "lora_te1_": _CLIP,
    "lora_te2_": _CLIP_2,
    "lora_te3_": _T5,
    "lycoris_": (),
    "text_encoders.clip_l.transformer.": _CLIP,
    "text_encoders.clip_g.transformer.": _CLIP_2,
    "text_encoders.t5xxl.transformer.": _T5,
    "unet.": ("unet",),
    "transformer.": ("transformer",),
    "text_encoder.": _CLIP,
    "text_encoder_2.": _CLIP_2,
    "text_encoder_3.": ("text_encoder_3",),
}
# without a base: the component of a name that has no prefix
_GUESSES = {
    r"(down|up)_blocks|mid_block|conv_(in|out)|(time|add)_embedding": "unet",
    r"text_model|encoder": "text_encoder",
}


def placed(name: str, factors: Factors, names: Names) -> dict[str, Factors]:
    """The layers of this base that a file's ``name`` stands for, each with its part of the factors.

    A name that the base does not have is returned with the likeliest component.

    Raises:
        LayoutError: factors of a fused layer that cannot be split.
    """
    components, body = _split_component(name, names)
    own = not names.layers and name.startswith("transformer.")  # diffusers' prefix before diffusers' names
    if parts := () if own else _original_layers(components, body, names):
        denoiser = names.denoiser or "transformer"
        return {f"{denoiser}.{layer}": part for layer, part in _split_fused(name, parts, factors)}
    return {_single_layer(components, body, names): factors}


def _original_layers(components: tuple[str, ...], body: str, names: Names) -> tuple[str, ...]:
    """The denoiser's layers that a name of the original code stands for; empty where the base has the name itself."""
    if components[0].startswith("text_encoder") or _base_layer(components, body, names):
        return ()
    kinds = original.layers(body)
    here = (parts for parts in kinds if f"{names.denoiser}.{parts[0]}" in names.layers)
    return next(here, kinds[0] if kinds else ())


def _split_component(name: str, names: Names) -> tuple[tuple[str, ...], str]:
    """The components that a name may stand for, the likeliest first, and the name without its prefix."""
    name = _unwrapped(name)
    for prefix, components in _PREFIXES.items():
        if name.startswith(prefix):
            body = _unwrapped(name.removeprefix(prefix))
            return components or (names.denoiser or _guess(body),), body
    return names.components or (_guess(name),), name


def _guess(body: str) -> str:
    """The likeliest component of a name that has none, without a base."""
    return next((component for pattern, component in _GUESSES.items() if re.match(pattern, body)), "transformer")


def _unwrapped(name: str) -> str:
    """``name`` without what PEFT and the original code write before it."""
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def _split_fused(name: str, parts: tuple[str, ...], factors: Factors) -> Iterator[tuple[str, Factors]]:
    """The factors of each part of a fused layer: every part has as many outputs as inputs, the last has the rest."""
    if factors.sizes is not None and factors.sizes.axis:
        raise LayoutError(f"{name} stands for {len(parts)} layers, and its dora_scale is of their inputs together")
    total, width = factors.up.shape[0], factors.down.shape[1]
    if not width:
        raise LayoutError(f"{name} stands for {len(parts)} layers, and has no factors that say how long each is")
    starts = [width * place for place in range(len(parts))]
    if total <= starts[-1]:
        raise LayoutError(f"{name} has {total} outputs, too few for its {len(parts)} parts of {width}")
    if factors.sizes is not None and not factors.sizes.axis and len(factors.sizes.values) != total:
        raise LayoutError(f"{name} has {len(factors.sizes.values)} sizes of a DoRA for {total} outputs")
    for layer, start, end in zip(parts, starts, [*starts[1:], total], strict=True):
        rows = torch.arange(start, end)
        swapped = layer.endswith(original.SWAPPED) and total == 2 * width
        yield layer, factors.rows(rows.roll(width) if swapped else rows)


def _single_layer(components: tuple[str, ...], body: str, names: Names) -> str:
    """The layer of the base that the name of an unfused layer stands for."""
    body = _without_processor(body, components[0])
    layer = _base_layer(components, body, names)
    if layer is None and not components[0].startswith("text_encoder"):
        body = original.unet_layer(body, names.layers_per_block) or body
        layer = _base_layer(components, body, names)
    return layer or f"{components[0]}.{body}"


def _base_layer(components: tuple[str, ...], body: str, names: Names) -> str | None:
    """The base's layer of a flat or dotted name, with or without the ``text_model`` level of text encoders."""
    flat = body.replace(".", "_")
    variants = (flat, flat.removeprefix("text_model_"), f"text_model_{flat}")
    candidates = (names.flat.get(f"{component}_{variant}") for component in components for variant in variants)
    matches = list(dict.fromkeys(layer for layer in candidates if layer is not None))
    if len(matches) > 1 and components == names.components:
        raise LayoutError(f"{body} may be {' or '.join(matches)}: write the component before its names")
    return matches[0] if matches else None


def _without_processor(body: str, component: str) -> str:
    """``body`` without the attention processor, under which older releases of diffusers store the factors."""
    body = body.replace(".processor.", ".")
    match = re.match(r"(?P<block>.*\.)to_(?P<part>q|k|v|out)_lora$", body)
    if match is None:
        return body
    if component.startswith("text_encoder"):
        return f"{match['block']}{match['part']}_proj"
    return f"{match['block']}to_{match['part']}" + (".0" if match["part"] == "out" else "")
