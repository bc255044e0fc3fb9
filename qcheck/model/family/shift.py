"""The shift of a flow-matching solver's times, by the number of tokens of the picture."""

from collections.abc import Mapping
from typing import Any


def shift(config: Mapping[str, Any], tokens: int) -> float:
    """``mu`` on the line through (base_image_seq_len, base_shift) and (max_image_seq_len, max_shift).

    The formula and the defaults are those of diffusers' FluxPipeline.
    """
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    slope = (high - low) / (many - few)
    return float(low + slope * (tokens - few))
