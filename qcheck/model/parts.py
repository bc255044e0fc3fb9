"""The parts of a pipeline's folder: which files hold them, and loading each whole.

The libraries fill weights that a file lacks with random numbers, which differ at every load, and only warn; a tokenizer
without its vocabulary gives every prompt the same tokens. Both are refused here.
"""

import importlib
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from qcheck.core import files
from qcheck.core.errors import UserError, listed
from qcheck.model import plausible, tensor_file
from qcheck.model.bases import INDEX
from qcheck.model.device import Device


def require_folders(folder: Path, index: Mapping[str, Any]) -> None:
    """Refuse a pipeline without a folder that its index names, or with files in one that no model is loaded from."""
    named = [name for name, pair in index.items() if isinstance(pair, list | tuple) and pair[1] is not None]
    if missing := [name for name in named if not (folder / name).is_dir()]:
        raise UserError(
            f"base {str(folder)!r} has no {'/, '.join(missing)}/, which its {INDEX} names",
            "Copy or download the whole pipeline.",
        )
    for name in named:
        plausible.require(folder / name, str(index[name][0]), _require_content(folder / name))


_WEIGHTS = re.compile(r"(?:diffusion_pytorch_)?model(?:\.(?P<variant>\w+))?(?:-\d+-of-\d+)?\.safetensors")


def variant(folder: Path, components: Iterable[str]) -> str | None:
    """The variant, such as fp16, of the weights of those components that have no plain files; None where all have.

    Raises:
        UserError: these components share no variant, so that no one name loads all of them.
    """
    variants = {}
    for name in components:
        files = sorted((folder / name).glob("*.safetensors"))
        found = {match["variant"] for file in files if (match := _WEIGHTS.fullmatch(file.name))}
        if found and None not in found:
            variants[name] = {variant for variant in found if variant is not None}
    if not variants:
        return None
    shared = set.intersection(*variants.values())
    if not shared:
        listed = "; ".join(f"{name} {', '.join(sorted(found))}" for name, found in variants.items())
        raise UserError(
            f"base {str(folder)!r} has weights in variants that its components do not share: {listed}",
            "Give a folder where all components have one variant, or plain files.",
        )
    return min(shared, key=lambda variant: (_PREFERRED.index(variant) if variant in _PREFERRED else 9, variant))


_PREFERRED = ("fp32", "bf16", "fp16")


SHARE = 1 / 8  # of this machine's memory may hold the denoiser and the text encoders in float32
_ROOM = 1 / 2  # of another device's free memory
_STORED = {"F16": torch.float16, "BF16": torch.bfloat16}


def types(folder: Path, variant: str | None, components: Iterable[str], device: Device) -> dict[str, torch.dtype]:
    """The type of each component that stays in its 16-bit files; {} where all of them are small in float32."""
    dtypes, size = dict[str, set[str]](), 0
    for name in components:
        of_component = dtypes.setdefault(name, set())
        for file in weights_of(folder / name, variant):
            with tensor_file.opened(file) as stream:
                slices = [stream.get_slice(key) for key in stream.keys()]  # noqa: SIM118
            of_component.update(part.get_dtype() for part in slices)
            size += sum(4 * math.prod(part.get_shape()) for part in slices)
    room = SHARE * psutil.virtual_memory().total
    if size <= (room if device.is_host else min(room, _ROOM * device.free())):
        return {}
    floating = {name: {dtype for dtype in names if dtype.startswith(("F", "BF"))} for name, names in dtypes.items()}
    single = {name: next(iter(names)) for name, names in floating.items() if len(names) == 1}
    return {name: _STORED[dtype] for name, dtype in single.items() if dtype in _STORED}


def weights_of(folder: Path, variant: str | None) -> list[Path]:
    """The files that a component is loaded from: those of the variant, or the plain ones where it has none."""
    names = {path: _WEIGHTS.fullmatch(path.name) for path in sorted(folder.glob("*.safetensors"))}
    variants = {path: match["variant"] for path, match in names.items() if match}
    wanted = variant if variant in variants.values() else None
    return [path for path, of_path in variants.items() if of_path == wanted]


