"""A bundle: everything that a board needs to judge its own engines, and the verifier that does it.

The host runs its four arms on the probes, judges them, and writes what it fed and what it got: ``qcheck.device.bundle``
says where. Outputs are stored in the layout of the denoiser's own output, so that the board needs no code of a family.
"""

import datetime
import functools
import json
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from qcheck import __version__
from qcheck.build import profile
from qcheck.core.cache import Cache
from qcheck.core.errors import UserError
from qcheck.core.progress import Progress
from qcheck.core.size import megabytes
from qcheck.device import bundle as layout
from qcheck.device import tensors
from qcheck.judge.looks import until_decided
from qcheck.model.components import Component
from qcheck.quantize import artifact
from qcheck.result.bundled import Bundled, BundledFile
from qcheck.result.manifest import Layer, model_files
from qcheck.result.verdict import Outcome, Verdict
from qcheck.sampling import solvers
from qcheck.sampling.setup import fed
from qcheck.spec import measurement
from qcheck.spec.arm import SIDES, Arm, Side
from qcheck.spec.check import CheckSpec
from qcheck.spec.limits import Gate, Limits
from qcheck.tasks import check, pack
from qcheck.tasks import export as exporting
from qcheck.tasks import session as sessions
from qcheck.tasks.check import Look, Quantization
from qcheck.tasks.decide import beside_seeds, decide
from qcheck.tasks.session import Session

MOST = 16  # probes of a bundle that no number was asked for
SAMPLES = 4  # inputs of a text encoder and of the decoder
_MODEL = "model.onnx"
_ON_BOARD: tuple[tuple[str, Arm], ...] = (
    ("effect_survival", "adapted"),
    ("stratum_survival", "adapted"),
    ("endpoint_error", "adapted"),
    ("endpoint_error", "base"),
)


@dataclass(frozen=True)
class Content:
    """What is asked of a bundle: its probes (None: as many as the verdict takes), and what lies beside the denoiser.

    ``base_arm`` adds the quantized base, which is otherwise the host's; ``twin`` the denoiser in 16 bit, to be timed.
    """

    probes: int | None = None
    base_arm: bool = False
    twin: bool = True


def bundle(spec: CheckSpec, content: Content, folder: Path, cache: Cache, progress: Progress) -> Bundled:
    """Write the bundle of a request's first scheme in its first order to ``folder``.

    Raises:
        UserError: bad input, a scheme that TensorRT does not run, or a disk without room for it.
    """
    scheme = spec.schemes[0]
    if "tensorrt" not in scheme.runs:
        raise UserError(
            f"scheme {scheme.name!r} runs in {' and '.join(scheme.runs)}: a board's engine cannot be built from it",
            f"Bundle one of {', '.join(one.name for one in spec.target.deployable())}.",
        )
    if content.probes is not None:
        spec = spec.changed(max_probes=content.probes)
    with sessions.opened(spec, cache, progress) as session:
        check.require_effect(session, session.reference.take(spec.bounds.looks[0]))
        quantization = check.make(session, spec.orders[0], check.quantize_base(session, scheme), folder / ".making")
        verdict, limits, look = _judged(quantization, content.probes)
        writer = _Writer(session, quantization, limits, look, folder)
        components = writer.components(content)
        writer.probes()
        facts = writer.facts(verdict, components, content)
    shutil.rmtree(folder / ".making")
    (folder / layout.NAME).write_text(json.dumps(facts, indent=1, allow_nan=False) + "\n", "utf-8")
    (folder / "README.txt").write_text(pack.readme(facts), "utf-8")
    pack.verifier(folder / pack.VERIFIER)
    digests = pack.sums(folder)
    return Bundled(
        verdict=verdict.outcome,
        probes=len(facts["probes"]),
        scheme=scheme.name,
        order=spec.orders[0],
        target=spec.target.name,
        files=[
            BundledFile(path=name, bytes=(folder / name).stat().st_size, digest=value)
            for name, value in sorted(digests.items())
        ],
    )


