"""The files of a scheme: the model for the device, the float32 twins that are run here, and manifests.

Every file is made once, in the cache. The files of q1 are copied into the output folder:

artifacts/<scheme>/<order>/<denoiser>/model.onnx  q1 in the compute type: the file to deploy
artifacts/<scheme>/<order>/q1.twin.onnx           the same codes and scales, or their values; float32 elsewhere
artifacts/<scheme>/<order>/manifest.json
"""

import functools
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir
from torch import nn

from qcheck import __version__
from qcheck.core import cache
from qcheck.core.cache import Cache
from qcheck.core.digest import digest_of, digest_of_value
from qcheck.model import attention
from qcheck.model.arms import Arms
from qcheck.model.components import MODULE, Component
from qcheck.model.graph import export
from qcheck.model.lora import Adapter
from qcheck.model.stored import Weights, whole
from qcheck.quantize import bound, contents, plan, qdq, sites
from qcheck.quantize.bound import Binding
from qcheck.quantize.contents import BASE, Origin, QuantizedWeights, Ranges, calibrated_on
from qcheck.quantize.plan import Input
from qcheck.quantize.sites import Site
from qcheck.result import manifest
from qcheck.result.manifest import Layer, Manifest, Source, model_files
from qcheck.spec import order as orders
from qcheck.spec.arm import SIDES, Side
from qcheck.spec.order import Order
from qcheck.spec.recipe import Recipe
from qcheck.spec.scheme import Scheme

TWIN = "float32"


@dataclass(frozen=True)
class QuantizedArm:
    """A quantized arm to run here: by its ONNX file or, where ``path`` is None, by its content in torch.

    Equal digests mean equal outputs. ``inputs`` are those of the file that hold the adapter, where it is bound.
    """

    digest: str
    path: Path | None
    content: Callable[[], QuantizedWeights]
    inputs: Callable[[], Mapping[str, np.ndarray]] = dict


@dataclass(frozen=True)
class Artifact:
    """q1 in one order: the arm that is run here and, where the scheme is an ONNX file, the file for the device."""

    folder: Path
    runs: QuantizedArm
    deployed: Path | None
    manifest: Manifest


class Exporter:
    """Fills and saves the denoiser's graph; torch exports the graph of a base once for each compute type.

    ``example`` are inputs of the denoiser, of any number of rows; with ``sizes`` the sides of the picture vary too.
    """

    def __init__(self, arms: Arms, store: Cache, example: Mapping[str, np.ndarray], sizes: bool = False) -> None:
        self._arms, self._store, self._example, self._sizes = arms, store, example, sizes
        self._graphs: dict[tuple[str, Side], ir.Model] = {}
        self._fused: dict[Side, ir.Model] = {}

    def graph(self, compute: str, side: Side = "adapted") -> ir.Model:
        """The graph, without weights of its layers: those of an arm are filled in for each file.

        Both arms have one, unless the adapter changes biases or norms, which are constants of it.
        """
        alike, base = self._arms.graphs_alike, self._arms.base
        place = (compute, "base" if alike else side)
        if place not in self._graphs:
            arm = () if alike else (self._arms.content(side),)
            key = cache.key(__name__, "graph", base.digest, compute, self.shapes(), *arm)

            def make(folder: Path) -> None:
                with nullcontext() if alike else self._arms.held(side):
                    component = base.family.component(self._example)
                    qdq.save(_hollow(component, compute, self._sizes), folder / "graph.onnx")

            entry = self._store.obtain("graph", key, f"{base.source}, {compute}", make)
            self._graphs[place] = sites.unfilled(ir.load(entry / "graph.onnx"), self._example)
        return self._graphs[place]

    def _run_here(self, side: Side) -> ir.Model:
        """The float32 graph with ONNX Runtime's own attention, for files that are run here alone."""
        key: Side = "base" if self._arms.graphs_alike else side
        if key not in self._fused:
            self._fused[key] = attention.fuse(self.graph(TWIN, key).clone())
        return self._fused[key]

    def shapes(self) -> str:
        """The input shapes of every file, as part of a cache key."""
        fixed = self._arms.base.family.fixed
        shapes = {name: v.shape if name in fixed else v.shape[1:] for name, v in self._example.items()}
        return repr((shapes, self._sizes))

    def sites(self, compute: str) -> Mapping[str, Site]:
        """The node and weight of each layer, in the graph and in every file made from it."""
        return sites.find(self.graph(compute).graph)

    def full(self, side: Side, compute: str) -> Path:
        """The file of an unquantized arm."""
        key = cache.key(__name__, "full", self._arms.content(side), compute, self.shapes())
        about = f"{self._arms.base.source}, unquantized, {compute}"
        entry = self._store.obtain("artifact", key, about, lambda folder: self._full(side, compute, folder))
        return entry / "model.onnx"

    def _full(self, side: Side, compute: str, folder: Path) -> None:
        graph = self._run_here(side) if compute == TWIN else self.graph(compute, side)
        qdq.save(sites.fill(graph, self._arms.state(side)), folder / "model.onnx")

    def deployed(self, content: QuantizedWeights, scheme: Scheme, path: Path, facts: Mapping[str, str]) -> Path:
        """Save a quantized arm as the file for the device."""
        graph = self.graph(scheme.compute, content.side)
        model = qdq.quantized(graph, content.state, content.plan, content.branches, scheme.opset, rank=content.rank)
        return self._save(model, path, facts)

    def twin(self, content: QuantizedWeights, scheme: Scheme, path: Path, facts: Mapping[str, str]) -> Path:
        """Save a quantized arm as ONNX Runtime runs it here: the same codes and scales, or their dequantized values."""
        graph, decoded = self._run_here(content.side), scheme.decoded
        model = qdq.quantized(graph, content.state, content.plan, content.branches, scheme.opset, decoded, content.rank)
        return self._save(model, path, facts)

    def _save(self, model: ir.Model, path: Path, facts: Mapping[str, str]) -> Path:
        model.metadata_props.update({f"qcheck.{key}": value for key, value in facts.items()})
        path.parent.mkdir(parents=True, exist_ok=True)
        qdq.save(model, path)
        return path


