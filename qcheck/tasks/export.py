"""Artifacts without a verdict: a whole pipeline for the device, in the folder layout that optimum reads.

model_index.json, scheduler/, tokenizers          as in the base
text encoders, denoiser, vae_decoder/             model.onnx with the adapter in it, and the config.json of each
engines/                                          the engines that were compiled here, and their timing cache
build.sh                                          builds the engines on the device, where TensorRT runs the scheme
manifest.json
"""

import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from qcheck.build import gate, profile, script
from qcheck.build.builder import Shapes
from qcheck.build.profile import Needs
from qcheck.core import files
from qcheck.core.cache import Cache
from qcheck.core.digest import digest_of
from qcheck.core.errors import UserError
from qcheck.core.progress import Progress
from qcheck.model import bases
from qcheck.model.components import Component
from qcheck.model.family import Family, Shape
from qcheck.quantize import artifact, bound, qdq
from qcheck.quantize.artifact import ArtifactSources, Exporter
from qcheck.result.exported import Exported, Part, Size
from qcheck.result.manifest import NAME, Layer, Manifest, model_files
from qcheck.sampling.setup import fed
from qcheck.spec import order as orders
from qcheck.spec.check import CheckSpec
from qcheck.tasks import session as sessions
from qcheck.tasks.session import Session

_MODEL = "model.onnx"
_MOST = 65504.0 / 2  # half of float16's largest number: a margin, since real latents are not noise


def export(spec: CheckSpec, sizes: Sequence[Size], folder: Path, cache: Cache, progress: Progress) -> Exported:
    """Export the pipeline of ``spec``'s first scheme and order to ``folder``.

    ``sizes`` are the (width, height) in pixels that the engines have to accept; without any, the probes' size.

    Raises:
        UserError: bad input, or a scheme that cannot be written as a file.
    """
    (scheme, *_), (order, *_) = spec.schemes, spec.orders
    if not scheme.exported:
        raise UserError(
            f"scheme {scheme.name!r} is no file: {' and '.join(scheme.runs)} quantizes while it loads the model",
            "Export another scheme, or load the merged pipeline in PyTorch on the board.",
        )
    with sessions.opened(spec, cache, progress) as session:
        _require_sizes(session, sizes, _vary(sizes))
        manifest, path = _denoiser(session, sizes, folder)
        family = session.sampler.setup.family
        copy_rest(bases.locate(spec.base), folder, type(family), list(session.shape[2:]))
        computes = {family.denoiser: scheme.compute} | others(session, scheme.compute, _vary(sizes), folder)
        shapes = _shapes(session, sizes)
        if "tensorrt" in scheme.runs:
            (folder / script.SCRIPT).write_text(
                script.script(spec.target, shapes, [path.parent.name] * orders.merge(order).refits), "utf-8"
            )
            (folder / script.SCRIPT).chmod(0o755)
        layers = {family.denoiser: manifest.layers}
        parts = [
            _part(session, folder, name, compute, layers.get(name, []), shapes[name])
            for name, compute in computes.items()
        ]
        needs = _needs(session, sizes)
    exported = Exported(
        target=spec.target.name,
        sizes=list(sizes),
        denoiser=manifest,
        parts=parts,
        estimate=profile.estimated(needs, spec.target, parts[0].bytes, manifest.layers, scheme.compute),
        warnings=[*spec.target.warns(scheme), *(_unread_warning(part) for part in parts if _is_unread(part))],
        files={path.relative_to(folder).as_posix(): digest_of(path) for path in _files(folder)},
    )
    (folder / NAME).write_text(exported.to_json(), "utf-8")
    return exported


def _vary(sizes: Sequence[Size]) -> bool:
    """Whether engines have to accept more than one size."""
    return len(set(sizes)) > 1


