"""The files of one scheme: what goes to the device, the float32 twins that give the numbers here, and a manifest.

artifacts/full-precision/f1.<compute>.onnx      unquantized f1, for the controls
artifacts/<scheme>/unet/model.onnx              q1 in the compute type: the file to deploy
artifacts/<scheme>/twin/q0.onnx, q1.onnx        the same codes and scales, float32 elsewhere
artifacts/<scheme>/manifest.json
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
from qcheck.quantize.plan import LayerPlan
from qcheck.recipe import Recipe
from qcheck.scheme import Order, Scheme

TWIN = "float32"
Ranges = Mapping[Side, Mapping[str, float]]


@dataclass(frozen=True)
class Artifacts:
    """What was written for a scheme. ``full`` maps a compute type to the unquantized f1."""

    folder: Path
    deployed: Path
    twins: Mapping[Side, Path]
    full: Mapping[str, Path]
    layers: tuple[str, ...]


class Templates:
    """The denoiser's exported graphs, one for each compute type and opset, made when first asked for."""

    def __init__(self, arms: Arms, sample: torch.Size, hidden: torch.Size) -> None:
        self._arms, self._sample, self._hidden = arms, sample, hidden
        self._made: dict[tuple[str, int], ir.Model] = {}

    def get(self, compute: str, opset: int) -> ir.Model:
        """The graph; its layer weights are those of whichever arm was in place and are always replaced."""
        if (compute, opset) not in self._made:
            unet = self._arms.base.denoiser
            self._made[compute, opset] = export(unet, self._sample, self._hidden, compute, opset)
        return self._made[compute, opset]


def make_plan(arms: Arms, side: Side, scheme: Scheme, recipe: Recipe, ranges: Ranges) -> dict[str, LayerPlan]:
    """Scales of every quantized layer of one arm, merge-then-quantize."""
    unet = arms.use(side).unet
    return plan.make(plan.chosen_layers(unet, scheme, recipe), scheme, ranges[side])


def write(
    arms: Arms, templates: Templates, scheme: Scheme, recipe: Recipe, order: Order, ranges: Ranges, root: Path
) -> Artifacts:
    """Write every file of ``scheme`` below ``root``."""
    folder, full = root / scheme.name, root / "full-precision"
    plans: dict[Side, dict[str, LayerPlan]] = {
        "base": make_plan(arms, "base", scheme, recipe, ranges),
        "adapted": make_plan(arms, "adapted", scheme, recipe, ranges),
    }
    f1 = {compute: full / f"f1.{compute}.onnx" for compute in (TWIN, scheme.compute)}
    for compute, path in f1.items():
        if not path.exists():
            _save(onnx.fill(templates.get(compute, scheme.opset), arms.state("adapted")), path, {})
    facts = {"scheme": scheme.name, "order": order, "recipe": recipe.name}
    twins: dict[Side, Path] = {"base": folder / "twin" / "q0.onnx", "adapted": folder / "twin" / "q1.onnx"}
    deployed = folder / "unet" / "model.onnx"
    for side, twin in twins.items():
        _save(onnx.quantized(templates.get(TWIN, scheme.opset), arms.state(side), plans[side]), twin, facts)
    graph = onnx.quantized(templates.get(scheme.compute, scheme.opset), arms.state("adapted"), plans["adapted"])
    _save(graph, deployed, facts)
    made = Artifacts(folder, deployed, twins, f1, tuple(plans["adapted"]))
    (folder / "manifest.json").write_text(json.dumps(_manifest(arms, made, scheme, recipe, facts), indent=1) + "\n")
    return made


def _save(model: ir.Model, path: Path, facts: Mapping[str, str]) -> None:
    model.metadata_props.update({f"qcheck.{key}": value for key, value in facts.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


def _manifest(
    arms: Arms, made: Artifacts, scheme: Scheme, recipe: Recipe, facts: Mapping[str, str]
) -> dict[str, object]:
    paths = [made.deployed, *made.twins.values()]
    return {
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
        "files": {path.relative_to(made.folder).as_posix(): files.digest(path) for path in paths},
    }
