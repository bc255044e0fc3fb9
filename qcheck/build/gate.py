"""The build gate: compile q1 for the target, and compare the engine's precision with the scheme.

A build proves that the file parses, that its types are allowed and that it compiles. Its engine is read and deleted
(``qcheck export`` keeps it). Files that differ only in the values of their weights are built once.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from qcheck.build import builder as tensorrt
from qcheck.build import engine
from qcheck.build.builder import Builder, Built, Problem, Shapes
from qcheck.build.precision import compare, float32_products
from qcheck.core import cache, versions
from qcheck.core.cache import Cache
from qcheck.core.digest import digest_of
from qcheck.core.progress import Stopwatch
from qcheck.core.values import DATA, Value, names_in, read_toml
from qcheck.model.family import Family
from qcheck.quantize.artifact import Artifact
from qcheck.quantize.given import Given
from qcheck.result.build import Build, Precision
from qcheck.result.manifest import Layer
from qcheck.spec.scheme import Scheme
from qcheck.spec.target import FORMATS, Target, number_format

CAUSES = DATA / "builder" / "causes.toml"


@dataclass(frozen=True)
class Gate:
    """The settings of builds: the target, whether engines are built (``wanted``), and the cache of results.

    ``shapes`` are the min, optimal and max shapes of the denoiser's inputs.
    """

    target: Target
    wanted: bool
    shapes: Shapes
    store: Cache
    watch: Stopwatch

    def builder(self, scheme: Scheme | None = None) -> Builder | str:
        """The builder for the target, or the reason why there is none; a file of another tool has no scheme."""
        return choose(self.target, self.wanted, scheme)

    def build(self, title: str, scheme: Scheme, artifact: Artifact) -> Build:
        """Compile q1 for the target or its proxy; the build of an equal graph is read from the cache."""
        builder = self.builder(scheme)
        if isinstance(builder, str) or artifact.deployed is None:
            return not_run(self.target, str(builder))
        layers = artifact.manifest.layers
        release = versions.of([builder.module])  # a builder is imported by name, where the key does not see it
        parts = (structure(artifact.deployed), repr(layers), repr(builder), repr(release), repr(self.shapes))
        key = cache.key(__name__, "build", *parts)
        build = self._cached(key)
        if build is None:
            with self.store.locked("build", key):
                build = self._cached(key) or self._compile(title, scheme, artifact.deployed, layers, builder, key)
        return build.model_copy(update={"proxy": builder.capability != self.target.capability.value})

    def _cached(self, key: str) -> Build | None:
        folder = self.store.find("build", key)
        return None if folder is None else Build.model_validate_json((folder / _BUILD).read_text("utf-8"))

    def _compile(
        self, title: str, scheme: Scheme, model: Path, layers: Sequence[Layer], builder: Builder, key: str
    ) -> Build:
        with self.watch.stage(f"{title}: build for SM {builder.capability}", 1) as advance, scratch() as engine_path:
            build = run(builder, self.target, model, layers, scheme.compute, self.shapes, engine_path)
            advance(1)
        build = build.model_copy(update={"graph": title})
        if build.status in _CACHED_STATUSES:
            with self.store.put("build", key, f"{title} for SM {builder.capability}") as folder:
                (folder / _BUILD).write_text(build.model_dump_json(), "utf-8")
        return build

    def build_given(self, given: Given, example: Mapping[str, np.ndarray], latent: str) -> Build:
        """Compile a file of another tool, whose intended precision is not known."""
        builder = self.builder()
        if isinstance(builder, str):
            return not_run(self.target, builder)
        with (
            self.watch.stage(f"{given.name}: build for SM {builder.capability}", 1) as advance,
            scratch() as path,
        ):
            build = run(
                builder,
                self.target,
                given.path,
                [],
                None,
                _file_shapes(given, self.shapes, example, latent),
                path,
            )
            advance(1)
        return build


_BUILD = "build.json"
_CACHED_STATUSES = ("built", "fell back")  # a refusal takes little time, and a crash may have been the machine's fault


def choose(target: Target, wanted: bool, scheme: Scheme | None = None) -> Builder | str:
    """The builder for ``target``, or the reason why there is none; a file of another tool has no scheme."""
    if scheme is not None and "tensorrt" not in scheme.runs:
        return f"TensorRT does not run this scheme; {' and '.join(scheme.runs)} does"
    if not wanted:
        return "switched off by --no-build"
    return tensorrt.choose(target.capability.value, target.proxy.value if target.proxy else None)


@contextmanager
def scratch() -> Iterator[Path]:
    """The path of a temporary engine, deleted when the block ends."""
    with TemporaryDirectory() as folder:
        yield Path(folder) / "model.engine"


def not_run(target: Target, reason: str) -> Build:
    """A build that was not run, and the reason."""
    capability = target.proxy.value if target.proxy else target.capability.value
    return Build(builder="", capability=capability, proxy=target.is_proxied, status="not run", detail=reason)


def shapes_of(family: Family, example: Mapping[str, np.ndarray]) -> Shapes:
    """Min, optimal and max shape of every batched input: one row up to guidance's branches, at the probes' size."""
    return {
        name: ([1, *value.shape[1:]], [family.branches, *value.shape[1:]], [family.branches, *value.shape[1:]])
        for name, value in example.items()
        if name not in family.fixed
    }


def _file_shapes(given: Given, denoiser_shapes: Shapes, example: Mapping[str, np.ndarray], latent: str) -> Shapes:
    """The same as ``shapes_of`` by the file's own input names; a fixed batch stays as it is."""
    shapes = dict[str, tuple[list[int], list[int], list[int]]]()
    batches = [sizes[0] for sizes in denoiser_shapes[latent]]
    for feed in given.feeds:
        rest = list(example[feed.role].shape[1:])
        if feed.batched or (feed.role in denoiser_shapes and feed.rank > 1):
            low, best, high = ([feed.rows or rows, *rest] for rows in batches)
            shapes[feed.name] = (low, best, high)
        elif feed.rank and None in {feed.rows, *feed.sides}:
            exact = [1] if feed.rank == 1 else list(example[feed.role].shape)
            shapes[feed.name] = (exact, exact, exact)
    return shapes


