"""Adapters: read a file, match its factors to layers of the base, and write trained factors back."""

from qcheck.model.lora.file import (
    Adapter,
    config_beside,
    is_dora,
    peft_config,
    read,
    require_lora,
    require_plain,
    require_stackable,
    tag_counts,
    trigger_words,
)
from qcheck.model.lora.place import (
    DENOISERS,
    Fit,
    factors_of,
    fit,
    layers_per_block,
    names_of,
    require_shape,
)

__all__ = [
    "DENOISERS",
    "Adapter",
    "Fit",
    "config_beside",
    "factors_of",
    "fit",
    "is_dora",
    "layers_per_block",
    "names_of",
    "peft_config",
    "read",
    "require_lora",
    "require_plain",
    "require_shape",
    "require_stackable",
    "tag_counts",
    "trigger_words",
]
