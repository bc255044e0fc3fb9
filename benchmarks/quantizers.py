"""SQNR of our INT8 and FP8 beside ONNX Runtime's ``quantize_static`` and ModelOpt's defaults, on the same samples.

``python benchmarks/quantizers.py`` takes the demo's denoiser with an adapter, calibrates each on the same states of the
reference and asks all of them at states of other prompts. Numbers are decibels over the full-precision output; time is
in plain forwards of the same run. ONNX Runtime's FP8 needs minutes: ``--ort-fp8`` adds it. The decibels are kept in
quantizers.json, from which ``python -m benchmarks.readme`` writes the table in docs/schemes.md.
"""

import argparse
import copy
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime import quantization as ort
from onnxruntime.capi.onnxruntime_pybind11_state import Fail as OrtFail

from qcheck.calibration import histogram
from qcheck.calibration.histogram import Histogram
from qcheck.core.cache import Cache
from qcheck.demo import library
from qcheck.model import arms, load, lora
from qcheck.model.arms import Arms
from qcheck.model.inputs import observed
from qcheck.quantize import plan
from qcheck.quantize.artifact import Exporter
from qcheck.quantize.contents import QuantizedWeights
from qcheck.runtime.ort_runner import OnnxRunner, session
from qcheck.runtime.torch_runner import TorchRunner
from qcheck.spec import recipe, scheme
from qcheck.spec.use import Use

warnings.simplefilter("ignore")
RECORD = Path(__file__).with_suffix(".json")
_STEPS = (0, 3, 6, 9, 12, 15, 18, 19)
Rows = list[dict[str, np.ndarray]]
Run = Callable[[dict[str, np.ndarray]], np.ndarray]


def states(pipe: Any, prompts: list[str], seed: int) -> Rows:
    """Inputs of all prompts and both branches, along 20 free steps at guidance 3."""
    with torch.no_grad():
        pairs = [pipe.encode_prompt(prompt, "cpu", 1, True) for prompt in prompts]
    hidden = torch.cat([torch.cat([negative for _, negative in pairs]), torch.cat([positive for positive, _ in pairs])])
    pipe.scheduler.set_timesteps(20)
    x = torch.randn(len(prompts), 4, 16, 16, generator=torch.Generator().manual_seed(seed))
    found: Rows = []
    for step, t in enumerate(pipe.scheduler.timesteps):
        batch = torch.cat([x, x])
        with torch.no_grad():
            low, high = pipe.unet(batch, t, hidden).sample.chunk(2)
        if step in _STEPS:
            fed = {"sample": batch, "timestep": torch.tensor([float(t)]), "encoder_hidden_states": hidden}
            found.append({name: value.numpy() for name, value in fed.items()})
        x = pipe.scheduler.step(low + 3 * (high - low), t, x).prev_sample
    return found


class Reader(ort.CalibrationDataReader):
    """The calibration states as ONNX Runtime asks for them."""

    def __init__(self, rows: Rows) -> None:
        self._rows: Iterator[dict[str, np.ndarray]] = iter(rows)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next state."""
        return next(self._rows, None)


def sqnr(run: Run, full: list[np.ndarray], rows: Rows) -> float:
    """Decibels of the reference's energy over the error's, all states together."""
    error = sum(float(np.square(run(row) - want).sum()) for row, want in zip(rows, full, strict=True))
    return 10 * float(np.log10(sum(float(np.square(want).sum()) for want in full) / error))


def main() -> None:
    """Quantize, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ort-fp8", action="store_true", help="ONNX Runtime's FP8 too: it needs minutes")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    used = Use(source=str(library.ADAPTERS / "flat.safetensors"), weight=1.0)
    both = arms.apply(load.load(str(library.PIPELINE)), [lora.read(used)])
    with both.held("adapted"):
        compare(both, asked.threads, asked.ort_fp8)


