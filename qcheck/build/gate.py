"""The build gate: compile q1 for the target, and hold what was built against what the scheme asked.

A build proves that the file parses, that its types are allowed and that it compiles; its engine is read and thrown away
(``qcheck export`` keeps it). Two files that differ in nothing but the values of their weights are built once.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from qcheck.build import builder as tensorrt
from qcheck.build import engine
from qcheck.build.builder import Builder, Built, Problem, Shapes
from qcheck.build.precision import compare
from qcheck.core import cache
from qcheck.core.digest import digest_of
from qcheck.core.values import DATA, Value, names_in, read_toml
from qcheck.quantize.artifact import Artifact
from qcheck.result.build import Build, Realised
from qcheck.result.manifest import Layer
from qcheck.spec.check import Job
from qcheck.spec.scheme import Scheme
from qcheck.spec.target import FORMATS, Target, number_format
from qcheck.tasks.work import Work

CAUSES = DATA / "builder" / "causes.toml"


def build(work: Work, title: str, scheme: Scheme, made: Artifact) -> Build:
    """Compile q1 for the target, or for its proxy where the target is not here; a graph that was built is not again."""
    target, builder = work.job.target, choose(work.job, scheme)
    if isinstance(builder, str) or made.deployed is None:
        return not_run(target, str(builder))
    shapes = shapes_of(work)
    key = cache.key("build", structure(made.deployed), repr(made.manifest.layers), repr(builder), repr(shapes))
    stored = work.store.find("build", key)
    if stored is not None:
        known = Build.model_validate_json((stored / _BUILD).read_text("utf-8"))
        return known.model_copy(update={"proxy": builder.capability != target.capability.value})
    with work.timed(f"{title}: build for SM {builder.capability}", 1) as advance, TemporaryDirectory() as folder:
        found = run(
            builder, target, made.deployed, made.manifest.layers, scheme.compute, shapes, Path(folder) / "engine"
        )
        advance(1)
    found = found.model_copy(update={"graph": title})
    if found.status in _KEPT:
        with work.store.put("build", key, f"{title} for SM {builder.capability}") as kept:
            (kept / _BUILD).write_text(found.model_dump_json(), "utf-8")
    return found


_BUILD = "build.json"
_KEPT = ("built", "fell back")  # a refusal costs little, and a crash may have been the machine's


def choose(job: Job, scheme: Scheme | None = None) -> Builder | str:
    """What builds for the job's target here, or why nothing does; without a scheme the file is someone else's."""
    if scheme is not None and "tensorrt" not in scheme.runs:
        return f"TensorRT does not run this scheme; {' and '.join(scheme.runs)} does"
    if not job.build:
        return "switched off by --no-build"
    target = job.target
    return tensorrt.choose(target.capability.value, target.proxy.value if target.proxy else None)


@contextmanager
def scratch() -> Iterator[Path]:
    """Where an engine goes that nobody keeps."""
    with TemporaryDirectory() as folder:
        yield Path(folder) / "model.engine"


def not_run(target: Target, reason: str) -> Build:
    """No build, and why."""
    capability = target.proxy.value if target.proxy else target.capability.value
    return Build(builder="", capability=capability, proxy=target.is_proxied, status="not run", detail=reason)


def shapes_of(work: Work) -> Shapes:
    """One row to as many as guidance may take, of the probes' size; what is not batched varies in nothing."""
    family = work.setup.family
    return {
        name: ([1, *value.shape[1:]], [family.branches, *value.shape[1:]], [family.branches, *value.shape[1:]])
        for name, value in work.example.items()
        if name not in family.fixed
    }


