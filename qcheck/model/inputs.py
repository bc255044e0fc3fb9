"""The inputs of layers, observed in forwards of a model that come to their end.

A forward that runs out of memory is done again in parts: what it had shown by then counts for nothing.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn


class Observer(Protocol):
    """Sees the inputs of layers, and keeps what it saw once the forward is complete."""

    def begin(self) -> None:
        """A forward begins; what an earlier one showed and was not kept is forgotten."""
        ...

    def see(self, layer: str, inputs: torch.Tensor) -> None:
        """The input [rows, ...] of a layer."""
        ...

    def commit(self) -> None:
        """The forward is complete."""
        ...


@contextmanager
def observed(model: nn.Module, layers: Mapping[str, nn.Module], observer: Observer) -> Iterator[None]:
    """While open, ``observer`` sees the inputs of ``layers`` in every forward of ``model``."""

    def hook(name: str) -> Any:
        return lambda _, inputs: observer.see(name, inputs[0])

    handles = [
        model.register_forward_pre_hook(lambda *_: observer.begin()),
        *(layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()),
        model.register_forward_hook(lambda *_: observer.commit()),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