def compare(both: Arms, threads: int, slow: bool) -> None:
    """All of them on the arm that is held; ``slow`` adds ONNX Runtime's FP8."""
    unet, pipe = both.base.denoiser, both.base.pipe
    prompts = list(recipe.find("emoji").prompts.prompts)
    calibration, judged = states(pipe, prompts[:8], 1000), states(pipe, prompts[8:16], 2000)
    entry = both.base.family.entry
    reference = TorchRunner(entry(unet))
    reference(judged[0])
    start = time.perf_counter()
    full = [reference(row) for row in judged]
    forward = (time.perf_counter() - start) / len(judged)

    measured: dict[str, float] = {}

    def show(name: str, seconds: float, run: Run) -> None:
        cost = seconds / forward / len(calibration)
        measured[name] = round(sqnr(run, full, judged), 1)
        print(f"{name:48s} {measured[name]:6.1f} dB   calibration {cost:6.2f} forwards a sample", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        exporter = Exporter(both, Cache(work / "cache"), judged[0])
        plain = exporter.full("adapted", "float32")
        ours(both, unet, exporter, calibration, work, threads, show)
        modelopt(unet, entry, calibration, show)
        static(plain, calibration, work, threads, show, slow)
    left = {} if slow else json.loads(RECORD.read_text("utf-8"))  # of FP8, which was not asked for
    RECORD.write_text(
        json.dumps(measured | {k: v for k, v in left.items() if k not in measured}, indent=1) + "\n", "utf-8"
    )


def ours(
    both: Arms, unet: Any, exporter: Exporter, rows: Rows, work: Path, threads: int, show: Callable[..., None]
) -> None:
    """Our artifacts in ONNX Runtime, for every method that ranges are read by."""
    seen, run = Histogram(), TorchRunner(both.base.family.entry(unet))
    start = time.perf_counter()
    with observed(unet, dict(plan.linear_layers(unet)), seen):
        for row in rows:
            run(row)
    seconds = time.perf_counter() - start
    state, kept, found = both.state("adapted"), recipe.find("emoji"), seen.seen()
    for name in ("int8", "fp8"):
        chosen = scheme.find(name)
        methods = [method for method in recipe.METHODS if not (method == "entropy" and name == "fp8")]
        cases = [(method, kept.keep) for method in methods]
        for method, left_out in [*cases, ("max", ())]:
            used = kept.model_copy(update={"method": method, "keep": left_out})
            layers = plan.chosen_layers(unet, chosen, used)
            cut = histogram.clips(found, plan.input_formats(unet, chosen), used)
            content = QuantizedWeights(state, plan.make(layers, state, chosen, cut), {})
            path = exporter.twin(content, chosen, work / f"{name}-{method}-{len(left_out)}.onnx", {})
            show(f"qcheck {name}, {method}{'' if left_out else ', every layer'}", seconds, OnnxRunner(path, threads))


def modelopt(unet: Any, entry: Callable[..., Any], rows: Rows, show: Callable[..., None]) -> None:
    """ModelOpt's presets, fake-quantized in torch."""
    import modelopt.torch.quantization as mtq

    for preset in ("INT8_DEFAULT_CFG", "INT8_SMOOTHQUANT_CFG", "FP8_DEFAULT_CFG"):

        def run(model: Any) -> None:
            runner = TorchRunner(entry(model))
            for row in rows:
                runner(row)

        start = time.perf_counter()
        with torch.no_grad():
            found = mtq.quantize(copy.deepcopy(unet), copy.deepcopy(getattr(mtq, preset)), run)
        show(f"ModelOpt {preset}", time.perf_counter() - start, TorchRunner(entry(found)))


def static(plain: Path, rows: Rows, work: Path, threads: int, show: Callable[..., None], slow: bool) -> None:
    """ONNX Runtime's static quantization: all operators as it does by default, and those that compute with weights."""
    computing = {"op_types_to_quantize": ["Conv", "Gemm", "MatMul"]}
    symmetric = computing | {
        "per_channel": True,
        "extra_options": {"ActivationSymmetric": True, "WeightSymmetric": True},
    }
    cases: dict[str, dict[str, Any]] = {
        "quantize_static, defaults": {},
        "quantize_static, Conv Gemm MatMul": computing,
        "quantize_static, the same symmetric per channel": symmetric,
        "quantize_static, the same by percentile": symmetric | {"calibrate_method": ort.CalibrationMethod.Percentile},
    }
    if slow:
        cases["quantize_static, FP8"] = computing | {
            "activation_type": ort.QuantType.QFLOAT8E4M3FN,
            "weight_type": ort.QuantType.QFLOAT8E4M3FN,
            "calibrate_method": ort.CalibrationMethod.Distribution,
        }
    model = onnx.load(plain)
    del model.graph.value_info[:]  # symbolic shapes that it does not update
    onnx.save(model, work / "plain.onnx")
    for number, (name, options) in enumerate(cases.items()):
        path = work / f"static{number}.onnx"
        start = time.perf_counter()
        ort.quantize_static(work / "plain.onnx", path, Reader(rows), **options)
        seconds = time.perf_counter() - start
        model = onnx.load(path)
        del model.graph.value_info[:]
        onnx.save(model, path)
        try:
            session(path, 1)
        except OrtFail as error:
            print(f"{name:48s} its file does not load: {str(error)[-90:]}", flush=True)
        else:
            show(name, seconds, OnnxRunner(path, threads))


if __name__ == "__main__":
    main()
