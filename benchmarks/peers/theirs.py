"""Peers that live in an environment of their own: ONNX Runtime's quantizer, AIMET, NNCF and Polygraphy.

``python -m benchmarks.peers.theirs TOOL FOLDER``; ``python -m benchmarks.peers`` calls it.
"""

import contextlib
import functools
import importlib
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime import quantization as ort

from benchmarks.peers import metered
from benchmarks.peers.metered import Finding, Row, Rows, Run, Timed, Tool, Work

warnings.simplefilter("ignore")
_DEBUGGED = "static.onnx"  # the file whose layers are debugged: that of "quantize_static"
_WEIGHTED = ["Conv", "Gemm", "MatMul"]
_SYMMETRIC: dict[str, Any] = {
    "op_types_to_quantize": _WEIGHTED,
    "per_channel": True,
    "extra_options": {"ActivationSymmetric": True, "WeightSymmetric": True},
}
_FP8 = ort.QuantType.QFLOAT8E4M3FN


class Reader:
    """Samples as ONNX Runtime asks for them."""

    def __init__(self, rows: Rows) -> None:
        self._rows: Iterator[Row] = iter(rows)

    def __iter__(self) -> Iterator[Row]:
        return self._rows

    def get_next(self) -> Row | None:
        """The next sample."""
        return next(self._rows, None)


def static(work: Work, file: str, **options: Any) -> Timed:
    """``quantize_static`` of the operators that compute with weights."""

    def timed() -> Finding:
        path = work.folder / file
        ort.quantize_static(work.model, path, Reader(work.calibration), **options)
        model = onnx.load(path)
        del model.graph.value_info[:]  # symbolic shapes that it does not update
        onnx.save(model, path)
        return Finding(metered.onnx_run(path))

    return timed


def aimet_sim(work: Work, **options: Any) -> Timed:
    """AIMET's QuantizationSimModel; its own simulation is judged."""
    from aimet_onnx.quantsim import QuantizationSimModel

    def timed() -> Finding:
        sim = QuantizationSimModel(onnx.load(work.model), dummy_input=work.calibration[0], **options)
        sim.compute_encodings(work.calibration)
        return Finding(lambda row: np.asarray(sim.session.run(None, row)[0]))  # its operators point into ``sim``

    return timed


def nncf_quantize(work: Work, **options: Any) -> Timed:
    """NNCF's post-training quantization."""
    import nncf

    def timed() -> Finding:
        model = onnx.load(work.model)
        dataset = nncf.Dataset(work.calibration)
        found = nncf.quantize(model, dataset, subset_size=len(work.calibration), **options)
        return Finding(metered.onnx_run(found.SerializeToString()))

    return timed


def aimet_analyzer(work: Work, enabling: bool) -> Timed:
    """AIMET's QuantAnalyzer: the error with one layer's quantizers on alone, or with them alone off."""
    from aimet_onnx.common.defs import QuantScheme
    from aimet_onnx.common.utils import CallbackFunc
    from aimet_onnx.quant_analyzer import QuantAnalyzer

    wanted = [metered.onnx_run(work.model)(row) for row in work.points]
    calls = Counted()

    def calibrate(session: Any, _: Any) -> None:
        for row in work.calibration:
            session.run(None, row)

    def judge(session: Any) -> float:
        return -_error(calls.of(_session_run(session)), work.points, wanted)

    analyzer = QuantAnalyzer(onnx.load(work.model), work.calibration[0], CallbackFunc(calibrate, None), judge)
    sim = analyzer.create_quantsim_and_encodings(QuantScheme.post_training_tf_enhanced, 8, 8, None)
    analyze = (
        analyzer.perform_per_layer_analysis_by_enabling_quantizers
        if enabling
        else analyzer.perform_per_layer_analysis_by_disabling_quantizers
    )

    def timed() -> Finding:
        scores = _by_layer(work, _named_by_reader(work, sim, analyze(sim, str(work.folder / "aimet"))))
        sign = -1 if enabling else 1  # an error left when a layer alone is off is small where the layer did harm
        named = {layer: sign * score for layer, score in scores.items()}
        return Finding(scores={"squared error": named}, facts={"calls": calls.count})

    return timed