def _denoiser(session: Session, sizes: Sequence[Size], folder: Path) -> tuple[Manifest, Path]:
    """Write the quantized denoiser with its adapter; returns its manifest and its file."""
    spec, denoiser = session.spec, session.sampler.setup.family.denoiser
    (scheme, *_), (order, *_) = spec.schemes, spec.orders
    exporter = Exporter(session.arms, session.store, session.example, _vary(sizes))
    ranges = session.calibrator.inputs(scheme)
    sources = ArtifactSources(
        session.shipped, exporter, session.store, scheme, spec.recipe, ranges, binding=session.binding
    )
    with session.watch.stage(f"{denoiser}: {scheme.name} {order}", 1) as advance:
        content = sources.content(order)
        written = [exporter.deployed(content, scheme, folder / denoiser / _MODEL, sources.facts(order))]
        if content.rank is not None:
            written.append(bound.save(content.bound(), scheme.compute, folder / denoiser / bound.ADAPTER))
        manifest = artifact.describe(sources, order, content, folder, written)
        advance(1)
    return manifest, written[0]


def _files(folder: Path) -> list[Path]:
    inner = folder / "cache"  # the temporary cache of a run without a cache
    return sorted(path for path in folder.rglob("*") if path.is_file() and inner not in path.parents)


def _require_sizes(session: Session, sizes: Sequence[Size], dynamic: bool) -> None:
    family = session.sampler.setup.family
    step = max(family.multiple, family.factor * family.step if dynamic else 1)
    for width, height in sizes:
        if width % step or height % step:
            several = " where engines take several sizes" if dynamic else ""
            raise UserError(
                f"--size {width}x{height}: sides have to be multiples of {step}{several}",
                f"Take {max(step, width - width % step)}x{max(step, height - height % step)}.",
            )


def _needs(session: Session, sizes: Sequence[Size]) -> Needs:
    """Memory and operations of one call of each component, at the largest size."""
    shape = max(_latent_shapes(session, sizes), key=lambda shape: shape[2] * shape[3])
    inputs = _denoiser_inputs(session, shape)
    with session.arms.held("adapted") as family:
        return profile.needs(family.component(inputs), family.others(shape), len(inputs[family.latent]))


def _latent_shapes(session: Session, sizes: Sequence[Size]) -> list[Shape]:
    return [session.sampler.setup.family.shape(width, height) for width, height in sizes] or [session.shape]


def _denoiser_inputs(session: Session, shape: Shape) -> dict[str, np.ndarray]:
    """The denoiser's inputs for latents of ``shape``."""
    first = session.sampler.setup.inputs("base", session.sampler.probes[:1])
    solver = session.sampler.setup.solver()
    return fed(session.sampler.setup.family, solver, torch.zeros(shape), solver.timesteps[0], first.conditions)[0]


def _is_unread(part: Part) -> bool:
    return part.build.status == "built" and not (part.build.realised and part.build.realised.complete)


def _unread_warning(part: Part) -> str:
    precision = part.build.realised.text() if part.build.realised else "no engine"
    return f"{part.name}: the precision that was built could not be read in full ({precision})"


