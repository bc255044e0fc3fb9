"""The files of a scheme: what goes to the device, the float32 twins that give the numbers here, and manifests.

artifacts/full-precision/f1.<compute>.onnx       unquantized f1, for the controls
artifacts/<scheme>/q0.twin.onnx                  the base, float32 outside its codes and scales
artifacts/<scheme>/<order>/unet/model.onnx       q1 in the compute type: the file to deploy
artifacts/<scheme>/<order>/q1.twin.onnx          the same codes and scales, float32 elsewhere
artifacts/<scheme>/<order>/manifest.json
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch

from qcheck import __version__, files
from qcheck.model.arms import Arms, Side
from qcheck.model.export import export
from qcheck.quantize import onnx, plan
from qcheck.quantize.fake import Factors
from qcheck.quantize.plan import LayerPlan
from qcheck.recipe import Recipe
from qcheck.scheme import Order, Scheme

TWIN = "float32"
Ranges = Mapping[Side, Mapping[str, float]]


@dataclass(frozen=True)
class Content:
    """What a quantized arm is made of: full-precision weights, the plan for them, and an unmerged adapter's factors."""

    state: Mapping[str, torch.Tensor]
    plan: Mapping[str, LayerPlan]
    branches: Mapping[str, Factors]


@dataclass(frozen=True)
class Artifact:
    """The files of q1 in one order."""

    folder: Path
    deployed: Path
    twin: Path
    layers: tuple[str, ...]


class Exporter:
    """Fills and saves the denoiser's graph; torch exports it once for each compute type."""

    def __init__(self, arms: Arms, sample: torch.Size, hidden: torch.Size) -> None:
        self._arms, self._sample, self._hidden = arms, sample, hidden
        self._graphs: dict[str, ir.Model] = {}

    def graph(self, compute: str) -> ir.Model:
        """The graph; its layer weights are those of whichever arm was in place and are always replaced."""
        if compute not in self._graphs:
            self._graphs[compute] = export(self._arms.base.denoiser, self._sample, self._hidden, compute)
        return self._graphs[compute]

    def full(self, side: Side, compute: str, path: Path) -> Path:
        """Save an unquantized arm."""
        return _save(onnx.fill(self.graph(compute), self._arms.state(side)), path, {})

    def quantized(self, content: Content, compute: str, opset: int, path: Path, facts: Mapping[str, str]) -> Path:
        """Save a quantized arm."""
        model = onnx.quantized(self.graph(compute), content.state, content.plan, content.branches, opset)
        return _save(model, path, facts)


def _save(model: ir.Model, path: Path, facts: Mapping[str, str]) -> Path:
    model.metadata_props.update({f"qcheck.{key}": value for key, value in facts.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def base_content(arms: Arms, scheme: Scheme, recipe: Recipe, ranges: Ranges) -> Content:
    """q0: the base quantized with its own ranges."""
    state = arms.state("base")
    layers = plan.chosen_layers(arms.base.denoiser, scheme, recipe)
    return Content(state, plan.make(layers, state, scheme, ranges["base"]), {})


def adapted_content(arms: Arms, scheme: Scheme, recipe: Recipe, order: Order, ranges: Ranges) -> Content:
    """q1 in one order, with D the adapter's change of a weight W and Q the scheme.

    merge-quantize: Q(W + D). quantize-merge: Q(Q(W) + D), as loaders do that merge into a quantized base.
    unmerged: Q(W) with D as a low-rank branch in the compute type; layers the recipe keeps are merged in float.
    """
    base, adapted = arms.state("base"), arms.state("adapted")
    layers = plan.chosen_layers(arms.base.denoiser, scheme, recipe)
    touched = [layer for layer in arms.denoiser_layers() if layer in layers]
    before = plan.make(layers, base, scheme, ranges["base"])
    state, branches = dict(adapted), {}
    for layer in touched:
        name = f"{layer}.weight"
        if order == "quantize-merge":
            state[name] = before[layer].fake_weight(base[name]) + (adapted[name] - base[name])
        elif order == "unmerged":
            state[name], branches[layer] = base[name], arms.factors(layer)
    return Content(state, plan.make(layers, state, scheme, ranges["adapted"]), branches)


def write(
    arms: Arms, exporter: Exporter, scheme: Scheme, recipe: Recipe, order: Order, ranges: Ranges, root: Path
) -> Artifact:
    """Write q1 of ``scheme`` in ``order`` below ``root``."""
    content = adapted_content(arms, scheme, recipe, order, ranges)
    folder = root / scheme.name / order
    facts = {"scheme": scheme.name, "order": order, "recipe": recipe.name}
    deployed = exporter.quantized(content, scheme.compute, scheme.opset, folder / "unet" / "model.onnx", facts)
    twin = exporter.quantized(content, TWIN, scheme.opset, folder / "q1.twin.onnx", facts)
    made = Artifact(folder, deployed, twin, tuple(content.plan))
    manifest = {
        "schema": "qcheck-manifest/1",
        "qcheck": __version__,
        **facts,
        "compute": scheme.compute,
        "opset": scheme.opset,
        "scheme_digest": files.digest_value(scheme),
        "recipe_digest": files.digest_value(recipe),
        "base": {"source": arms.base.source, "digest": arms.base.digest},
        "adapter": {
            "source": arms.adapter.path.name,
            "digest": arms.adapter.digest,
            "weight": arms.adapter.weight,
            "layers": len(arms.layers),
        },
        "quantized_layers": len(made.layers),
        "files": {
            path.relative_to(folder).as_posix(): files.digest(*files.model_files(path)) for path in (deployed, twin)
        },
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
    return made