def _hollow(component: Component, compute: str, sizes: bool) -> ir.Model:
    """The exported graph of a component with the weights of its layers as inputs."""
    prefix = f"{MODULE}."
    layers = [name.removeprefix(prefix) for name, _ in plan.linear_layers(component.module)]
    return sites.hollow(export(component, compute, sizes, hollow=True), layers)


def unquantized(component: Component, compute: str, sizes: bool) -> ir.Model:
    """The graph of a component with its weights, each of which is cast when it is written."""
    model = sites.unfilled(_hollow(component, compute, sizes), component.inputs)
    kinds = nn.Linear | nn.Conv2d | nn.Conv3d
    layers = ((name, layer) for name, layer in component.module.named_modules() if isinstance(layer, kinds))
    return sites.fill(model, Weights({f"{name}.weight": functools.partial(whole, layer) for name, layer in layers}))


@dataclass(frozen=True)
class ArtifactSources:
    """The inputs from which the artifacts of one scheme are made; without ``twin`` the file for the device alone.

    ``binding`` are the inputs of a file that binds its adapter, by default the adapter's own.
    """

    arms: Arms
    exporter: Exporter
    store: Cache
    scheme: Scheme
    recipe: Recipe
    ranges: Ranges
    twin: bool = True
    binding: Binding | None = None

    @property
    def has_twin(self) -> bool:
        """Whether a twin is written, to be run here."""
        return self.twin and self.scheme.exported

    @property
    def deployed(self) -> Path:
        """The path of the file for the device in an artifact's folder."""
        return Path(self.arms.base.family.denoiser) / "model.onnx"

    def facts(self, order: str) -> dict[str, str]:
        """The metadata of every file."""
        return {"scheme": self.scheme.name, "order": order, "recipe": self.recipe.name}

    def content(self, order: Order) -> QuantizedWeights:
        """The content of q1 in an order."""
        return contents.of_adapted(self.arms, self.scheme, self.recipe, order, self.ranges, self.binding)

    def key(self, order: Order | Literal["base"]) -> str:
        """The cache key of q1 in an order, or of q0 at "base": equal keys mean equal outputs."""
        if order == BASE:  # what its ranges depend on is in their digest
            return self._key(order, ("base",), self.arms.content("base"))
        binding = (repr(self.binding),) if orders.merge(order).binds else ()
        return self._key(order, ("base", calibrated_on(order)), *map(self.arms.content, SIDES), *binding)

    def file_key(self, order: Order) -> str:
        """The cache key of the files of q1, which a bound adapter's weights are not in."""
        if not orders.merge(order).binds:
            return self.key(order)
        binding = self.binding or bound.binding([self.arms.ranks()])
        return self._key(order, (calibrated_on(order),), self.arms.content("base"), repr(binding))

    def _key(self, order: str, origins: Sequence[Origin], *arms: str) -> str:
        ranges = digest_of(*(part for origin in origins for part in _digest_parts(self.ranges[origin])))
        values = (digest_of_value(self.scheme), digest_of_value(self.recipe))
        twin = () if self.twin else ("no twin",)
        return cache.key(__name__, "artifact", *arms, *values, order, ranges, self.exporter.shapes(), *twin)


def _digest_parts(inputs: Mapping[str, Input]) -> Iterator[bytes | str]:
    for layer, calibrated in sorted(inputs.items()):
        yield f"{layer} {calibrated.cut!r}"
        yield b"" if calibrated.smooth is None else calibrated.smooth.numpy().tobytes()


