"""The build gate: compile q1 for the target, and hold what was built against what the scheme asked.

A build proves that the file parses, that its types are allowed and that it compiles; its engine is read and thrown away
(``qcheck export`` keeps it). Two files that differ in nothing but the values of their weights are built once.
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
from qcheck.build.precision import compare
from qcheck.core import cache
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
    """What builds are asked of: the target, whether they are wanted, where results are kept.

    ``shapes`` are min, optimal and max of the denoiser's inputs.
    """

    target: Target
    wanted: bool
    shapes: Shapes
    store: Cache
    watch: Stopwatch

    def builder(self, scheme: Scheme | None = None) -> Builder | str:
        """What builds for the target here, or why nothing does; without a scheme the file is someone else's."""
        return choose(self.target, self.wanted, scheme)

    def build(self, title: str, scheme: Scheme, made: Artifact) -> Build:
        """Compile q1 for the target, or its proxy where the target is not here; a graph that was built is not again."""
        builder = self.builder(scheme)
        if isinstance(builder, str) or made.deployed is None:
            return not_run(self.target, str(builder))
        layers = made.manifest.layers
        parts = (structure(made.deployed), repr(layers), repr(builder), repr(self.shapes))
        key = cache.key(__name__, "build", *parts)
        known = self._known(key)
        if known is None:
            with self.store.locked("build", key):
                known = self._known(key) or self._compiled(title, scheme, made.deployed, layers, builder, key)
        return known.model_copy(update={"proxy": builder.capability != self.target.capability.value})

    def _known(self, key: str) -> Build | None:
        stored = self.store.find("build", key)
        return None if stored is None else Build.model_validate_json((stored / _BUILD).read_text("utf-8"))

    def _compiled(
        self, title: str, scheme: Scheme, model: Path, layers: Sequence[Layer], builder: Builder, key: str
    ) -> Build:
        with self.watch.stage(f"{title}: build for SM {builder.capability}", 1) as advance, scratch() as place:
            found = run(builder, self.target, model, layers, scheme.compute, self.shapes, place)
            advance(1)
        found = found.model_copy(update={"graph": title})
        if found.status in _KEPT:
            with self.store.put("build", key, f"{title} for SM {builder.capability}") as kept:
                (kept / _BUILD).write_text(found.model_dump_json(), "utf-8")
        return found

    def build_given(self, given: Given, example: Mapping[str, np.ndarray], latent: str) -> Build:
        """Compile a file of someone else's; what it should compute in is not known."""
        builder = self.builder()
        if isinstance(builder, str):
            return not_run(self.target, builder)
        with self.watch.stage(f"{given.name}: build for SM {builder.capability}", 1) as advance, scratch() as place:
            made = run(builder, self.target, given.path, [], None, _shapes(given, self.shapes, example, latent), place)
            advance(1)
        return made


_BUILD = "build.json"
_KEPT = ("built", "fell back")  # a refusal costs little, and a crash may have been the machine's


def choose(target: Target, wanted: bool, scheme: Scheme | None = None) -> Builder | str:
    """What builds for ``target`` here, or why nothing does; without a scheme the file is someone else's."""
    if scheme is not None and "tensorrt" not in scheme.runs:
        return f"TensorRT does not run this scheme; {' and '.join(scheme.runs)} does"
    if not wanted:
        return "switched off by --no-build"
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


def shapes_of(family: Family, example: Mapping[str, np.ndarray]) -> Shapes:
    """One row to as many as guidance may take, of the probes' size; what is not batched varies in nothing."""
    return {
        name: ([1, *value.shape[1:]], [family.branches, *value.shape[1:]], [family.branches, *value.shape[1:]])
        for name, value in example.items()
        if name not in family.fixed
    }


def _shapes(given: Given, own: Shapes, example: Mapping[str, np.ndarray], latent: str) -> Shapes:
    """As ``shapes_of``, by the file's own names; a fixed batch stays as it is."""
    shapes = dict[str, tuple[list[int], list[int], list[int]]]()
    batches = [sizes[0] for sizes in own[latent]]
    for feed in given.feeds:
        rest = list(example[feed.role].shape[1:])
        if feed.batched or (feed.role in own and feed.rank > 1):
            low, best, high = ([feed.rows or rows, *rest] for rows in batches)
            shapes[feed.name] = (low, best, high)
        elif feed.rank and None in {feed.rows, *feed.sides}:
            exact = [1] if feed.rank == 1 else list(example[feed.role].shape)
            shapes[feed.name] = (exact, exact, exact)
    return shapes


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


def _realised(built: Built, layers: Sequence[Layer], compute: str | None) -> Precision | None:
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
