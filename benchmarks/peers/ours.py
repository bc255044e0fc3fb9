"""qcheck, ModelOpt and the exact cost of each layer, in the environment of qcheck.

``python -m benchmarks.peers.ours TOOL FOLDER``; ``python -m benchmarks.peers`` calls it.
"""

import copy
import functools
import importlib
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import numpy as np
import torch

from benchmarks.peers import metered
from benchmarks.peers.metered import Finding, Rows, Timed, Work
from qcheck.calibration import histogram
from qcheck.calibration.histogram import Histogram
from qcheck.core.cache import Cache
from qcheck.demo import library
from qcheck.diagnose import layer_errors, sensitivity
from qcheck.diagnose.layer_errors import Errors, LayerError
from qcheck.diagnose.sensitivity import EvaluationPoint
from qcheck.model import arms, load, lora
from qcheck.model.arms import Arms
from qcheck.model.inputs import observed
from qcheck.quantize import plan
from qcheck.quantize.artifact import Exporter
from qcheck.quantize.contents import QuantizedWeights
from qcheck.runtime.torch_runner import TorchRunner
from qcheck.sampling.setup import Setup
from qcheck.spec import recipe, scheme
from qcheck.spec.use import Use

warnings.simplefilter("ignore")
STEPS = 20
_RECIPE = "emoji"


def model() -> Arms:
    """The demo's base with the adapter "flat"."""
    used = Use(source=str(library.ADAPTERS / "flat.safetensors"), weight=1.0)
    return arms.apply(load.load(str(library.PIPELINE)), [lora.read(used)])


def exporter(both: Arms, work: Work) -> Exporter:
    """The exporter of the model; its graph is kept among the work."""
    return Exporter(both, Cache(work.folder / "cache"), work.calibration[0])


def runner(both: Arms, denoiser: Any = None) -> TorchRunner:
    """The denoiser in torch, or another that computes in its place."""
    return TorchRunner(both.base.family.entry(denoiser or both.base.denoiser))


def content(both: Arms, rows: Rows, name: str, everything: bool) -> QuantizedWeights:
    """What a scheme quantizes with ranges of ``rows``; ``everything`` takes in the layers that the recipe keeps."""
    unet, seen, run, chosen = both.base.denoiser, Histogram(), runner(both), scheme.find(name)
    with observed(unet, dict(plan.linear_layers(unet)), seen):
        for row in rows:
            run(row)
    used = recipe.find(_RECIPE)
    used = used.model_copy(update={"keep": ()}) if everything else used
    state, layers = both.state("adapted"), plan.chosen_layers(unet, chosen, used)
    ranges = histogram.clips(seen.seen(), plan.input_formats(unet, chosen), used)
    return QuantizedWeights(state, plan.make(layers, state, chosen, ranges), {})


def quantize(both: Arms, work: Work, name: str, everything: bool) -> Timed:
    """The artifact of qcheck, as ONNX Runtime runs it."""
    writer = exporter(both, work)
    writer.graph("float32")

    def timed() -> Finding:
        found = content(both, work.calibration, name, everything)
        path = writer.twin(found, scheme.find(name), work.folder / f"{name}-{everything}.onnx", {})
        return Finding(metered.onnx_run(path), facts={"layers": len(found.plan)})

    return timed


def modelopt(both: Arms, work: Work, preset: str) -> Timed:
    """ModelOpt's preset, fake-quantized in torch."""
    import modelopt.torch.quantization as mtq

    def forward(denoiser: Any) -> None:
        run = runner(both, denoiser)
        for row in work.calibration:
            run(row)

    def timed() -> Finding:
        with torch.no_grad():
            found = mtq.quantize(copy.deepcopy(both.base.denoiser), copy.deepcopy(getattr(mtq, preset)), forward)
        return Finding(runner(both, found))

    return timed


def _errors(both: Arms, work: Work) -> dict[str, LayerError]:
    """The rounding errors of every layer in INT8."""
    return layer_errors.errors(both, content(both, work.calibration, "int8", everything=True))


def _setup(both: Arms) -> Setup:
    """One output a state, without guidance; all states count alike."""

    def absent(*_: object) -> NoReturn:
        raise NotImplementedError("states are given, not sampled")

    family, steps = both.base.family, tuple(range(STEPS))
    shape = family.shape(128, 128)
    return Setup(family, lambda: family.solver(STEPS, shape), 1.0, steps, 1, absent)


