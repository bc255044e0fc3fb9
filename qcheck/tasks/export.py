"""Artifacts without a verdict: a whole pipeline for the device, in the folder layout that optimum reads.

model_index.json, scheduler/, tokenizers          as in the base
text encoders, denoiser, vae_decoder/             model.onnx with the adapter in it, and the config.json of each
engines/                                          what was compiled here, and its timing cache
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
from qcheck.calibrate import inputs
from qcheck.core.digest import digest_of
from qcheck.core.errors import UserError
from qcheck.core.progress import Progress
from qcheck.model import load
from qcheck.model.components import Component
from qcheck.model.family import Family, Shape
from qcheck.model.graph import export as to_onnx
from qcheck.quantize import artifact, qdq
from qcheck.quantize.artifact import Exporter, Making
from qcheck.result.exported import Exported, Part, Size
from qcheck.result.manifest import NAME, Layer, model_files
from qcheck.sampling.setup import fed
from qcheck.spec.check import Job
from qcheck.tasks.work import Work, prepare

_MODEL = "model.onnx"
_MOST = 65504.0 / 2  # half of float16's largest number: real latents are no noise


def export(job: Job, sizes: Sequence[Size], folder: Path, progress: Progress) -> Exported:
    """Write everything of ``job``'s first scheme and order below ``folder``.

    ``sizes`` are (width, height) in pixels that the engines have to take; the probes' own size without them.

    Raises:
        UserError: bad input, or a scheme that is no file.
    """
    torch.set_num_threads(job.threads)
    (scheme, *_), (order, *_) = job.schemes, job.orders
    if not scheme.exported:
        raise UserError(
            f"scheme {scheme.name!r} is no file: {' and '.join(scheme.runs)} quantizes while it loads the model",
            "Export another scheme, or load the merged pipeline in PyTorch on the board.",
        )
    work = prepare(job, folder, progress)
    dynamic = len(set(sizes)) > 1
    _require_sizes(work, sizes, dynamic)
    work.exporter = Exporter(work.arms, work.store, work.example, dynamic)
    made_from = inputs.inputs(work, scheme)
    making = Making(work.shipped, work.exporter, work.store, scheme, job.recipe, made_from)
    denoiser = work.setup.family.denoiser
    with work.timed(f"{denoiser}: {scheme.name} {order}", 1) as advance:
        content = artifact.adapted_content(work.shipped, scheme, job.recipe, order, made_from)
        path = work.exporter.deployed(content, scheme, folder / denoiser / _MODEL, making.facts(order))
        page = artifact.describe(making, order, content, folder, [path])
        advance(1)
    copy_rest(load.locate(job.base), folder, type(work.setup.family), list(work.shape[2:]))
    computes = {denoiser: scheme.compute} | _others(work, scheme.compute, dynamic, folder)
    shapes = _shapes(work, sizes)
    refitted = [denoiser] if order == "refit" else []
    if "tensorrt" in scheme.runs:
        (folder / script.SCRIPT).write_text(script.script(job.target, shapes, refitted), "utf-8")
        (folder / script.SCRIPT).chmod(0o755)
    layers = {denoiser: page.layers}
    parts = [
        _part(work, folder, name, compute, layers.get(name, []), shapes[name]) for name, compute in computes.items()
    ]
    found = Exported(
        target=job.target.name,
        sizes=list(sizes),
        denoiser=page,
        parts=parts,
        estimate=profile.estimated(_needs(work, sizes), job.target, parts[0].bytes, page.layers, scheme.compute),
        warnings=[*job.target.warns(scheme), *(_unread(part) for part in parts if _is_unread(part))],
        files={path.relative_to(folder).as_posix(): digest_of(path) for path in _written(folder)},
    )
    (folder / NAME).write_text(found.to_json(), "utf-8")
    return found


def _written(folder: Path) -> list[Path]:
    inner = folder / "cache"  # of a run that keeps none
    return sorted(path for path in folder.rglob("*") if path.is_file() and inner not in path.parents)


def _require_sizes(work: Work, sizes: Sequence[Size], dynamic: bool) -> None:
    family = work.setup.family
    step = max(family.multiple, family.pipe.vae_scale_factor * family.step if dynamic else 1)
    for width, height in sizes:
        if width % step or height % step:
            several = " where engines take several sizes" if dynamic else ""
            raise UserError(
                f"--size {width}x{height}: sides have to be multiples of {step}{several}",
                f"Take {max(step, width - width % step)}x{max(step, height - height % step)}.",
            )


def _needs(work: Work, sizes: Sequence[Size]) -> Needs:
    """At the largest size."""
    family = work.arms.use("adapted")
    shape = max(_latents(work, sizes), key=lambda shape: shape[2] * shape[3])
    fed = _fed(work, shape)
    return profile.needs(family.component(fed), family.others(shape), len(fed[family.latent]))


def _latents(work: Work, sizes: Sequence[Size]) -> list[Shape]:
    return [work.setup.family.shape(width, height) for width, height in sizes] or [work.shape]


def _fed(work: Work, shape: Shape) -> dict[str, np.ndarray]:
    """What the denoiser is fed at that size."""
    first = work.setup.inputs("base", work.probes[:1])
    solver = work.setup.solver()
    return fed(work.setup.family, solver, torch.zeros(shape), solver.timesteps[0], first.conditions)[0]


def _is_unread(part: Part) -> bool:
    return part.build.status == "built" and not (part.build.realised and part.build.realised.complete)


def _unread(part: Part) -> str:
    said = part.build.realised.text() if part.build.realised else "no engine"
    return f"{part.name}: the precision that was built could not be read in full ({said})"


def copy_rest(source: Path, folder: Path, family: type[Family], sides: list[int]) -> None:
    """What a pipeline needs beside its models, as in the base; tokenizers also as older loaders read them.

    The denoiser's configuration names the exported size, ``sides`` [h, w] in latents, as the one to take by default.
    """
    index = json.loads((source / load.INDEX).read_text("utf-8"))
    (folder / load.INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    tokenizers = [family.tokenizer_of(name) for name in family.encoders]
    for name in ("scheduler", *tokenizers, "feature_extractor"):
        if (source / name).is_dir():
            shutil.copytree(source / name, folder / name, dirs_exist_ok=True)
    for name in (family.denoiser, *family.encoders, "vae"):
        if (source / name).is_dir():
            target = folder / ("vae_decoder" if name == "vae" else name)
            target.mkdir(exist_ok=True)
            shutil.copy(source / name / "config.json", target / "config.json")
    own = folder / family.denoiser / "config.json"
    config = json.loads(own.read_text("utf-8"))
    config["sample_size"] = sides[0] if sides[0] == sides[1] else sides
    own.write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    for name in tokenizers:
        _write_vocabulary(folder / name)


def _write_vocabulary(folder: Path) -> None:
    """A tokenizer's words and merges, which older loaders read, out of its one file."""
    whole, vocabulary = folder / "tokenizer.json", folder / "vocab.json"
    if whole.is_file() and not vocabulary.exists():
        model = json.loads(whole.read_text("utf-8"))["model"]
        if model["type"] != "BPE":
            return
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        vocabulary.write_text(json.dumps(model["vocab"], ensure_ascii=False), "utf-8")
        vocabulary.with_name("merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), "utf-8")


def _others(work: Work, compute: str, sizes: bool, folder: Path) -> dict[str, str]:
    """Export the components beside the denoiser; their compute types."""
    found = {}
    for part in work.arms.use("adapted").others(work.shape):
        with work.timed(part.name, 1) as advance:
            found[part.name] = _safe(part, compute)
            qdq.save(to_onnx(part, found[part.name], sizes), folder / part.name / _MODEL)
            advance(1)
    return found


def _safe(part: Component, compute: str) -> str:
    """``compute``, or bfloat16 where on noise a module's output comes near the end of float16's range, or is NaN."""
    if compute != "float16":
        return compute
    fits = True

    def see(_module: nn.Module, _inputs: object, output: object) -> None:
        nonlocal fits
        for value in output if isinstance(output, tuple) else (output,):
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                fits = fits and bool(value.abs().max() < _MOST)

    hooks = [module.register_forward_hook(see) for module in part.module.modules()]
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


def _shapes(work: Work, sizes: Sequence[Size]) -> dict[str, Shapes]:
    """Min, optimal and max of every component's inputs: one row to those of guidance, and every size asked for."""
    family, latents = work.arms.use("adapted"), _latents(work, sizes)
    rows = len(work.example[family.latent])
    fed = [_fed(work, shape) for shape in latents]
    found = {family.denoiser: _spans(fed, family.fixed, rows)}
    for parts in zip(*(family.others(shape) for shape in latents), strict=True):
        part = parts[0]
        found[part.name] = _spans([each.inputs for each in parts], part.fixed, 1 if part.growing else rows)
    return found


def _spans(asked: Sequence[Mapping[str, Any]], fixed: Collection[str], rows: int) -> Shapes:
    """Of every input that varies, from what it is given at each size, the optimal one first."""
    found = {}
    for name in asked[0]:
        shapes = [list(given[name].shape) for given in asked]
        low, high = ([pick(axis) for axis in zip(*shapes, strict=True)] for pick in (min, max))
        best = shapes[0]
        if name not in fixed:
            low[0], best[0], high[0] = 1, rows, rows
        if low != high or name not in fixed:
            found[name] = (low, best, high)
    return found


def _part(work: Work, folder: Path, name: str, compute: str, layers: Sequence[Layer], shapes: Shapes) -> Part:
    """Compile one component, where something here can, and keep the engine."""
    target, model = work.job.target, folder / name / _MODEL
    size = sum(path.stat().st_size for path in model_files(model))
    builder = gate.choose(work.job, work.job.schemes[0])
    if isinstance(builder, str):
        return Part(name=name, compute=compute, bytes=size, build=gate.not_run(target, builder))
    place = folder / "engines" / f"sm{builder.capability.replace('.', '')}"
    place.mkdir(parents=True, exist_ok=True)
    with work.timed(f"{name}: build for SM {builder.capability}", 1) as advance:
        engine, kept = place / f"{name}.engine", place / "timing.cache"
        build = gate.run(builder, target, model, layers, compute, shapes, engine, kept)
        advance(1)
    return Part(name=name, compute=compute, bytes=size, build=build)
