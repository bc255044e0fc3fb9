"""Read and check the file of an adapter: its digest, its metadata and the kind of adapter."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qcheck.core import files
from qcheck.core.digest import digest_of
from qcheck.core.errors import UserError
from qcheck.model import tensor_file
from qcheck.spec.use import Use

PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})
_FOLDER = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")  # what PEFT and diffusers save
_CONFIG = "adapter_config.json"
_METADATA_CONFIG = "lora_adapter_metadata"  # the metadata key under which diffusers stores PEFT's config


@dataclass(frozen=True)
class Adapter:
    """A checked adapter file, before it is merged."""

    path: Path
    weight: float
    digest: str
    metadata: dict[str, str]


def read(use: Use) -> Adapter:
    """Check the file; its tensors are read one by one and not kept in memory.

    Raises:
        UserError: missing, a pickle, not whole safetensors, NaN or infinite values, or a weight that is not
            1 for a DoRA in kohya's layout.
    """
    source, path = use.source, file_in(Path(use.source))
    if not path.is_file():
        raise UserError(
            f"adapter {source!r} does not exist",
            "Give a LoRA .safetensors file, or the folder that PEFT or diffusers saved one in.",
        )
    if path.suffix in PICKLES:
        raise UserError(
            f"adapter {source!r} is a pickle, which can run code when it is loaded",
            "It was not opened. Convert it to safetensors where you trust it, and give that file.",
        )
    with tensor_file.opened(path) as stream:
        metadata = dict(stream.metadata() or {})
        names = list(stream.keys())
        damaged = [name for name in names if not _is_finite(stream.get_tensor(name))]
    if damaged:
        raise UserError(
            f"adapter {source!r} holds NaN or infinity in {len(damaged)} tensors, first {damaged[0]}",
            "Its training diverged or the file is damaged: export it again from an earlier step.",
        )
    if use.weight != 1 and any(name.endswith(_KOHYA_SIZES) for name in names):
        raise UserError(
            f"adapter {source!r} is a DoRA in kohya's layout, and loaders disagree on its weight {use.weight:g}",
            "Give it the weight 1.",
        )
    config = config_beside(path)
    more = {} if config is None else {_METADATA_CONFIG: _text(config)}
    return Adapter(path, use.weight, digest(path), metadata | more)


def digest(path: Path) -> str:
    """The digest of an adapter's file, with PEFT's config where that lies beside it."""
    file = file_in(path)
    config = config_beside(file)
    return digest_of(file) if config is None else digest_of(file, config)


def _text(config: Path) -> str:
    try:
        return files.read_text(config)
    except (OSError, ValueError) as error:
        raise UserError(f"{str(config)!r}: {error}", "Save the adapter with PEFT again.") from error


def _is_finite(values: torch.Tensor) -> bool:
    """Whether all values are finite: a NaN would be the smallest and the largest."""
    wide = values.float() if values.dtype.itemsize == 1 else values  # torch orders no float8
    return not wide.numel() or bool(torch.isfinite(torch.stack(wide.aminmax())).all())


def config_beside(path: Path) -> Path | None:
    """PEFT's config in the same folder, where the file is one that PEFT saved."""
    config = path.with_name(_CONFIG)
    return config if path.name == _FOLDER[0] and config.is_file() else None


def file_in(path: Path) -> Path:
    """The file itself, or the one that PEFT or diffusers saved in a folder."""
    return next((path / name for name in _FOLDER if (path / name).is_file()), path)


def trigger_words(adapter: Adapter) -> list[str]:
    """Candidate trigger words, from the metadata that kohya's trainer and model sites write into the file.

    The trigger phrase is first, then the tags of the training captions, the most frequent first.
    """
    phrase = adapter.metadata.get("modelspec.trigger_phrase", "").strip()
    return ([phrase] if phrase else []) + list(tag_counts(adapter))


def tag_counts(adapter: Adapter) -> dict[str, int]:
    """The number of training captions with each tag (kohya's ``ss_tag_frequency``)."""
    try:
        folders = files.parse_json(adapter.metadata.get("ss_tag_frequency", "{}"))
    except ValueError:
        return {}
    counts: Counter[str] = Counter()
    for tags in folders.values() if isinstance(folders, dict) else ():
        numbers = tags.items() if isinstance(tags, dict) else ()
        counts.update({tag.strip(): count for tag, count in numbers if isinstance(count, int)})
    return dict(counts.most_common())