def _named_by_reader(work: Work, sim: Any, by_node: Mapping[str, float]) -> dict[str, float]:
    """Scores by the nodes of our file: AIMET makes one new node of a product and its bias, known by its weight."""
    readers = {name.removesuffix("_qdq"): node.name for node in sim.model.model.graph.node for name in node.input}
    fused = {
        one.node: by_node[readers[one.weight]] for one in work.layers.values() if readers.get(one.weight) in by_node
    }
    return fused | dict(by_node)


def nncf_ranking(work: Work) -> Timed:
    """The ranking of NNCF's accuracy control: the error with a group of quantizers alone removed."""
    import nncf
    from nncf.common.factory import build_graph
    from nncf.onnx.quantization.backend_parameters import BackendParameters
    from nncf.quantization.algorithms.accuracy_control.algorithm import QuantizationAccuracyRestorer
    from nncf.quantization.algorithms.accuracy_control.evaluator import Evaluator
    from nncf.quantization.algorithms.accuracy_control.onnx_backend import ONNXAccuracyControlAlgoBackend
    from nncf.quantization.algorithms.accuracy_control.ranker import Ranker

    model, backend, calls = onnx.load(work.model), ONNXAccuracyControlAlgoBackend(), Counted()
    wanted = {id(row): metered.onnx_run(work.model)(row) for row in work.points}
    parameters = nncf.AdvancedQuantizationParameters(backend_params={BackendParameters.COMPRESS_WEIGHTS: False})
    quantized = nncf.quantize(
        model,
        nncf.Dataset(work.calibration),
        subset_size=len(work.calibration),
        model_type=nncf.ModelType.TRANSFORMER,
        advanced_parameters=parameters,
    )

    def validate(candidate: Any, rows: Any) -> tuple[float, list[float]]:
        run = calls.of(metered.onnx_run(candidate.SerializeToString()))
        calls.built += 1
        errors = [-_error(run, [row], [wanted[id(row)]]) for row in rows]
        return statistics.fmean(errors), errors

    def timed() -> Finding:
        graphs, dataset = [build_graph(one) for one in (model, quantized)], nncf.Dataset(work.points)
        QuantizationAccuracyRestorer._collect_original_biases_and_weights(*graphs, model, backend)
        evaluator = Evaluator(validate)
        first, then = (evaluator.collect_metric_results(one, dataset) for one in (model, quantized))
        ranker = Ranker(len(work.points), dataset, backend, evaluator)
        groups = ranker.find_groups_of_quantizers_to_rank(graphs[1])
        ranked = ranker.rank_groups_of_quantizers(
            groups, quantized, graphs[1], first.values_for_each_item, then.values_for_each_item
        )
        places = {node.node_name: place for place, group in enumerate(ranked) for node in group.operations}
        facts = {"calls": calls.count, "sessions": calls.built, "groups": len(ranked)}
        return Finding(scores={"place in the ranking": _by_layer(work, places)}, facts=facts)

    return timed


def ort_debug(work: Work) -> Timed:
    """ONNX Runtime's ``qdq_loss_debug``: every tensor of both models kept, then compared."""
    from onnxruntime.quantization import qdq_loss_debug as debug

    quantized = _debugged(work)

    def activations(model: Path) -> dict[str, Any]:
        every = work.folder / f"every-{model.name}"
        debug.modify_model_output_intermediate_tensors(model, every)
        found: dict[str, Any] = debug.collect_activations(str(every), Reader(work.points))
        return found

    def timed() -> Finding:
        matched = debug.create_activation_matching(activations(quantized), activations(work.model))
        tensors = debug.compute_activation_error(matched)
        weights = debug.compute_weight_error(debug.create_weight_matching(str(work.model), str(quantized)))
        layers = work.layers.items()
        scores = {
            "weight": {name: -weights[layer.weight] for name, layer in layers if layer.weight in weights},
            "input": {name: -tensors[layer.input]["qdq_err"] for name, layer in layers if layer.input in tensors},
        }
        return Finding(scores=scores, facts={"tensors": len(tensors)})

    return timed


