"""Read an adapter, prove that it fits the base, and merge it."""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.utils.state_dict_utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from safetensors import SafetensorError, safe_open

from qcheck import files
from qcheck.errors import UserError
from qcheck.job import Use
from qcheck.model.quiet import quiet

PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})
_FACTOR = re.compile(r"^(?P<module>.+?)\.lora_(?P<side>[AB])\.weight$")


@dataclass(frozen=True)
class Adapter:
    """A checked file: nothing of it is applied yet."""

    path: Path
    weight: float
    digest: str
    metadata: dict[str, str]


def read(used: Use) -> Adapter:
    """Check the file; its tensors are looked at one by one and not kept.

    Raises:
        UserError: missing, a pickle, not whole safetensors, NaN or infinite values, or a weight that is not finite.
    """
    source, path = used.source, Path(used.source)
    if not math.isfinite(used.weight):
        raise UserError(f"adapter weight {used.weight} is not finite", "Give a number such as 1.0.")
    if not path.is_file():
        raise UserError(f"adapter {source!r} does not exist", "Give a LoRA .safetensors file.")
    if path.suffix in PICKLES:
        raise UserError(
            f"adapter {source!r} is a pickle, which can run code when it is loaded",
            "It was not opened. Convert it to safetensors where you trust it, and give that file.",
        )
    try:
        with safe_open(path, "pt") as stream:
            metadata = dict(stream.metadata() or {})
            damaged = [name for name in stream.keys() if not torch.isfinite(stream.get_tensor(name)).all()]  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"adapter {source!r} is not a whole safetensors file: {error}",
            "Give a LoRA .safetensors file; if it is one, download it again.",
        ) from error
    if damaged:
        raise UserError(
            f"adapter {source!r} holds NaN or infinity in {len(damaged)} tensors, first {damaged[0]}",
            "Its training diverged or the file is damaged: export it again from an earlier step.",
        )
    return Adapter(path, used.weight, files.digest(path), metadata)


def trigger_words(adapter: Adapter) -> list[str]:
    """Words that may wake the adapter, from what kohya's trainer and model sites write into the file.

    A trigger phrase first, then the tags of the training captions, the most frequent first.
    """
    phrase = adapter.metadata.get("modelspec.trigger_phrase", "").strip()
    return ([phrase] if phrase else []) + list(tag_counts(adapter))


def tag_counts(adapter: Adapter) -> dict[str, int]:
    """How often each tag stood in the captions that the adapter was trained on (kohya's ``ss_tag_frequency``)."""
    try:
        folders = json.loads(adapter.metadata.get("ss_tag_frequency", "{}"))
    except ValueError:
        return {}
    counts: Counter[str] = Counter()
    for tags in folders.values() if isinstance(folders, dict) else ():
        counts.update({str(tag).strip(): int(count) for tag, count in tags.items()} if isinstance(tags, dict) else {})
    return dict(counts.most_common())


Factors = dict[str, dict[str, torch.Tensor]]
_OTHER_KINDS = {"dora_scale": "DoRA in kohya's layout", "hada_w": "LoHa", "lokr_w": "LoKr", "oft_": "OFT"}
_MAGNITUDE = "lora_magnitude_vector"  # DoRA in PEFT's layout, which diffusers merges


def _require_lora(adapter: Adapter) -> None:
    with safe_open(adapter.path, "pt") as stream:
        for key in stream.keys():  # noqa: SIM118
            for mark, kind in _OTHER_KINDS.items():
                if mark in key:
                    raise UserError(
                        f"adapter {str(adapter.path)!r} is a {kind} ({key}); this version checks LoRA and PEFT's DoRA",
                        "Merge it into the base and check that, or train a LoRA.",
                    )


def require_plain(adapter: Adapter) -> None:
    """Refuse DoRA where a change of weights has to be the product of two factors."""
    with safe_open(adapter.path, "pt") as stream:
        if any(_MAGNITUDE in key for key in stream.keys()):  # noqa: SIM118
            raise UserError(
                f"adapter {str(adapter.path)!r} is a DoRA: it also rescales whole weights, which is not forecast here",
                "qcheck check measures it.",
            )


