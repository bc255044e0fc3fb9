"""The components of a pipeline that a device runs, each as one module from tensors to tensors.

Names of folders, inputs and outputs are those of optimum's pipeline layout.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import nn

from qcheck.model.stored import computed, is_stored, ordinary, place, stored_layers, weight_of, whole

MODULE = "denoiser"  # the denoiser's attribute in its entry module, and so its prefix in an exported graph
META = torch.device("meta")  # of tensors that have a shape and no data
ROWS = 2  # of an example: torch's exporter treats an axis of length 1 as constant


@dataclass(frozen=True)
class Component:
    """A module to export: example inputs by the names of its arguments, and the names of its outputs.

    The first axis of every input is the batch, except for inputs in ``fixed``; inputs in ``kept`` keep their type.
    ``growing`` names the axes that grow with the picture, which are multiples of ``step`` where they vary; ``spread``
    is the standard deviation of the float inputs in a real run. ``upcast`` says that its authors run it in no float16.
    """

    name: str
    module: nn.Module
    inputs: Mapping[str, torch.Tensor]
    outputs: tuple[str, ...]
    fixed: frozenset[str] = field(default_factory=frozenset)
    kept: frozenset[str] = field(default_factory=frozenset)
    growing: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    step: int = 1
    spread: float = 1.0
    upcast: bool = False

    def cast(self, dtype: torch.dtype) -> "Component":
        """The component with weights and inputs in ``dtype``: a copy of its module where it is in another."""
        floating = (value for value in self.module.parameters() if value.is_floating_point())
        module = self.module if all(value.dtype == dtype for value in floating) else copied(self.module, dtype=dtype)
        return self._computing(module, dtype)

    def hollow(self, dtype: torch.dtype) -> "Component":
        """As ``cast``, with stand-ins for the weights of all layers, which take no memory; no two of them are equal."""
        layers = [module for module in self.module.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
        shapes = {id(layer.weight): layer.weight.shape for layer in layers}
        counts = torch.arange(1, len(shapes) + 1, dtype=torch.int16 if dtype.itemsize == 2 else torch.int32).view(dtype)
        stand_ins = {key: counts[i].clone().expand(shape) for i, (key, shape) in enumerate(shapes.items())}
        return self._computing(copied(self.module, dtype=dtype, instead=stand_ins), dtype)

    def _computing(self, module: nn.Module, dtype: torch.dtype) -> "Component":
        inputs = {
            name: value.to(dtype) if value.is_floating_point() and name not in self.kept else value
            for name, value in self.inputs.items()
        }
        return replace(self, module=module, inputs=inputs)


Converted = TypeVar("Converted", bound=nn.Module)


def copied(
    module: Converted,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    instead: Mapping[int, torch.Tensor] | None = None,
) -> Converted:
    """A copy of a module on ``device`` with its floating-point tensors in ``dtype``, tensor by tensor.

    Without a ``dtype`` stored weights stay stored; buffers that are computed, such as frequencies, keep their type.
    On the device ``META`` no values are read. ``instead`` are tensors that take the place of others, by the others'
    identity. ``copy.deepcopy`` and ``Module.to`` would hold the weights three times for a moment.
    """
    given = instead or {}
    stored = {id(layer.weight): layer for layer in stored_layers(module) if is_stored(layer)}

    def converted(value: torch.Tensor) -> torch.Tensor:
        if id(value) in given:
            return given[id(value)]
        if device == META:
            return torch.empty(value.shape, dtype=dtype if value.is_floating_point() else value.dtype, device=META)
        if dtype is not None and id(value) in stored:
            return whole(stored[id(value)]).detach().to(device, dtype)
        return value.detach().to(device, dtype if value.is_floating_point() else None, copy=True)

    copies: dict[int, Any] = {
        id(value): nn.Parameter(converted(value), requires_grad=False) for value in module.parameters()
    }
    kept = {id(value): value.to(device, copy=True) for value in computed(module).values()}
    copies |= {id(value): converted(value) for value in module.buffers() if id(value) not in kept} | kept
    copy_of = copy.deepcopy(module, copies)
    for layer in [*stored_layers(copy_of)]:
        if dtype is not None:
            ordinary(layer)
        else:
            place(layer, weight_of(layer), layer.weight.device)
    return copy_of


_UNREAD = "_qcheck_unread"


def leave_unread(layer: nn.Module) -> None:
    """Mark a layer whose output nothing reads: exported graphs do not have it."""
    vars(layer)[_UNREAD] = True


def is_unread(layer: nn.Module) -> bool:
    """Whether nothing reads the layer's output."""
    return _UNREAD in vars(layer)


class Entry(nn.Module):
    """A denoiser under the name that it has in exported graphs; each family's subclass calls it."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser


class TextEncoder(nn.Module):
    """A text encoder from tokens [n, L] to its last hidden and pooled states; with ``inner``, all hidden states too."""

    def __init__(self, text_encoder: nn.Module, inner: bool) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self._options = {"output_hidden_states": inner, "return_dict": True}

    def outputs(self) -> tuple[str, ...]:
        """The names of the tensors that ``forward`` returns, from meta tensors."""
        encoder = copied(self.text_encoder, META, torch.float32)
        return tuple(_encoded(encoder(torch.ones(1, 1, dtype=torch.int64, device=META), **self._options)))

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The outputs, in the order of ``outputs``."""
        return tuple(_encoded(self.text_encoder(input_ids, **self._options)).values())


def _encoded(output: Any) -> dict[str, torch.Tensor]:
    """The outputs of a text encoder by optimum's names."""
    names = ("text_embeds", "last_hidden_state", "pooler_output")
    plain = {name: output[name] for name in names if output.get(name) is not None}
    states = enumerate(output.get("hidden_states") or ())
    return plain | {f"hidden_states.{index}": state for index, state in states}


class LanguageModel(nn.Module):
    """A language model from tokens [n, L] to its hidden states [n, L, D] after one layer, -1 the last.

    No token reads what comes after it, so padding at the end needs no mask.
    """

    def __init__(self, text_encoder: Any, layer: int) -> None:
        super().__init__()
        self.text_encoder = text_encoder.get_decoder()  # without what looks at pictures and what writes words
        self._layer = layer

    def outputs(self) -> tuple[str, ...]:
        """The name of the tensor that ``forward`` returns."""
        layers: int = self.text_encoder.config.num_hidden_layers
        return (f"hidden_states.{layers + 1 + self._layer}",)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The hidden states."""
        weight, length = self.text_encoder.get_input_embeddings().weight, input_ids.shape[1]
        later = torch.full((length, length), float("-inf"), dtype=weight.dtype, device=weight.device).triu(1)
        masks = {"full_attention": later[None, None]}  # the model's own one looks at values
        output = self.text_encoder(
            input_ids, attention_mask=masks, output_hidden_states=True, use_cache=False, return_dict=True
        )
        states: torch.Tensor = output.hidden_states[self._layer]
        return states


Encoder = TextEncoder | LanguageModel


class Decoder(nn.Module):
    """The autoencoder from latents [n, C, h, w] to pictures [n, 3, H, W] in [-1, 1]."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent_sample: torch.Tensor) -> torch.Tensor:
        """Pictures in [-1, 1]."""
        output: torch.Tensor = self.vae.decode(latent_sample, return_dict=False)[0]
        return output