def polygraphy(work: Work) -> Timed:
    """Polygraphy's comparison of every tensor of the float32 and the INT8 file, as ``run --onnx-outputs mark all``."""
    from polygraphy.backend.onnx import BytesFromOnnx, ModifyOutputs, OnnxFromPath
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.comparator import Comparator
    from polygraphy.constants import MARK_ALL

    files = [str(work.model), str(_debugged(work))]

    def timed() -> Finding:
        marked = [BytesFromOnnx(ModifyOutputs(OnnxFromPath(file), outputs=MARK_ALL)) for file in files]
        runners = [OnnxrtRunner(SessionFromOnnx(one)) for one in marked]
        with (work.folder / "polygraphy.log").open("w") as log, contextlib.redirect_stdout(log):
            results = Comparator.run(runners, data_loader=work.points)
            ((iterations,),) = (one.values() for one in Comparator.compare_accuracy(results))
        means: dict[str, list[float]] = {}
        for iteration in iterations:
            for name, one in iteration.items():
                means.setdefault(name, []).append(one.mean_absdiff)
        named = {name: statistics.fmean(values) for name, values in means.items()}
        found = {layer: named[one.output] for layer, one in work.layers.items() if one.output in named}
        return Finding(scores={"output": found}, facts={"tensors": len(named)})

    return timed


def _debugged(work: Work) -> Path:
    path = work.folder / _DEBUGGED
    if not path.exists():
        raise FileNotFoundError("there is no file of quantize_static to debug")
    return path


class Counted:
    """How often a model is run, and how often one is built."""

    def __init__(self) -> None:
        self.count = self.built = 0

    def of(self, run: Run) -> Run:
        """``run``, counted."""

        def counted(row: Row) -> np.ndarray:
            self.count += 1
            return run(row)

        return counted


def _session_run(session: Any) -> Run:
    return lambda row: np.asarray(session.run(None, row)[0])


def _error(run: Run, rows: Rows, wanted: list[np.ndarray]) -> float:
    """Squared error of the output, summed over the samples."""
    return sum(float(np.square(run(row) - want).sum()) for row, want in zip(rows, wanted, strict=True))


def _by_layer(work: Work, by_node: Mapping[str, float]) -> dict[str, float]:
    return {name: float(by_node[layer.node]) for name, layer in work.layers.items() if layer.node in by_node}


def _nncf_fp8(work: Work) -> Timed:
    import nncf

    return nncf_quantize(work, mode=nncf.QuantizationMode.FP8_E4M3, model_type=nncf.ModelType.TRANSFORMER)


def _nncf_transformer(work: Work) -> Timed:
    import nncf

    return nncf_quantize(work, model_type=nncf.ModelType.TRANSFORMER)


QUANTIZERS: dict[str, Tool] = {
    "static": functools.partial(static, file=_DEBUGGED, **_SYMMETRIC),
    "static-percentile": functools.partial(
        static, file="percentile.onnx", calibrate_method=ort.CalibrationMethod.Percentile, **_SYMMETRIC
    ),
    "static-entropy": functools.partial(
        static, file="entropy.onnx", calibrate_method=ort.CalibrationMethod.Entropy, **_SYMMETRIC
    ),
    "static-fp8": functools.partial(
        static,
        file="fp8.onnx",
        op_types_to_quantize=_WEIGHTED,
        activation_type=_FP8,
        weight_type=_FP8,
        calibrate_method=ort.CalibrationMethod.Distribution,
    ),
    "aimet": aimet_sim,
    "aimet-fp8": functools.partial(aimet_sim, param_type="float8e4m3fn", activation_type="float8e4m3fn"),
    "nncf": nncf_quantize,
    "nncf-transformer": _nncf_transformer,
    "nncf-fp8": _nncf_fp8,
}
DIAGNOSES: dict[str, Tool] = {
    "aimet-enabling": functools.partial(aimet_analyzer, enabling=True),
    "aimet-disabling": functools.partial(aimet_analyzer, enabling=False),
    "nncf-ranking": nncf_ranking,
    "ort-debug": ort_debug,
    "polygraphy": polygraphy,
}


LIBRARIES = {
    "aimet": "aimet_onnx.quant_analyzer",
    "nncf": "nncf.onnx.quantization",
    "polygraphy": "polygraphy.comparator",
}


def main() -> None:
    """Measure the tool that the command line names."""
    name, work = metered.arguments(__doc__)
    importlib.import_module(LIBRARIES.get(name.partition("-")[0], "onnxruntime.quantization"))  # no memory of the tool
    tool: Callable[[Work], Timed] = {**QUANTIZERS, **DIAGNOSES}[name]
    rows = work.calibration if name in QUANTIZERS else work.points
    metered.keep(work, name, metered.measure(tool, work, rows))


if __name__ == "__main__":
    main()