OTHER_KINDS = {
    r"[.]b?oft_|[.]oft_diag": "an OFT",
    r"lora_mid": "a LoCon of three factors",
    r"modules_to_save": "a LoRA with whole layers besides",
    r"on_input$|[.]ia3_": "an (IA)^3",
    r"[.][ab][12][.]weight$": "a GLoRA",
    r"vera_lambda": "a VeRA",
    r"^bundle_emb[.]": "a LoRA with embeddings of its trigger words",
}
# PEFT's initialisations that leave the base unchanged
_PLAIN_STARTS = (
    "true",
    "false",
    "none",
    "gaussian",
    "eva",
    "orthogonal",
    "mica",
)
_KOHYA_SIZES = ".dora_scale"
_SIZES = ("lora_magnitude_vector", _KOHYA_SIZES)  # DoRA in PEFT's layout and in kohya's


def require_lora(adapter: Adapter, keys: Iterable[str], config: Mapping[str, Any]) -> None:
    """Refuse files that hold anything other than LoRA factors.

    Raises:
        UserError: another kind of adapter, or one whose initialisation changes the base.
    """
    for key in keys:
        for mark, kind in OTHER_KINDS.items():
            if re.search(mark, key):
                raise UserError(
                    f"adapter {str(adapter.path)!r} is {kind} ({key}); checked are LoRA, LoHa, LoKr, DoRA",
                    "Merge it into the base and check that, or train a LoRA.",
                )
    for key, value in config.items():
        if key.endswith("init_lora_weights") and not str(value).lower().startswith(_PLAIN_STARTS):
            raise UserError(
                f"adapter {str(adapter.path)!r} began as {value}, which changes the base too",
                "Save it with PEFT's path_initial_model_for_weight_conversion: that makes a LoRA of it.",
            )


def is_dora(adapter: Adapter) -> bool:
    """Whether the adapter is a DoRA, which also rescales whole weights."""
    with tensor_file.opened(adapter.path) as stream:
        return any(mark in key for mark in _SIZES for key in stream.keys())  # noqa: SIM118


def require_stackable(adapters: Sequence[Adapter]) -> None:
    """Refuse DoRA beside other adapters: it rescales the base's weights, which the others change."""
    for adapter in adapters:
        if len(adapters) > 1 and is_dora(adapter):
            raise UserError(
                f"adapter {str(adapter.path)!r} is a DoRA, which rescales whole weights, beside other adapters",
                "Check it alone, or merge the others into the base and give that base.",
            )


def peft_config(adapter: Adapter) -> dict[str, Any]:
    """PEFT's config: by component, from the file's metadata (diffusers), or from its folder (PEFT). {} without one."""
    text = adapter.metadata.get(_METADATA_CONFIG, "{}")
    try:
        config = files.parse_json(text)
    except ValueError as error:
        raise UserError(f"the adapter's metadata is not JSON: {error}", "Export the adapter again.") from error
    config = config if isinstance(config, dict) else {}
    for key, value in config.items():
        if problem := _problem(key.rpartition(".")[2], value):
            raise UserError(
                f"adapter {str(adapter.path)!r}: {key} of its PEFT config {problem}", "Export the adapter again."
            )
    return config


_NUMBERS, _TABLES = ("r", "lora_alpha"), ("rank_pattern", "alpha_pattern")
_SLOW = re.compile(r"\)[*+{]|(?:[^*+{]*[*+{]){3}")  # patterns that may take years to match a name


def _problem(name: str, value: Any) -> str | None:
    """What is wrong with an entry of PEFT's config that is read here."""
    if name in _NUMBERS and not _is_number(value):
        return f"is {str(value)[:40]!r}, and a number is expected"
    if name not in _TABLES or value is None:
        return None
    if not isinstance(value, dict) or not all(map(_is_number, value.values())):
        return f"is {str(value)[:40]!r}, and a table of numbers by layer is expected"
    slow = next((pattern for pattern in value if _SLOW.search(pattern)), None)
    return None if slow is None else f"has the pattern {slow[:40]!r}: names, or patterns of at most two repetitions"


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and abs(value) < _LARGE)


_LARGE = 1e9