def _converted(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """``state`` with every component's keys in PEFT's names, as diffusers converts them when it loads."""
    found: dict[str, torch.Tensor] = {}
    for component in {key.split(".")[0] for key in state}:
        part = {k.removeprefix(f"{component}."): v for k, v in state.items() if k.startswith(f"{component}.")}
        if component == "unet":
            part = convert_unet_state_dict_to_peft(part)
        elif any("lora_A" not in key and "lora_B" not in key for key in part):
            part = convert_state_dict_to_peft(convert_state_dict_to_diffusers(part))
        found |= {f"{component}.{key}": value for key, value in part.items()}
    return found


def factors_of(loader: Any, adapter: Adapter) -> tuple[Factors, dict[str, float]]:
    """``{component.module: {"A": [r, in, ...], "B": [out, r, ...]}}`` in diffusers' names, and alphas by module.

    ``loader`` is a diffusers pipeline or its class, which converts the layout.

    Raises:
        UserError: another kind of adapter, no known layout, or tensors that are not LoRA factors.
    """
    _require_lora(adapter)
    try:
        with quiet():
            state, alphas = loader.lora_state_dict(str(adapter.path.parent), weight_name=adapter.path.name)[:2]
            plain = {k: v for k, v in state.items() if not k.endswith(".alpha") and _MAGNITUDE not in k}
            state = _converted(plain)
    except (ValueError, KeyError, OSError) as error:
        raise UserError(f"adapter {str(adapter.path)!r} is in no known LoRA layout: {error}", _LAYOUTS) from error
    matches = {key: _FACTOR.match(key) for key in state}
    strange = [key for key, matched in matches.items() if matched is None]
    if strange or not state:
        raise UserError(
            f"adapter {str(adapter.path)!r} holds {len(strange)} tensors that are no LoRA factors: {_some(strange)}",
            _LAYOUTS,
        )
    found: Factors = defaultdict(dict)
    for key, matched in matches.items():
        if matched is not None:
            found[matched["module"]][matched["side"]] = state[key]
    return dict(sorted(found.items())), _alphas(alphas or {})


def _alphas(stored: dict[str, Any]) -> dict[str, float]:
    """Alphas by PEFT module name, from kohya's keys as diffusers renames them."""
    suffix = ".lora_A.weight"
    renamed = _converted({key.removesuffix(".alpha"): value for key, value in stored.items()})
    return {key.removesuffix(suffix): float(value) for key, value in renamed.items()}


_LAYOUTS = "Known layouts: diffusers, PEFT and kohya LoRA files."


def _some(names: list[str]) -> str:
    """The first three names."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _layers(pipe: Any, components: tuple[str, ...]) -> dict[str, torch.Tensor]:
    return {
        f"{component}.{name}": module.weight
        for component in components
        for name, module in getattr(pipe, component).named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    }


def _named(name: str, layers: Mapping[str, object]) -> str:
    """The layer's name in this base; newer text encoders have no ``text_model`` level."""
    flat = name.replace(".text_model.", ".", 1)
    return flat if name not in layers and flat in layers else name


@dataclass(frozen=True)
class Fit:
    """Down factors [r, in, ...] by the layers ``component.module`` that an adapter changes, and what it has besides."""

    down: dict[str, torch.Tensor]
    unmatched: tuple[str, ...]


def fit(pipe: Any, adapter: Adapter, allow_unmatched: bool = False) -> Fit:
    """Where the adapter's factors go in this base.

    Raises:
        UserError: keys that match no layer of this base (all of them, where some are allowed not to), or factors that
            do not fit the layer's weight.
    """
    layers = _layers(pipe, ("unet", "text_encoder"))
    factors = {_named(name, layers): pair for name, pair in factors_of(pipe, adapter)[0].items()}
    unmatched = sorted(set(factors) - set(layers))
    if len(unmatched) == len(factors) or (unmatched and not allow_unmatched):
        none = "none" if len(unmatched) == len(factors) else f"only {len(factors) - len(unmatched)}"
        advice = "" if none == "none" else " --allow-unmatched checks what does match, and lists the rest."
        raise UserError(
            f"{none} of the {len(factors)} layers of adapter {str(adapter.path)!r} exist in this base; "
            f"missing: {_some(unmatched)}",
            f"It was trained for another base; this one has layers such as {_some(sorted(layers))}.{advice}",
        )
    matching = sorted(set(factors) - set(unmatched))
    for name in matching:
        require_shape(name, layers[name], factors[name])
    return Fit({name: factors[name]["A"].float() for name in matching}, tuple(unmatched))


def require_shape(name: str, weight: torch.Tensor, pair: dict[str, torch.Tensor]) -> None:
    """Refuse factors that do not multiply to the shape of the layer's weight."""
    if set(pair) != {"A", "B"}:
        raise UserError(f"adapter layer {name} has only factor {''.join(pair)}", "Export the adapter again.")
    down, up = pair["A"], pair["B"]
    expected = (weight.shape[0], weight.shape[1])
    if (up.shape[0], down.shape[1]) != expected or up.shape[1] != down.shape[0]:
        raise UserError(
            f"adapter layer {name}: factors {list(up.shape)} x {list(down.shape)} do not fit "
            f"the weight {list(weight.shape)}",
            "It was trained for another base of the same family; give that base.",
        )


def merge(pipe: Any, adapter: Adapter) -> None:
    """Add ``weight * B @ A * alpha / rank`` to the pipeline's own weights with diffusers and PEFT, in float32."""
    with quiet():
        pipe.load_lora_weights(str(adapter.path.parent), weight_name=adapter.path.name, adapter_name="checked")
        pipe.set_adapters(["checked"], [adapter.weight])
        pipe.fuse_lora(adapter_names=["checked"])
        pipe.unload_lora_weights()
