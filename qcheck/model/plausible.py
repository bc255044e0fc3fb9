"""The configurations of a pipeline's parts, refused where what they ask for cannot be in the files beside them.

The libraries build a model from its configuration before they read a weight: a number in it costs memory and time.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qcheck.core import files
from qcheck.core.errors import UserError

_CONFIGS = ("config.json", "scheduler_config.json")
_LARGEST = 10**6  # a number of a model or a solver of diffusers
_SIDE = 4096  # of latents
_LAYERS = re.compile(r"layers|depth|blocks")
_FEW = 1000  # layers that cost nothing


def require(folder: Path, library: str, tensors: int) -> None:
    """Refuse the part of a pipeline in ``folder``, of ``library`` and with so many ``tensors`` in its files.

    Raises:
        UserError: a configuration that is no object of JSON, more layers than there are tensors, or numbers that no
            model has.
    """
    for path in (folder / name for name in _CONFIGS if (folder / name).exists()):
        try:
            config = files.read_object(path)
        except (OSError, ValueError) as error:
            raise UserError(f"{str(path)!r}: {error}", "Take the file that diffusers or transformers saved.") from error
        for key, value in _numbers(config):
            most = _most(key, library, tensors)
            if most is not None and value > most:
                raise UserError(
                    f"{str(path)!r} asks for {key} {value:.4g}, more than {most}, beside {tensors} tensors",
                    "Take the config.json that belongs to the weights.",
                )


def _most(key: str, library: str, tensors: int) -> int | None:
    """The largest number that is plausible for a key, None where any is."""
    if _LAYERS.search(key):
        return max(tensors, _FEW)
    if library != "diffusers":
        return None  # transformers compares shapes before it allocates
    return _SIDE if key == "sample_size" else _LARGEST


def _numbers(config: Mapping[str, Any] | Sequence[Any], key: str = "") -> Iterator[tuple[str, int | float]]:
    """Every number in a configuration with its key; those of a list have that of the list."""
    pairs = config.items() if isinstance(config, Mapping) else ((key, value) for value in config)
    for name, value in pairs:
        if isinstance(value, dict | list):
            yield from _numbers(value, name)
        elif isinstance(value, int | float):
            yield name, value