def score(both: Arms, work: Work, draws: int) -> Timed:
    """The sensitivity of qcheck: a forward pass at each sample, and a backward pass for each draw."""
    errors, setup = _errors(both, work), _setup(both)
    points = [EvaluationPoint(row, 1, 0, f"peers {place}") for place, row in enumerate(work.points)]

    def timed() -> Finding:
        scores = sensitivity.score(both, setup, {"int8": errors}, points, draws)["int8"]
        costs = (scores.parts.sum(2) ** 2).mean(0)
        return Finding(scores={"cost": _named(errors, costs)}, facts={"layers": len(errors)})

    return timed


def exact(both: Arms, work: Work) -> Timed:
    """The squared change of the output when one layer alone is quantized, and when all are."""
    errors, run = _errors(both, work), runner(both)

    def output(subset: Errors) -> np.ndarray:
        with sensitivity.disturbed(both.base.denoiser, subset):
            return np.stack([run(row) for row in work.points]).astype(np.float64)

    def timed() -> Finding:
        undisturbed = output({})
        subsets: Iterable[Errors] = [*({layer: error} for layer, error in errors.items()), errors]
        costs = [float(np.square(output(subset) - undisturbed).sum()) for subset in subsets]
        facts = {"calls": len(work.points) * (len(errors) + 2), "sum to whole": sum(costs[:-1]) / costs[-1]}
        return Finding(scores={"cost": _named(errors, costs[:-1])}, facts=facts)

    return timed


def auto_quantize(both: Arms, work: Work) -> Timed:
    """ModelOpt's ``auto_quantize`` by gradients, its calibration on the same samples included.

    It fails on diffusers' fused attention, so attention is computed step by step; with the distance to the model's own
    output as the loss all gradients are zero, so the loss is the output's product with random numbers.
    """
    import modelopt.torch.quantization as mtq
    from diffusers.models.attention_processor import AttnProcessor

    unet: Any = copy.deepcopy(both.base.denoiser)
    unet.set_attn_processor(AttnProcessor())
    draws = torch.Generator().manual_seed(0)

    def forward(denoiser: Any, row: Mapping[str, np.ndarray]) -> torch.Tensor:
        found: torch.Tensor = both.base.family.entry(denoiser)(**{k: torch.from_numpy(v) for k, v in row.items()})
        return found

    def loss(output: torch.Tensor, _: object) -> torch.Tensor:
        return (output * torch.randn(output.shape, generator=draws)).sum()

    def timed() -> Finding:
        _, state = mtq.auto_quantize(
            unet,
            constraints={"effective_bits": 12.0},
            quantization_formats=[copy.deepcopy(mtq.INT8_DEFAULT_CFG)],
            data_loader=work.points,
            forward_step=forward,
            loss_func=loss,
            num_calib_steps=len(work.points),
            num_score_steps=len(work.points),
        )
        stats = state["candidate_stats"]
        scores = {name.removesuffix(".quant_recipe"): float(max(one["scores"])) for name, one in stats.items()}
        return Finding(scores={"score": {name: scores[name] for name in work.layers if name in scores}})

    return timed


def _named(errors: Errors, costs: Iterable[float]) -> dict[str, float]:
    return {layer: float(cost) for layer, cost in zip(errors, costs, strict=True)}


OurTool = Callable[[Arms, Work], Timed]
QUANTIZERS: dict[str, OurTool] = {
    "qcheck-int8": functools.partial(quantize, name="int8", everything=False),
    "qcheck-int8-every": functools.partial(quantize, name="int8", everything=True),
    "qcheck-fp8": functools.partial(quantize, name="fp8", everything=False),
    "qcheck-fp8-every": functools.partial(quantize, name="fp8", everything=True),
    "modelopt-int8": functools.partial(modelopt, preset="INT8_DEFAULT_CFG"),
    "modelopt-int8-sq": functools.partial(modelopt, preset="INT8_SMOOTHQUANT_CFG"),
    "modelopt-fp8": functools.partial(modelopt, preset="FP8_DEFAULT_CFG"),
}
DIAGNOSES: dict[str, OurTool] = {
    "exact": exact,
    "qcheck-1": functools.partial(score, draws=1),
    "qcheck-4": functools.partial(score, draws=4),
    "modelopt-auto": auto_quantize,
}


def main() -> None:
    """Measure the tool that the command line names."""
    torch.set_num_threads(1)
    name, work = metered.arguments(__doc__)
    if name.startswith("modelopt"):
        importlib.import_module("modelopt.torch.quantization")  # no memory of the tool
    rows = work.calibration if name in QUANTIZERS else work.points
    both = model()
    with both.held("adapted"):
        tool = functools.partial({**QUANTIZERS, **DIAGNOSES}[name], both)
        metered.keep(work, name, metered.measure(tool, work, rows, runner(both)))


if __name__ == "__main__":
    main()