def structure(model: Path) -> str:
    """The digest of a file without the values of its weights: files of equal digests compile alike.

    Values that change the build stay in the digest: integers, which are shapes and indices, and the names of scales
    that are not positive, which parsers refuse.
    """
    graph = onnx.load(model)
    del graph.metadata_props[:]
    scales = {node.input[1] for node in graph.graph.node if node.op_type in {"QuantizeLinear", "DequantizeLinear"}}
    unusable_scales = []
    for tensor in graph.graph.initializer:
        if tensor.name in scales and not (numpy_helper.to_array(tensor).astype(np.float32) > 0).all():
            unusable_scales.append(tensor.name)
        if tensor.data_type not in _SHAPING:
            for storage in ("raw_data", "float_data", "int32_data", "external_data"):
                tensor.ClearField(storage)
    return digest_of(graph.SerializeToString(deterministic=True), *unusable_scales)


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
    """Build a file and read its engine: built in the scheme's precision, fell back (and where), refused, or crashed.

    ``layers`` are the file's quantized layers, ``compute`` is the type of everything else, None where it is not known.
    """
    built = tensorrt.build(builder, model, shapes, engine_path, timing_cache)
    precision = _precision(built, model, layers, compute)
    fell_back = precision is not None and precision.fell_back
    details = precision.fell_back if fell_back and precision else [_explain(p, target, layers) for p in built.problems]
    return Build(
        builder=built.builder,
        capability=builder.capability,
        proxy=builder.capability != target.capability.value,
        status="fell back" if fell_back else built.status,
        detail=_first_few(details),
        realised=precision,
        bytes=built.engine.stat().st_size if built.engine else None,
        seconds=round(built.seconds, 1),
        peak_memory_mb=round(built.peak_memory_mb),
    )


def _precision(built: Built, model: Path, layers: Sequence[Layer], compute: str | None) -> Precision | None:
    if built.engine is None:
        return None
    try:
        program = engine.inspected("" if built.inspected is None else built.inspected.read_text("utf-8"))
    except ValueError:  # nothing was inspected, or what cannot be read
        program = engine.read(built.engine)
    return compare(layers, compute, program, float32_products(model))


_MOST_DETAILS = 3


def _first_few(details: Sequence[str]) -> str:
    more = f"; and {len(details) - _MOST_DETAILS} more" if len(details) > _MOST_DETAILS else ""
    return "; ".join(details[:_MOST_DETAILS]) + more


class Cause(Value):
    """The meaning of a builder's error whose text matches ``pattern``."""

    pattern: str
    means: str


class Causes(Value):
    """The file of causes."""

    name: str
    causes: list[Cause]


_TYPE_ERROR = re.compile(r"HW-specific datatypes: ([\w, ]+)")


def _explain(problem: Problem, target: Target, layers: Sequence[Layer]) -> str:
    """The builder's error, the layer that it names, and a cause that the user can act on."""
    words = " ".join(problem.text.split())
    where = f" (in {problem.module})" if problem.module and problem.module not in words else ""
    match = _TYPE_ERROR.search(words)
    if match is not None:
        formats = frozenset(map(engine.spelled, re.split(r"[ ,]+", match[1].strip())))
        cause = _missing_formats(formats & set(names_in(FORMATS)), target, layers)
    else:
        causes = read_toml(Causes, CAUSES).causes
        cause = next((cause.means for cause in causes if re.search(cause.pattern, words)), "")
    return f"{cause} [{words}{where}]" if cause else f"{words}{where}"


def _missing_formats(names: frozenset[str], target: Target, layers: Sequence[Layer]) -> str:
    """The capabilities that formats need, the layers that use them, the target's capability, and other schemes."""
    if not names:
        return ""
    needs = " and ".join(
        f"{number.title} needs SM {number.capability}" if number.capability else f"{number.title} is not there"
        for number in map(number_format, sorted(names))
    )
    users = [layer.name for layer in layers if names & {layer.weight, layer.activation}]
    used_by = f" ({len(users)} layers use it, first {users[0]})" if users else ""
    others = [s.name for s in target.deployable() if not names & s.formats][:2]
    return f"{needs}{used_by}; {target.title} is SM {target.capability.value}: use {' or '.join(others) or 'float16'}"
