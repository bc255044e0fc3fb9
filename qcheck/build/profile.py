"""The costs of one call of a component from shapes alone: it is run on meta tensors, which have no data."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from qcheck.model.components import META, Component, copied
from qcheck.result.estimate import Estimate, estimate
from qcheck.result.manifest import Layer
from qcheck.spec.target import Target, number_format


@dataclass(frozen=True)
class Profile:
    """The costs of one call: elements of the weights, peak of float32 elements alive at once, and operations.

    Operations are two for each multiply-accumulate of convolutions and matrix products, by layer and in total; the
    products of attention belong to no layer.
    """

    parameters: int
    alive: int
    by_layer: Mapping[str, int]
    operations: int


class _Alive(TorchDispatchMode):
    """The peak of bytes alive after an operator, without ``weights``, in eager execution without fusion."""

    def __init__(self, weights: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.most = 0
        self._weights = {StorageWeakRef(value.untyped_storage()) for value in weights}
        self._bytes: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves((args, result)):
            if isinstance(value, torch.Tensor):
                storage = StorageWeakRef(value.untyped_storage())
                if storage not in self._weights:
                    self._bytes[storage] = value.untyped_storage().nbytes()
        self._bytes = {storage: size for storage, size in self._bytes.items() if not storage.expired()}
        self.most = max(self.most, sum(self._bytes.values()))
        return result


def profile(component: Component, rows: int) -> Profile:
    """The costs of one call with ``rows`` in the batch."""
    module = copied(component.module, META, torch.float32)
    shapes = {
        name: value.shape if name in component.fixed else (rows, *value.shape[1:])
        for name, value in component.inputs.items()
    }
    inputs = {name: torch.empty(shapes[name], dtype=v.dtype, device=META) for name, v in component.inputs.items()}
    alive, counter = _Alive([*module.parameters(), *module.buffers()]), FlopCounterMode(display=False)
    with torch.no_grad(), counter, alive:
        module(**inputs)
    counts = counter.get_flop_counts()
    return Profile(
        parameters=sum(value.numel() for value in module.parameters()),
        alive=alive.most // 4,
        by_layer=_by_layer(counts, list(dict(module.named_modules()))),
        operations=sum(counts["Global"].values()),
    )


def _by_layer(counts: Mapping[str, Mapping[Any, int]], modules: Sequence[str]) -> dict[str, int]:
    """Operations by layer, named as in the denoiser: without the name of the entry module."""
    operations = {}
    for name in modules:
        key = next((key for key in counts if key.split(".", 1)[-1] == name), None)
        if key is not None and "." in name:
            operations[name.split(".", 1)[1]] = sum(counts[key].values())
    return operations


@dataclass(frozen=True)
class Needs:
    """The profiles of a pipeline's components: its denoiser, and the text encoders and decoder of a picture."""

    denoiser: Profile
    others: tuple[Profile, ...]


def needs(denoiser: Component, others: Sequence[Component], rows: int) -> Needs:
    """Profile every component with ``rows`` in the batch; the decoder, whose axes grow, has one row."""
    return Needs(profile(denoiser, rows), tuple(profile(part, 1 if part.growing else rows) for part in others))


def estimated(profiles: Needs, target: Target, denoiser_bytes: int, layers: Sequence[Layer], compute: str) -> Estimate:
    """The estimate for a denoiser's file with the quantized ``layers``; everything else is in ``compute``.

    A layer counts at the rate of its input's format: weight-only layers multiply in the compute type.
    """
    size = number_format(compute).bits // 8
    operations: Counter[str] = Counter({compute: profiles.denoiser.operations})
    for layer in layers:
        count = profiles.denoiser.by_layer.get(layer.name, 0)
        operations[compute] -= count
        operations[layer.activation or compute] += count
    return estimate(
        target,
        denoiser_bytes,
        sum(other.parameters for other in profiles.others) * size,
        max(part.alive for part in (profiles.denoiser, *profiles.others)) * size,
        operations,
    )
