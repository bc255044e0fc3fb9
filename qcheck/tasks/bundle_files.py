"""The files of a bundle: ONNX of every component, and the tensors that go in and came out."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from qcheck.build.precision import float32_products
from qcheck.core.errors import UserError
from qcheck.core.size import megabytes
from qcheck.device import tensors
from qcheck.quantize import contents
from qcheck.result.manifest import Layer, model_files
from qcheck.spec.arm import SIDES
from qcheck.tasks import export
from qcheck.tasks.bundle_content import Content
from qcheck.tasks.bundled_case import BundledCase

_MODEL = "model.onnx"
_TYPES = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
    ir.DataType.INT64: "int64",
    ir.DataType.INT32: "int32",
    ir.DataType.BOOL: "bool",
}


def require_room(case: BundledCase, deployed: Path, content: Content, folder: Path) -> None:
    """Say how large the bundle will be.

    Raises:
        UserError: the disk has no room for it.
    """
    size = 4 if case.quantization.scheme.compute == "float32" else 2
    quantized = sum(path.stat().st_size for path in model_files(deployed))
    needs = case.session.needs
    twin = needs.denoiser.parameters * size if content.twin else 0
    others = sum(profile.parameters for profile in needs.others) * size
    latents, rows = 4 * int(np.prod(case.row)), sum(value.nbytes for value in case.session.example.values())
    probes = len(case.probes) * len(case.setup.strata) * (4 * latents + rows)
    total = quantized * (1 + content.base_arm) + twin + others + probes
    case.session.watch.note(
        f"the bundle will take about {megabytes(total)}: denoiser {megabytes(quantized)}"
        + (f", its twin in 16 bit {megabytes(twin)}" if twin else "")
        + f", other components {megabytes(others)}, {len(case.probes)} probes {megabytes(probes)}"
    )
    free = shutil.disk_usage(folder).free
    if free < total:
        raise UserError(
            f"the bundle takes about {megabytes(total)}, and {megabytes(free)} are free in {folder.parent}",
            "Give a --bundle folder on another disk, fewer --bundle-probes, or --no-twin.",
        )


def write_components(case: BundledCase, content: Content, folder: Path) -> list[dict[str, Any]]:
    """Write the files of every component below ``folder``; what bundle.json says of each."""
    quantization, scheme, name = case.quantization, case.quantization.scheme, case.family.denoiser
    deployed, models = quantization.artifact.deployed, folder / "model"
    if deployed is None:
        raise UserError(f"scheme {scheme.name!r} has no file", "Bundle another scheme.")
    require_room(case, deployed, content, folder)
    _taken(deployed, models / name, shutil.move)
    layers = quantization.artifact.manifest.layers
    described = [_described(case, models / name, "denoiser", scheme.compute, layers)]
    if content.base_arm:
        sources, place = quantization.ground.sources, models / f"{name}.base"
        base = contents.of_base(sources.arms, scheme, sources.recipe, sources.ranges)
        sources.exporter.deployed(base, scheme, place / _MODEL, {"scheme": scheme.name, "arm": "base"})
        described.append(_described(case, place, "base", scheme.compute, layers))
    if content.twin:
        place = models / f"{name}.twin"
        _taken(case.session.exporter.full("adapted", scheme.compute), place, shutil.copy)
        described.append(_described(case, place, "twin", scheme.compute, []))
    for other, compute in export.others(case.session, scheme.compute, False, models).items():
        role = "decoder" if other == "vae_decoder" else "encoder"
        described.append(_described(case, models / other, role, compute, []))
    return described


def write_probes(case: BundledCase, denoiser: Mapping[str, Any], folder: Path) -> None:
    """Write the adapter's inputs of the denoiser, what every probe feeds, and what came out."""
    types = {tensor["name"]: tensor["dtype"] for tensor in denoiser["inputs"]}
    for name, values in case.adapter.items():
        _write(folder / "adapter" / f"{name}.bin", values, types[name])
    with case.session.watch.stage(f"bundle, {len(case.probes)} probes", len(case.probes)) as advance:
        for index in range(len(case.probes)):
            _write_probe(case, index, types, folder)
            advance(1)


def write_samples(case: BundledCase, components: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write inputs and outputs in full precision of the text encoders and the decoder."""
    types = {one["name"]: {tensor["name"]: tensor["dtype"] for tensor in one["inputs"]} for one in components}
    for name, (inputs, outputs) in case.samples.items():
        for key, values in inputs.items():
            _write(folder / "components" / name / "inputs" / f"{key}.bin", values, types[name][key])
        for key, values in outputs.items():
            _write(folder / "components" / name / "outputs" / f"{key}.bin", values, "float32")


def _write_probe(case: BundledCase, index: int, types: Mapping[str, str], folder: Path) -> None:
    probe, reference = folder / "probes" / f"{index:03d}", folder / "reference" / f"{index:03d}"
    for side in SIDES:
        place, names = (probe / "base", case.own_in_base) if side == "base" else (probe, frozenset(types))
        for name, values in case.inputs(index, side).items() if names else ():
            if name in names:
                _write(place / f"{name}.bin", values, types[name])
    _write(probe / "start.bin", case.start(index), "float32")
    look = case.look
    arms = {"f0": look.reference["base"], "f1": look.reference["adapted"]}
    arms |= {"q0": look.quantized["base"], "q1": look.quantized["adapted"]}
    for arm, trace in arms.items():
        _write(reference / f"{arm}.bin", case.raw(trace.outputs()[index]), "float32")
        _write(reference / f"{arm}.final.bin", case.raw(trace.finals()[index][None]), "float32")


def _described(case: BundledCase, place: Path, role: str, compute: str, layers: Sequence[Layer]) -> dict[str, Any]:
    """What bundle.json says of a component's file."""
    graph, kept = ir.load(place / _MODEL).graph, {"name", "node", "dequantizer", "weight", "activation"}
    shapes = _shapes(case, role, place.name)
    return {
        "name": place.name,
        "role": role,
        "file": f"model/{place.name}/{_MODEL}",
        "compute": compute,
        "float32": sorted(float32_products(place / _MODEL)),
        "inputs": [_binding(value, shapes) for value in graph.inputs],
        "outputs": [_binding(value, shapes) for value in graph.outputs],
        "layers": [layer.model_dump(include=kept) for layer in layers],
    }


def _shapes(case: BundledCase, role: str, name: str) -> Mapping[str, tuple[int, ...]]:
    """The shapes of a component's inputs and outputs on the board: one picture at a time."""
    if role in ("denoiser", "base", "twin"):
        shapes = {key: tuple(value.shape) for key, value in {**case.session.example, **case.adapter}.items()}
        return shapes | {case.family.output: shapes[case.family.latent]}
    inputs, outputs = case.samples[name]
    return {key: tuple(value.shape[1:]) for key, value in {**inputs, **outputs}.items()}


def _binding(value: ir.Value, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    dtype = ir.DataType.FLOAT if value.dtype is None else ir.DataType(value.dtype)
    return {"name": value.name, "dtype": _TYPES[dtype], "shape": list(shapes[str(value.name)])}


def _write(path: Path, values: np.ndarray, dtype: str) -> None:
    """Write values as raw bytes in a binding's type."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.ascontiguousarray(tensors.from_float(values, dtype)).tobytes())


def _taken(source: Path, place: Path, take: Any) -> None:
    """Move or copy an ONNX file, and the file of its weights, into a new folder."""
    place.mkdir(parents=True)
    for path in model_files(source):
        take(path, place / path.name)