_LIBRARIES = ("diffusers", "transformers")
_POSITIONS = re.compile(r"(.*\.)?position_ids")  # older releases stored them
# in files of text encoders: what a pipeline has no use for
_UNUSED = re.compile(
    rf"{_POSITIONS.pattern}|vision_model\..*|visual_projection\..*|logit_scale|text_projection\..*|decoder\..*|lm_head\..*"
)


def load(
    folder: Path, index: Mapping[str, Any], variant: str | None, dtypes: Mapping[str, torch.dtype]
) -> dict[str, nn.Module]:
    """The modules that ``index`` names, each of its type in ``dtypes`` or in float32.

    Raises:
        UserError: a class that is not the libraries' own, a tokenizer without its files, or weights that a file lacks,
            or has and the config does not ask for.
    """
    named = {name: pair for name, pair in index.items() if isinstance(pair, list | tuple) and pair[1] is not None}
    modules = {}
    for name, (library, class_name) in named.items():
        kind = getattr(importlib.import_module(library), class_name, None) if library in _LIBRARIES else None
        if kind is None:
            raise UserError(
                f"base {str(folder)!r}: {name} is a {class_name} of {library}, which is no class of diffusers or "
                "transformers here",
                "Code that comes with a pipeline is not run. Take a pipeline of the libraries' own classes.",
            )
        if issubclass(kind, PreTrainedTokenizerBase):
            _require_vocabulary(folder / name, kind)
        if issubclass(kind, nn.Module):
            _require_unquantized(folder / name)
            modules[name] = _module(folder / name, kind, variant, dtypes.get(name, torch.float32))
    return modules


def _module(folder: Path, kind: Any, variant: str | None, dtype: torch.dtype) -> nn.Module:
    own = variant if any(f".{variant}" in path.name for path in weights_of(folder, variant)) else None
    module, report = kind.from_pretrained(
        folder, dtype=dtype, variant=own, use_safetensors=True, local_files_only=True, output_loading_info=True
    )
    missing = sorted(report["missing_keys"])
    unused = _UNUSED if issubclass(kind, PreTrainedModel) else _POSITIONS
    unexpected = sorted(name for name in report["unexpected_keys"] if not unused.fullmatch(name))
    for names, problem in (
        (missing, "lacks weights"),
        (unexpected, "has weights that its config.json does not ask for"),
    ):
        if names:
            raise UserError(
                f"base {str(folder.parent)!r}: {folder.name} {problem}: {listed(names)}",
                "Copy or download the whole pipeline, with the config.json that belongs to its weights.",
            )
    loaded: nn.Module = module
    return loaded


_POINTER = b"version https://git-lfs"


def _require_content(folder: Path) -> int:
    """The number of tensors in its files; pointers that Git leaves where large files were not fetched are refused."""
    count = 0
    for path in (path for path in sorted(folder.glob("*.safetensors")) if path.is_file()):
        with path.open("rb") as stream:
            if stream.read(len(_POINTER)) == _POINTER:
                raise UserError(
                    f"base {str(folder.parent)!r}: {folder.name}/{path.name} is a pointer of Git LFS, not the file",
                    "Fetch the files: git lfs pull.",
                )
        with tensor_file.opened(path) as weights:
            count += len(weights.keys())
    return count


def _require_unquantized(folder: Path) -> None:
    """Refuse a part whose config says how its weights are quantized."""
    path = folder / "config.json"
    config = files.read_object(path) if path.is_file() else {}
    if quantized := config.get("quantization_config"):
        method = quantized.get("quant_method") or quantized.get("quant_type") or "a method without a name"
        raise UserError(
            f"base {str(folder.parent)!r}: {folder.name} is quantized already, by {method}",
            "The reference is the full-precision model: give the base that it was quantized from.",
        )


def _require_vocabulary(folder: Path, kind: type[PreTrainedTokenizerBase]) -> None:
    """Refuse a folder with neither the one file of a fast tokenizer nor all files of the other kind."""
    names = dict(kind.vocab_files_names)
    fast = names.pop("tokenizer_file", "tokenizer.json")
    missing = [name for name in names.values() if not (folder / name).is_file()]
    if not (folder / fast).is_file() and (missing or not names):
        raise UserError(
            f"base {str(folder.parent)!r}: {folder.name} has no vocabulary: {fast} is not there, nor "
            f"{listed(missing or ['another file'])}",
            "Copy or download the whole pipeline.",
        )