def copy_rest(source: Path, folder: Path, family: type[Family], sides: list[int]) -> None:
    """Copy the files of the base other than its models; tokenizers also in the format of older loaders.

    The denoiser's configuration names the exported size, ``sides`` [h, w] in latents, as the default.
    """
    index = files.read_object(source / bases.INDEX)
    (folder / bases.INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    tokenizers = [family.tokenizer_of(name) for name in family.encoders]
    for name in ("scheduler", *tokenizers, "feature_extractor"):
        if (source / name).is_dir():
            shutil.copytree(source / name, folder / name, dirs_exist_ok=True)
    for name in (family.denoiser, *family.encoders, "vae"):
        if (source / name).is_dir():
            target = folder / ("vae_decoder" if name == "vae" else name)
            target.mkdir(exist_ok=True)
            shutil.copy(source / name / "config.json", target / "config.json")
    config_file = folder / family.denoiser / "config.json"
    config = files.read_object(config_file)
    config["sample_size"] = sides[0] if sides[0] == sides[1] else sides
    config_file.write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    for name in tokenizers:
        _write_vocabulary(folder / name)


def _write_vocabulary(folder: Path) -> None:
    """Write vocab.json and merges.txt, which older loaders read, from a tokenizer.json."""
    whole, vocabulary = folder / "tokenizer.json", folder / "vocab.json"
    if whole.is_file() and not vocabulary.exists():
        model = files.read_object(whole)["model"]
        if model["type"] != "BPE":
            return
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        vocabulary.write_text(json.dumps(model["vocab"], ensure_ascii=False), "utf-8")
        vocabulary.with_name("merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), "utf-8")


def others(session: Session, compute: str, sizes: bool, folder: Path) -> dict[str, str]:
    """Export all components but the denoiser below ``folder``; returns their compute types by name."""
    computes = {}
    with session.arms.held("adapted") as family:
        for part in family.others(session.shape):
            with session.watch.stage(part.name, 1) as advance:
                computes[part.name] = _safe(part, compute)
                path = folder / part.name / _MODEL
                path.parent.mkdir(parents=True, exist_ok=True)
                qdq.save(artifact.unquantized(part, computes[part.name], sizes), path)
                advance(1)
    return computes


def _safe(part: Component, compute: str) -> str:
    """``compute``, or bfloat16 where float16 may overflow.

    That is where the base's authors say so (``force_upcast`` of an autoencoder), and where a module's output on noise
    comes near the end of float16's range, or is NaN.
    """
    if compute != "float16":
        return compute
    if part.upcast:
        return "bfloat16"
    fits = True

    def check_range(_module: nn.Module, _inputs: object, output: object) -> None:
        nonlocal fits
        for value in output if isinstance(output, tuple) else (output,):
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                fits = fits and bool(value.abs().max() < _MOST)

    hooks = [module.register_forward_hook(check_range) for module in part.module.modules()]
    generator = torch.Generator().manual_seed(0)
    noise = {
        name: torch.randn(v[:1].shape, generator=generator) * part.spread if v.is_floating_point() else v[:1]
        for name, v in part.inputs.items()
    }
    try:
        with torch.no_grad():
            part.module(**noise)
    finally:
        for hook in hooks:
            hook.remove()
    return compute if fits else "bfloat16"


def _shapes(session: Session, sizes: Sequence[Size]) -> dict[str, Shapes]:
    """Minimal, optimal and maximal input shapes of every component: from one row to all of guidance, at all sizes."""
    latents, family = _latent_shapes(session, sizes), session.sampler.setup.family
    rows = len(session.example[family.latent])
    shapes = {family.denoiser: _spans([_denoiser_inputs(session, shape) for shape in latents], family.fixed, rows)}
    for parts in zip(*(family.others(shape) for shape in latents), strict=True):
        part = parts[0]
        shapes[part.name] = _spans([component.inputs for component in parts], part.fixed, 1 if part.growing else rows)
    return shapes


def _spans(feeds: Sequence[Mapping[str, Any]], fixed: Collection[str], rows: int) -> Shapes:
    """Shapes of every input that varies, from the ``feeds`` of each size; the first size is the optimal one."""
    spans = {}
    for name in feeds[0]:
        shapes = [list(feed[name].shape) for feed in feeds]
        low, high = ([limit(axis) for axis in zip(*shapes, strict=True)] for limit in (min, max))
        best = shapes[0]
        if name not in fixed:
            low[0], best[0], high[0] = 1, rows, rows
        if low != high or name not in fixed:
            spans[name] = (low, best, high)
    return spans


def _part(session: Session, folder: Path, name: str, compute: str, layers: Sequence[Layer], shapes: Shapes) -> Part:
    """Compile one component, where a builder is installed, and keep the engine."""
    target, model = session.spec.target, folder / name / _MODEL
    size = sum(path.stat().st_size for path in model_files(model))
    builder = session.gate.builder(session.spec.schemes[0])
    if isinstance(builder, str):
        return Part(name=name, compute=compute, bytes=size, build=gate.not_run(target, builder))
    place = folder / "engines" / f"sm{builder.capability.replace('.', '')}"
    place.mkdir(parents=True, exist_ok=True)
    with session.watch.stage(f"{name}: build for SM {builder.capability}", 1) as advance:
        engine, timing_cache = place / f"{name}.engine", place / "timing.cache"
        build = gate.run(builder, target, model, layers, compute, shapes, engine, timing_cache)
        advance(1)
    return Part(name=name, compute=compute, bytes=size, build=build)
