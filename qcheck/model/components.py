"""The components of a pipeline that a device runs, each as one module from tensors to tensors.

Names of folders, inputs and outputs are those of optimum's pipeline layout.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

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


Mask = Literal["padding", "causal"]


class TextEncoder(nn.Module):
    """A text encoder from tokens [n, L] to its last hidden and pooled states.

    With ``inner`` all hidden states too, or those of some layers, -1 the last, and nothing else. With a ``mask`` no
    token reads padding, nor, where it is causal, what comes after the token.
    """

    def __init__(self, text_encoder: nn.Module, inner: bool | tuple[int, ...], mask: Mask | None = None) -> None:
        super().__init__()
        self.text_encoder, self._inner, self._mask = text_encoder, inner, mask
        self._options = {"output_hidden_states": bool(inner), "return_dict": True}

    def outputs(self) -> tuple[str, ...]:
        """The names of the tensors that ``forward`` returns, from meta tensors."""
        encoder = copied(self.text_encoder, META, torch.float32)
        return tuple(self._encoded(encoder(torch.ones(1, 1, dtype=torch.int64, device=META), **self._options)))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """The outputs, in the order of ``outputs``."""
        mask = {} if attention_mask is None else {"attention_mask": self._scores(attention_mask)}
        return tuple(self._encoded(self.text_encoder(input_ids, **mask, **self._options)).values())

    def _scores(self, mask: torch.Tensor) -> torch.Tensor:
        """What is added to the scores of attention [n, 1, L, L], from the mask of tokens [n, L].

        transformers makes it from the mask too, by way of the mask's values, which no export can follow.
        """
        places = torch.arange(mask.shape[1], device=mask.device)
        reads = mask.bool()[:, None, None, :].expand(-1, 1, len(places), -1)
        if self._mask == "causal":
            reads = reads & (places <= places[:, None])
        dtype = next(self.text_encoder.parameters()).dtype
        return torch.zeros(reads.shape, dtype=dtype, device=mask.device).masked_fill(~reads, torch.finfo(dtype).min)

    def _encoded(self, output: Any) -> dict[str, torch.Tensor]:
        """The outputs of a text encoder by optimum's names."""
        states = {f"hidden_states.{index}": state for index, state in enumerate(output.get("hidden_states") or ())}
        if isinstance(self._inner, tuple):
            names = [f"hidden_states.{index % len(states)}" for index in self._inner]
            return {name: states[name] for name in names}
        plain = ("text_embeds", "last_hidden_state", "pooler_output")
        return {name: output[name] for name in plain if output.get(name) is not None} | states


class Decoder(nn.Module):
    """The autoencoder from latents [n, C, h, w] to pictures [n, 3, H, W] in [-1, 1]."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent_sample: torch.Tensor) -> torch.Tensor:
        """Pictures in [-1, 1]."""
        output: torch.Tensor = self.vae.decode(latent_sample, return_dict=False)[0]
        return output
