"""Adapters: read a file, match its factors to layers of the base, and write trained factors back."""

from qcheck.model.lora.file import (
    PICKLES,
    Adapter,
    config_beside,
    file_in,
    is_dora,
    peft_config,
    read,
    require_lora,
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
    "PICKLES",
    "Adapter",
    "Fit",
    "config_beside",
    "factors_of",
    "file_in",
    "fit",
    "is_dora",
    "layers_per_block",
    "names_of",
    "peft_config",
    "read",
    "require_lora",
    "require_shape",
    "require_stackable",
    "tag_counts",
    "trigger_words",
]