def _judged(quantization: Quantization, probes: int | None) -> tuple[Verdict, Limits, Look]:
    """The host's verdict on the bundle's probes, and its limits as they were held there."""
    session, instrument = quantization.session, quantization.ground.instrument
    limits = session.spec.bounds.computing(quantization.scheme.compute)

    def judge_at(count: int) -> tuple[Outcome, tuple[Verdict, Look]]:
        look = check.look(quantization, count)
        verdict = decide(limits, instrument, look.samples, look.energies, quantization.builds)
        return verdict.outcome, (verdict, look)

    looks = [probes] if probes is not None else [n for n in limits.looks if n <= MOST] or [limits.looks[0]]
    _, _, (verdict, look) = until_decided(looks, judge_at)
    held, _ = beside_seeds(limits, look.samples, instrument.another_seed)
    return verdict, held, look


class _Writer:
    """Writes the parts of one bundle."""

    def __init__(self, session: Session, quantization: Quantization, limits: Limits, look: Look, folder: Path) -> None:
        self._session, self._quantization, self._limits, self._look = session, quantization, limits, look
        self._folder, self._count = folder, len(look.energies.f1)
        self._setup = session.sampler.setup
        self._family = self._setup.family
        self._solver = solvers.as_data(self._setup.solver)

    def components(self, content: Content) -> list[dict[str, Any]]:
        """Write the files of every component; what bundle.json says of each."""
        quantization, scheme = self._quantization, self._quantization.scheme
        deployed, name = quantization.artifact.deployed, self._family.denoiser
        if deployed is None:
            raise UserError(f"scheme {scheme.name!r} has no file", "Bundle another scheme.")
        self._require_room(deployed, content)
        folder = self._folder / "model"
        _moved(deployed, folder / name / _MODEL)
        layers = quantization.artifact.manifest.layers
        described = [self._described(name, "denoiser", scheme.compute, layers)]
        if content.base_arm:
            sources = quantization.ground.sources
            base = artifact.base_content(sources.arms, scheme, sources.recipe, sources.ranges)
            facts = {"scheme": scheme.name, "arm": "base"}
            sources.exporter.deployed(base, scheme, folder / f"{name}.base" / _MODEL, facts)
            described.append(self._described(f"{name}.base", "base", scheme.compute, layers))
        if content.twin:
            full = self._session.exporter.full("adapted", scheme.compute)
            _copied(full, folder / f"{name}.twin" / _MODEL)
            described.append(self._described(f"{name}.twin", "twin", scheme.compute, []))
        for other, compute in exporting.others(self._session, scheme.compute, False, folder).items():
            role = "decoder" if other == "vae_decoder" else "encoder"
            described.append(self._described(other, role, compute, []))
        self._component_samples()
        return described

    def _require_room(self, deployed: Path, content: Content) -> None:
        """Say how large the bundle will be.

        Raises:
            UserError: the disk has no room for it.
        """
        size = 2 if self._quantization.scheme.compute != "float32" else 4
        quantized = sum(path.stat().st_size for path in model_files(deployed))
        needs = self._session.needs
        full = needs.denoiser.parameters * size
        others = sum(profile.parameters for profile in needs.others) * size
        latent = int(np.prod(self._session.shape)) * 4
        rows = sum(value.nbytes for value in self._session.example.values())
        probes = self._count * len(self._setup.strata) * (4 * latent + rows)
        total = quantized * (1 + content.base_arm) + full * content.twin + others + probes
        self._session.watch.note(
            f"the bundle will take about {megabytes(total)}: denoiser {megabytes(quantized)}"
            + (f", its twin in 16 bit {megabytes(full)}" if content.twin else "")
            + f", other components {megabytes(others)}, {self._count} probes {megabytes(probes)}"
        )
        free = shutil.disk_usage(self._folder).free
        if free < total:
            raise UserError(
                f"the bundle takes about {megabytes(total)}, and {megabytes(free)} are free in {self._folder.parent}",
                "Give a --bundle folder on another disk, fewer --bundle-probes, or --no-twin.",
            )

    def _described(self, name: str, role: str, compute: str, layers: Sequence[Layer]) -> dict[str, Any]:
        """What bundle.json says of a component's file."""
        path = self._folder / "model" / name / _MODEL
        graph = ir.load(path).graph
        sizes = self._sizes(role, name)
        return {
            "name": name,
            "role": role,
            "file": path.relative_to(self._folder).as_posix(),
            "compute": compute,
            "inputs": [_binding(value, sizes) for value in graph.inputs],
            "outputs": [_binding(value, sizes) for value in graph.outputs],
            "layers": [
                {
                    "name": layer.name,
                    "node": layer.node,
                    "dequantizer": layer.dequantizer,
                    "weight": layer.weight,
                    "activation": layer.activation,
                }
                for layer in layers
            ],
        }

    def _sizes(self, role: str, name: str) -> Mapping[str, tuple[int, ...]]:
        """The shapes of a component's inputs and outputs on the board: one picture at a time."""
        if role in ("denoiser", "base", "twin"):
            shapes = {key: tuple(value.shape) for key, value in self._session.example.items()}
            return shapes | {self._family.output: shapes[self._family.latent]}
        inputs, outputs = self._samples[name]
        return {key: tuple(value.shape[1:]) for key, value in {**inputs, **outputs}.items()}

    @functools.cached_property
    def _samples(self) -> Mapping[str, tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]]:
        """Inputs and outputs in full precision [samples, 1, ...] of every other component."""
        with self._session.arms.held("adapted") as family:
            return {part.name: self._sampled(part) for part in family.others(self._session.shape)}

    def _sampled(self, part: Component) -> tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]:
        count = min(SAMPLES, self._count)
        prompts = [probe.prompt for probe in self._session.sampler.probes[:count]]
        (name,) = part.inputs
        if name == "input_ids":
            inputs = self._family.tokens(part.name, prompts)
        else:
            finals = self._look.reference["adapted"].finals()[:count]
            inputs = self._family.unscaled(torch.from_numpy(np.stack(list(finals))))
        with torch.no_grad():
            results = [part.module(**{name: row[None]}) for row in inputs]
        rows = [result if isinstance(result, tuple) else (result,) for result in results]
        outputs = {
            output: np.stack([row[index].float().numpy() for row in rows]) for index, output in enumerate(part.outputs)
        }
        return {name: inputs[:, None].numpy()}, outputs

    def _component_samples(self) -> None:
        for name, (inputs, outputs) in self._samples.items():
            folder, bindings = self._folder / "components" / name, self._bindings(name)
            for key, values in inputs.items():
                _write(folder / "inputs" / f"{key}.bin", values, bindings[key])
            for key, values in outputs.items():
                _write(folder / "outputs" / f"{key}.bin", values, "float32")

    def _bindings(self, name: str) -> Mapping[str, str]:
        """The types of a file's inputs by name."""
        graph = ir.load(self._folder / "model" / name / _MODEL).graph
        return {str(value.name): _type(value) for value in graph.inputs}

    def probes(self) -> None:
        """Write the inputs and the outputs of every probe."""
        title = f"bundle, {self._count} probes"
        with self._session.watch.stage(title, self._count) as advance:
            for index in range(self._count):
                self._probe(index)
                advance(1)

    def _probe(self, index: int) -> None:
        probe = self._session.sampler.probes[index]
        folder, bindings = self._folder / "probes" / f"{index:03d}", self._bindings(self._family.denoiser)
        for side in SIDES:
            own = self._own_in_base if side == "base" else frozenset(bindings)
            for name, values in self._fed(index, side).items():
                place = folder / "base" if side == "base" else folder
                if name in own:
                    _write(place / f"{name}.bin", values, bindings[name])
        start, _ = self._family.start(probe)
        _write(folder / "start.bin", self._raw(start.numpy() * self._first), "float32")
        reference = self._folder / "reference" / f"{index:03d}"
        look = self._look
        arms = {"f0": look.reference["base"], "f1": look.reference["adapted"]}
        arms |= {"q0": look.quantized["base"], "q1": look.quantized["adapted"]}
        for arm, trace in arms.items():
            _write(reference / f"{arm}.bin", self._raw(trace.outputs()[index]), "float32")
            _write(reference / f"{arm}.final.bin", self._raw(trace.finals()[index][None]), "float32")

    @property
    def _first(self) -> float:
        return float(getattr(self._setup.solver(), "init_noise_sigma", 1.0))

    def _fed(self, index: int, side: Side) -> dict[str, np.ndarray]:
        """The denoiser's inputs [T or 1, ...] of a probe; 1 where all strata have the same."""
        probe, states = self._session.sampler.probes[index], self._look.reference["adapted"].states()[index]
        conditions = self._setup.inputs(side, [probe]).conditions
        calls = []
        for place, step in enumerate(self._setup.strata):
            solver = solvers.at(self._setup.solver(), step)
            x = torch.from_numpy(states[place][None].copy())
            calls.append(fed(self._family, solver, x, solver.timesteps[step], conditions)[0])
        stacked = {name: np.stack([call[name] for call in calls]) for name in calls[0]}
        return {name: values if name in self._varying else values[:1] for name, values in stacked.items()}

    @property
    def _varying(self) -> frozenset[str]:
        return frozenset({self._family.latent, "timestep"})

    @property
    def _own_in_base(self) -> frozenset[str]:
        """The inputs that differ between the arms: those that trained text encoders make."""
        if self._session.arms.encode_alike:
            return frozenset()
        return frozenset(self._session.example) - self._varying - self._family.fixed

    def _raw(self, values: np.ndarray) -> np.ndarray:
        """Latents [n, C, h, w] in the layout of the denoiser's own output, [n, ...] (transformers pack them)."""
        shape = self._session.shape
        row = self._session.example[self._family.latent].shape[1:]
        places = np.arange(int(np.prod(row)), dtype=np.float32)
        order = self._family.read(places.reshape(1, *row), shape).reshape(-1).astype(np.int64)
        raw = np.empty((len(values), len(order)), np.float32)
        raw[:, order] = values.reshape(len(values), -1)
        return raw.reshape(len(values), *row)

    def facts(self, verdict: Verdict, components: list[dict[str, Any]], content: Content) -> dict[str, Any]:
        """The content of bundle.json."""
        session, spec, setup = self._session, self._session.spec, self._setup
        row = session.example[self._family.latent].shape
        probes = session.sampler.probes[: self._count]
        linear = None if isinstance(self._solver, str) else self._solver
        return {
            "schema": layout.SCHEMA,
            "qcheck": __version__,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "asked": {
                "base": Path(spec.base).name,
                "adapter": " + ".join(Path(adapter.source).name for adapter in spec.adapters),
                "scheme": self._quantization.scheme.name,
                "order": self._quantization.order,
                "target": spec.target.name,
                "guidance": setup.guidance,
                "steps": spec.probes.steps,
                "verdict": verdict.outcome,
                "host_machine": f"{platform.machine()} with {session.arms.device.title}",
                "base_digest": session.arms.base.digest,
                "adapter_digests": [adapter.digest for adapter in session.shipped.adapters],
            },
            "components": components,
            "component_samples": min(SAMPLES, self._count),
            "denoiser": {
                "latent": self._family.latent,
                "time": "timestep",
                "varying": sorted(self._varying),
                "own_in_base": sorted(self._own_in_base),
                "shape": list(row[1:]),
            },
            "guidance": setup.guidance,
            "calibrated": bool(spec.references),
            "probes": [{"prompt": probe.prompt, "seed": probe.seed} for probe in probes],
            "strata": list(setup.timesteps()),
            "solver": None if linear is None else self._solver_facts(linear),
            "no_solver": self._solver if isinstance(self._solver, str) else "",
            "limits": self._limits_facts(content),
            "host_only": self._host_only(),
            "expected": [
                one.model_dump(mode="json")
                for one in verdict.measurements
                if (one.name, one.arm) in _ON_BOARD and one.value is not None and np.isfinite(one.value)
            ],
            "forecast": self._forecast(components),
        }

    def _solver_facts(self, linear: solvers.Linear) -> dict[str, Any]:
        """The solver; its timesteps are the denoiser's own input of time."""
        conditions = self._setup.inputs("base", self._session.sampler.probes[:1]).conditions
        solver, x = self._setup.solver(), torch.zeros(self._session.shape)
        times = [float(fed(self._family, solver, x, t, conditions)[0]["timestep"].flat[0]) for t in solver.timesteps]
        return {
            "timesteps": times,
            "scales": linear.scales.tolist(),
            "start": linear.start.tolist(),
            "outputs": linear.outputs.tolist(),
        }

    def _limits_facts(self, content: Content) -> dict[str, Any]:
        limits = self._limits
        asked = [key for key in _ON_BOARD if key != ("endpoint_error", "base") or content.base_arm]
        gates = [gate for gate in limits.gates if (gate.name, gate.arm) in asked]
        others = [
            (
                "embedding_cosine",
                limits.embedding_cosine,
                None,
                "a text encoder gives other embeddings than in float32",
            ),
            ("picture_error", None, limits.picture_error, "the decoder gives other pictures than in float32"),
        ]
        return {
            "alpha": limits.alpha,
            "tail": list(limits.tail),
            "bad_share": limits.bad_share,
            "gates": [_gate(gate) for gate in gates]
            + [
                {"name": name, "arm": "adapted", "unit": "", "low": low, "high": high, "beyond": beyond}
                for name, low, high, beyond in others
            ],
        }

    def _host_only(self) -> dict[str, str]:
        """Gates of the quantized arms that a board does not measure, with the reason."""
        on_board = {name for name, _ in _ON_BOARD}
        gates = [gate for gate in self._limits.gates if gate.role in ("absolute", "adapter")]
        return {
            gate.name: "of pictures of free runs, which the host measured"
            for gate in gates
            if gate.name not in on_board
        }

    def _forecast(self, components: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What the host can say of the board: measured there, it stands beside."""
        session, quantization = self._session, self._quantization
        path = self._folder / components[0]["file"]
        size = sum(one.stat().st_size for one in model_files(path))
        scheme, layers = quantization.scheme, quantization.artifact.manifest.layers
        estimate = profile.estimated(session.needs, session.spec.target, size, layers, scheme.compute)
        engines = [build.bytes for build in quantization.builds if build.status == "built"]
        return {
            "call_ms": estimate.call_ms,
            "engine_bytes": engines[0] if engines else None,
            "builder_bytes": 4 * size,
            "memory_bytes": int(1e6 * (estimate.denoiser_mb + estimate.activations_mb)),
        }


def _gate(gate: Gate) -> dict[str, Any]:
    unit = measurement.find(gate.name).of(gate.arm).unit
    return {
        "name": gate.name,
        "arm": gate.arm,
        "unit": unit,
        "low": gate.low,
        "high": gate.high,
        "beyond": gate.beyond,
    }


_TYPES = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
    ir.DataType.INT64: "int64",
    ir.DataType.INT32: "int32",
    ir.DataType.BOOL: "bool",
}


def _type(value: ir.Value) -> str:
    return _TYPES[ir.DataType(value.dtype)] if value.dtype is not None else "float32"


def _binding(value: ir.Value, sizes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    return {"name": value.name, "dtype": _type(value), "shape": list(sizes[str(value.name)])}


def _write(path: Path, values: np.ndarray, dtype: str) -> None:
    """Write values as raw bytes in a binding's type."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.ascontiguousarray(tensors.from_float(values, dtype)).tobytes())


def _moved(source: Path, destination: Path) -> None:
    """Move an ONNX file and the file of its weights."""
    destination.parent.mkdir(parents=True)
    for path in model_files(source):
        shutil.move(path, destination.parent / path.name)


def _copied(source: Path, destination: Path) -> None:
    """Copy an ONNX file and the file of its weights."""
    destination.parent.mkdir(parents=True)
    for path in model_files(source):
        shutil.copy(path, destination.parent / path.name)