def write_base(sources: ArtifactSources) -> QuantizedArm:
    """Write q0: the twin's file, where the scheme has one."""
    scheme, key = sources.scheme, sources.key(BASE)

    def content() -> QuantizedWeights:
        return contents.of_base(sources.arms, scheme, sources.recipe, sources.ranges)

    def make(folder: Path) -> None:
        sources.exporter.twin(content(), scheme, folder / "q0.twin.onnx", {"scheme": scheme.name, "arm": "base"})

    if not sources.has_twin:
        return QuantizedArm(key, None, content)
    folder = sources.store.obtain("artifact", key, f"{sources.arms.base.source}, {scheme.name}, base", make)
    return QuantizedArm(key, folder / "q0.twin.onnx", content)


def write(sources: ArtifactSources, order: Order, root: Path) -> Artifact:
    """Write q1 in ``order`` below ``root``; only a manifest where PyTorch quantizes while it loads."""
    scheme, key = sources.scheme, sources.file_key(order)
    content = functools.cache(lambda: sources.content(order))
    about = f"{sources.arms.base.source}, {scheme.name} {order}"
    stored = sources.store.obtain("artifact", key, about, lambda folder: _make(sources, order, content(), folder))
    folder = root / scheme.name / order
    shutil.copytree(stored, folder, ignore=shutil.ignore_patterns(cache.ENTRY))
    description = Manifest.model_validate_json((folder / manifest.NAME).read_text("utf-8"))
    if orders.merge(order).binds:
        description = _with_adapter(sources, content(), folder, description)
    twin = folder / "q1.twin.onnx" if sources.has_twin else None
    deployed = folder / sources.deployed if scheme.exported else None
    arm = QuantizedArm(sources.key(order), twin, content, lambda: content().inputs())
    return Artifact(folder, arm, deployed, description)


def _with_adapter(sources: ArtifactSources, content: QuantizedWeights, folder: Path, engine: Manifest) -> Manifest:
    """Write a bound adapter beside the files that take it; their manifest with this adapter in it."""
    path = (folder / sources.deployed).with_name(bound.ADAPTER)
    bound.save(content.bound(), sources.scheme.compute, path)
    description = engine.model_copy(
        update={
            "adapters": _adapters(sources.arms),
            "changed_layers": len(sources.arms.layers),
            "files": {**engine.files, path.relative_to(folder).as_posix(): digest_of(path)},
        }
    )
    (folder / manifest.NAME).write_text(description.to_json(), "utf-8")
    return description


def _make(sources: ArtifactSources, order: Order, content: QuantizedWeights, folder: Path) -> None:
    exporter, scheme = sources.exporter, sources.scheme
    facts, written = sources.facts(order), list[Path]()
    if scheme.exported:
        written.append(exporter.deployed(content, scheme, folder / sources.deployed, facts))
    if sources.has_twin:
        written.append(exporter.twin(content, scheme, folder / "q1.twin.onnx", facts))
    description = describe(sources, order, content, folder, written)
    (folder / manifest.NAME).write_text(description.to_json(), "utf-8")


def describe(
    sources: ArtifactSources, order: Order, content: QuantizedWeights, folder: Path, written: Sequence[Path]
) -> Manifest:
    """The manifest of the files ``written`` below ``folder``."""
    arms, scheme, recipe = sources.arms, sources.scheme, sources.recipe
    return Manifest(
        qcheck=__version__,
        scheme=scheme.name,
        order=order,
        recipe=recipe.name,
        compute=scheme.compute,
        opset=scheme.opset,
        runs=list(scheme.runs),
        twin=None if not sources.has_twin else "decoded" if scheme.decoded else "same codes",
        scheme_digest=digest_of_value(scheme),
        recipe_digest=digest_of_value(recipe),
        base=Source(digest=arms.base.digest),
        adapters=_adapters(arms),
        changed_layers=len(arms.layers),
        layers=layers(content, sources.exporter.sites(scheme.compute) if scheme.exported else {}),
        files={path.relative_to(folder).as_posix(): digest_of(*model_files(path)) for path in written},
    )


def _adapters(arms: Arms) -> list[Source]:
    return [*_sources(arms.adapters, "adapted"), *_sources(arms.common, "both")]


def _sources(adapters: Sequence[Adapter], arms: Literal["adapted", "both"]) -> list[Source]:
    return [Source(digest=adapter.digest, weight=adapter.weight, arms=arms) for adapter in adapters]


def layers(content: QuantizedWeights, sites: Mapping[str, Site]) -> list[Layer]:
    """The quantized layers of a file made from ``content``; they name no nodes where there is no file."""
    records = []
    for name, numbers in content.plan.items():
        site = sites.get(name)  # None where PyTorch quantizes while it loads
        records.append(
            Layer(
                name=name,
                node=str(site.node.name) if site else "",
                dequantizer=qdq.dequantizer(name, site, numbers.weight) if site else None,
                weight=numbers.weight.number.name,
                activation=numbers.input.number.name if numbers.input is not None else None,
                parameters=site.elements if site else content.state[f"{name}.weight"].numel(),
            )
        )
    return records