def structure(model: Path) -> str:
    """The digest of a file without the values of its weights: equal graphs compile alike.

    What decides how a graph is built stays in it: integers, which are shapes and indices, and which scales are not
    positive, as parsers refuse them.
    """
    graph = onnx.load(model)
    del graph.metadata_props[:]
    scales = {node.input[1] for node in graph.graph.node if node.op_type in {"QuantizeLinear", "DequantizeLinear"}}
    odd = []
    for tensor in graph.graph.initializer:
        if tensor.name in scales and not (numpy_helper.to_array(tensor).astype(np.float32) > 0).all():
            odd.append(tensor.name)
        if tensor.data_type not in _SHAPING:
            for held in ("raw_data", "float_data", "int32_data", "external_data"):
                tensor.ClearField(held)
    return digest_of(graph.SerializeToString(deterministic=True), *odd)


_SHAPING = frozenset({TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL})


def run(
    builder: Builder,
    target: Target,
    model: Path,
    layers: Sequence[Layer],
    compute: str | None,
    shapes: Shapes,
    engine_path: Path,
    timing_cache: Path | None = None,
) -> Build:
    """One build, read: built as asked, fell back (and where), refused (and why), or crashed.

    ``layers`` are what was asked of the file, ``compute`` the type of everything else in it; None where nobody asked.
    """
    built = tensorrt.build(builder, model, shapes, engine_path, timing_cache)
    realised = _realised(built, layers, compute)
    fell = realised is not None and realised.fell_back
    said = realised.fell_back if fell and realised else [_explain(p, target, layers) for p in built.problems]
    return Build(
        builder=built.builder,
        capability=builder.capability,
        proxy=builder.capability != target.capability.value,
        status="fell back" if fell else built.status,
        detail=_few(said),
        realised=realised,
        bytes=built.engine.stat().st_size if built.engine else None,
        seconds=round(built.seconds, 1),
        peak_memory_mb=round(built.peak_memory_mb),
    )


def _realised(built: Built, layers: Sequence[Layer], compute: str | None) -> Realised | None:
    if built.engine is None:
        return None
    if built.inspected is not None:
        program = engine.inspected(built.inspected.read_text("utf-8"))
    else:
        program = engine.read(built.engine)
    return compare(layers, compute, program)


_SHOWN = 3


def _few(said: Sequence[str]) -> str:
    more = f"; and {len(said) - _SHOWN} more" if len(said) > _SHOWN else ""
    return "; ".join(said[:_SHOWN]) + more


class Cause(Value):
    """What a builder's words that match ``pattern`` mean."""

    pattern: str
    means: str


class Causes(Value):
    """The file of them."""

    name: str
    causes: list[Cause]


_TYPES = re.compile(r"HW-specific datatypes: ([\w, ]+)")


def _explain(problem: Problem, target: Target, layers: Sequence[Layer]) -> str:
    """The builder's words, the layer they are about, and a cause that a person can act on."""
    words = " ".join(problem.text.split())
    where = f" (in {problem.module})" if problem.module and problem.module not in words else ""
    found = _TYPES.search(words)
    if found is not None:
        named = frozenset(map(engine.spelled, re.split(r"[ ,]+", found[1].strip())))
        cause = _types(named & set(names_in(FORMATS)), target, layers)
    else:
        known = read_toml(Causes, CAUSES).causes
        cause = next((cause.means for cause in known if re.search(cause.pattern, words)), "")
    return f"{cause} [{words}{where}]" if cause else f"{words}{where}"


def _types(names: frozenset[str], target: Target, layers: Sequence[Layer]) -> str:
    """Which formats need which capability, what the target is, who uses them and what to use instead."""
    if not names:
        return ""
    needs = " and ".join(
        f"{known.title} needs SM {known.capability}" if known.capability else f"{known.title} is not there"
        for known in map(number_format, sorted(names))
    )
    users = [layer.name for layer in layers if names & {layer.weight, layer.activation}]
    of = f" ({len(users)} layers use it, first {users[0]})" if users else ""
    instead = [s.name for s in target.deployable() if not names & s.formats]
    return f"{needs}{of}; {target.title} is SM {target.capability.value}: use {' or '.join(instead[:2]) or 'float16'}"
