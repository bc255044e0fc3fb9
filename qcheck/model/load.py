"""Load a base: a diffusers pipeline directory or a hub id."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn

from qcheck.core import files
from qcheck.core.digest import digest_of_folder, file_digest
from qcheck.core.errors import UserError
from qcheck.model import family as families
from qcheck.model import parts, stored
from qcheck.model.bases import INDEX, locate
from qcheck.model.device import CPU, Device, return_blocks
from qcheck.model.family import Family
from qcheck.model.quiet import quiet

# what the libraries raise where a pipeline's files, configs or classes are not what they expect
_FAULTS = (
    *(OSError, ValueError, TypeError, RuntimeError, LookupError, AttributeError, ArithmeticError, ImportError),
    *(MemoryError, StrictDataclassError, SafetensorError),
)
_BLOCK = 2**20  # bytes: a large model's activations and weights are larger


class Lease:
    """The arm whose weights a pipeline holds while a runner computes with it."""

    def __init__(self) -> None:
        self._holder, self._depth = "", 0

    @contextmanager
    def of(self, holder: str) -> Iterator[bool]:
        """Reserve the pipeline for ``holder`` until the block ends. Yields whether this is the outermost block.

        Raises:
            RuntimeError: another holder has it.
        """
        if self._depth and self._holder != holder:
            raise RuntimeError("the pipeline computes for another arm: close that arm's runner first")
        self._holder = holder
        self._depth += 1
        try:
            yield self._depth == 1
        finally:
            self._depth -= 1


@dataclass(frozen=True)
class Base:
    """A pipeline that computes in float32 on ``device``, its files' source and digest, and the lease on its weights."""

    source: str
    digest: str
    family: Family
    device: Device = CPU
    lease: Lease = field(default_factory=Lease, compare=False)

    @property
    def pipe(self) -> Any:
        """The pipeline object of diffusers."""
        return self.family.pipe

    @property
    def denoiser(self) -> nn.Module:
        """The denoiser, which is the module that is quantized."""
        return self.family.module

    def on(self, device: Device) -> "Base":
        """This pipeline on ``device``: itself where it is there already, else a copy of it.

        Raises:
            UserError: the device's memory is too small.
        """
        if device == self.device:
            return replace(self, device=device)
        try:
            return Base(self.source, self.digest, self.family.on(device.torch), device)
        except torch.OutOfMemoryError as error:
            size = sum(value.nbytes for part in self.family.parts() for value in part.state_dict().values())
            raise UserError(
                f"the pipeline's {size / 1e9:.1f} GB of weights do not fit into the memory of {device.name}",
                "Close other programs that use it, or give --device cpu.",
            ) from error


def load(source: str, of_file: Callable[[Path], bytes] = file_digest, device: Device = CPU) -> Base:
    """Load the pipeline at ``source`` on the CPU, in float32 or, where it is large, stored in 16 bit (``stored``).

    ``of_file`` gives the digests of its files; ``device`` is where it is to compute later.

    Raises:
        UserError: as ``locate``, files that do not load, or a denoiser of a kind that is not supported.
    """
    folder = locate(source)
    index = _index(folder)
    kind = families.find(index)
    if kind is None:
        kinds = ", ".join(sorted(key for key in index if not key.startswith("_")))
        raise UserError(
            f"base {source!r} is a {index.get('_class_name', 'pipeline')} with {kinds}",
            f"This version checks {', '.join(family.pipeline for family in families.FAMILIES)}.",
        )
    spare = {name for encoder in kind.spare for name in (encoder, kind.tokenizer_of(encoder))}
    absent = dict.fromkeys(
        name for name in ("safety_checker", *spare) if name in index and (name not in spare or index[name][1] is None)
    )
    present = {name: pair for name, pair in index.items() if name not in absent}
    parts.require_folders(folder, present)
    variant = parts.variant(folder, present)
    try:
        encoders = [name for name in kind.encoders if name in present]
        types = parts.types(folder, variant, [kind.denoiser, *encoders], device)
        if types:
            return_blocks(_BLOCK)
        with quiet():
            loaded = parts.load(folder, present, variant, types)
            pipe = getattr(diffusers, kind.pipeline).from_pretrained(folder, local_files_only=True, **loaded, **absent)
    except _FAULTS as error:
        raise UserError(
            f"base {source!r} does not load: {error}",
            "Check that the pipeline's files are whole, and that its weights are safetensors (pickles are not loaded).",
        ) from error
    family = kind(pipe)
    if problem := family.unsupported():
        raise UserError(
            f"base {source!r} has {problem}",
            f"This version checks what a plain {kind.pipeline} runs: text alone, no control, its kind of solver.",
        )
    pipe.set_progress_bar_config(disable=True)
    for name, part in loaded.items():
        part.requires_grad_(False).eval()
        if name in types:
            stored.compute_again(part)
            stored.prepare(part, getattr(part, "_keep_in_fp32_modules", None) or ())
        _require_finite(source, name, part)
    return Base(source, digest_of_folder(folder, of_file), family)


def _index(folder: Path) -> dict[str, Any]:
    try:
        content = files.read_json(folder / INDEX)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / INDEX}: {error}", "Check that the pipeline's files are whole.") from error
    pairs = [value for value in content.values() if isinstance(value, list)] if isinstance(content, dict) else [[]]
    if any(len(pair) != 2 for pair in pairs):
        raise UserError(
            f"{folder / INDEX} is no index of a pipeline: library and class of each part by its name",
            "Take the file that diffusers saved.",
        )
    index: dict[str, Any] = content
    return index


def _require_finite(source: str, component: str, part: torch.nn.Module) -> None:
    for name, value in part.named_parameters():
        if not torch.isfinite(value).all():
            raise UserError(
                f"base {source!r}: {component}/{name} holds NaN or infinity", "Use an undamaged checkpoint."
            )
