"""Which adapters a file holds is read from its weights: every order and layout, every answer, every exit code."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnxruntime import quantization
from safetensors.torch import load_file, save_file

import qcheck
from qcheck.core.errors import UserError
from qcheck.demo import library
from qcheck.diagnose import attribution
from qcheck.diagnose.attribution import Layer
from qcheck.model.arms import Arms
from qcheck.quantize import formats, plan, qdq
from qcheck.quantize.decoded import Decoder
from qcheck.result.attribution import Attribution, Trace
from qcheck.spec.scheme import Numbers
from tests import anonymous
from tests.anonymous import Tensors
from tests.conftest import Prepared, run

INT8 = Numbers(format="int8", granularity="channel")
INT4 = Numbers(format="int4", granularity="block", block=32)
NUMBERS = {
    "int8": INT8,
    "int8 of a tensor": Numbers(format="int8", granularity="tensor"),
    "int4": INT4,
    "fp8": Numbers(format="float8_e4m3", granularity="tensor"),
    "fp4": Numbers(format="float4_e2m1", granularity="block", block=16),
    "nf4": Numbers(format="nf4", granularity="run", block=64),
}
CAST = Numbers(format="float16", granularity="none")


@dataclass(frozen=True)
class Bench:
    """A small base, and adapters: two of the usual size, and ones that 4 bits erase, int8 hardly shows, or
    nothing does."""

    folder: Path
    weights: Tensors
    changes: Mapping[str, Tensors]

    @property
    def base(self) -> str:
        return str(self.folder / "base")

    def path(self, name: str) -> str:
        return str(self.folder / f"{name}.safetensors")

    def merged(self, weight: float = 1.0, *names: str) -> Tensors:
        """W + D."""
        added = {layer: sum(self.changes[name][layer] for name in names or ("right",)) for layer in self.weights}
        return {layer: w + weight * added[layer] for layer, w in self.weights.items()}

    def after(self, numbers: Numbers, name: str = "right") -> Tensors:
        """Q(W) + D."""
        return {
            layer: plan.grid(w, numbers, "float32").fake(w) + self.changes[name][layer]
            for layer, w in self.weights.items()
        }

    def ask(self, path: Path, *names: str, weight: float = 1.0) -> Attribution:
        return qcheck.attribute(path, self.base, [self.path(n) for n in names or ("right", "other")], weight=weight)

    def run(self, path: Path, *names: str, weight: float = 1.0) -> tuple[int, str]:
        """The exit code and the words of the command."""
        loras = [word for name in names for word in ("--lora", self.path(name))]
        done = run("inspect", str(path), "--base", self.base, *loras, "--weight", str(weight))
        return done.exit_code, " ".join(done.stdout.split())


def _of(found: Attribution, name: str) -> Trace:
    return next(one for one in found.adapters if Path(one.adapter).stem == name)


def _presences(found: Attribution) -> list[str]:
    return [one.presence for one in found.adapters]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("attribution")
    sizes = {"right": 0.004, "other": 0.004, "faint": 0.0004, "fainter": 1e-9, "slight": 1e-4}
    changes = {
        name: anonymous.adapter(folder / f"{name}.safetensors", seed, size)
        for seed, (name, size) in enumerate(sizes.items(), 2)
    }
    return Bench(folder, anonymous.base(folder / "base"), changes)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("order", ["merge-quantize", "quantize-merge", "unmerged"])
def test_the_adapter_its_weight_and_its_order_are_named(bench: Bench, name: str, order: str, tmp_path: Path) -> None:
    numbers, path = NUMBERS[name], tmp_path / "model.onnx"
    if order == "unmerged":
        anonymous.beside(path, bench.weights, bench.changes["right"], numbers)
    else:
        anonymous.written(path, bench.merged() if order == "merge-quantize" else bench.after(numbers), numbers)
    found = bench.ask(path)
    assert _presences(found) == ["in", "not in"], found
    assert (found.order, found.answer) == (order, "these adapters")
    assert _of(found, "right").weight == pytest.approx(1, abs=0.01)
    assert _of(found, "other").weight == pytest.approx(0, abs=0.01)
    assert (found.layers, found.unmatched) == (len(anonymous.SHAPES), 0)


@pytest.mark.parametrize("name", [*NUMBERS, "fp16"])
def test_the_base_alone_and_another_adapter_are_answers(bench: Bench, name: str, tmp_path: Path) -> None:
    numbers = NUMBERS.get(name, CAST)
    alone = bench.ask(anonymous.written(tmp_path / "base.onnx", bench.weights, numbers))
    assert (alone.answer, _presences(alone), alone.order) == ("the base alone", ["not in", "not in"], None)
    none = bench.ask(anonymous.written(tmp_path / "model.onnx", bench.merged(), numbers), "other")
    assert (none.answer, _presences(none)) == ("none of these", ["not in"])
    assert none.unexplained > 0.9


def test_a_cast_file_tells_adapter_and_weight_and_no_order(bench: Bench, tmp_path: Path) -> None:
    found = bench.ask(anonymous.written(tmp_path / "model.onnx", bench.merged(0.35), CAST), weight=0.35)
    assert (_presences(found), found.order) == (["in", "not in"], "merged")
    assert _of(found, "right").weight == pytest.approx(0.35, abs=1e-3)


LAYOUTS = {
    "fake quantized": (anonymous.fake_quantized, INT8),
    "uint8": (anonymous.uncentered, INT8),
    "MatMulNBits": (anonymous.nbits, INT4),
    "QLinearMatMul": (anonymous.integer, INT8),
    "Conv": (anonymous.pointwise, INT8),
    "smoothed": (anonymous.smoothed, INT8),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_of_weights_is_read(bench: Bench, name: str, tmp_path: Path) -> None:
    layout, numbers = LAYOUTS[name]
    path = anonymous.written(tmp_path / "model.onnx", bench.merged(), numbers, layout)
    found = bench.ask(path)
    assert (found.answer, _presences(found)) == ("these adapters", ["in", "not in"]), found
    assert _of(found, "right").weight == pytest.approx(1, abs=0.01)
    alone = anonymous.written(tmp_path / "base.onnx", bench.weights, numbers, layout)
    assert bench.ask(alone).answer == "the base alone"


def test_weights_outside_the_file_are_read(bench: Bench, tmp_path: Path) -> None:
    path = anonymous.written(tmp_path / "model.onnx", bench.merged(), INT4, external=True)
    assert _presences(bench.ask(path)) == ["in", "not in"]


class _Rows(quantization.CalibrationDataReader):
    def __init__(self, path: Path) -> None:
        shapes = {
            value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in onnx.load(path).graph.input
        }
        self._rows = iter([{name: np.ones(shape, np.float32) for name, shape in shapes.items()}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._rows, None)


@pytest.mark.parametrize("channels", [True, False])
def test_a_file_of_onnx_runtimes_quantizer_is_read(bench: Bench, channels: bool, tmp_path: Path) -> None:
    plain = anonymous.written(tmp_path / "plain.onnx", bench.merged(), Numbers(format="float32", granularity="none"))
    path = tmp_path / "model.onnx"
    quantization.quantize_static(plain, path, _Rows(plain), per_channel=channels)
    found = bench.ask(path)
    assert (_presences(found), found.order) == (["in", "not in"], "merge-quantize")


@pytest.mark.parametrize("second", ["faint", "slight"])
def test_two_at_once_are_both_named(bench: Bench, second: str, tmp_path: Path) -> None:
    path = anonymous.written(tmp_path / "model.onnx", bench.merged(1.0, "right", second), INT8)
    assert _presences(bench.ask(path, "right", "other", second)) == ["in", "not in", "in"]
    assert bench.run(path, "right", second)[0] == 0


@pytest.mark.parametrize(
    ("weight", "asked", "code"), [(1.0, 1.0, 0), (0.5, 0.5, 0), (0.5, 1.0, 1), (1.0, 0.5, 1), (-1.0, -1.0, 0)]
)
def test_the_exit_code_holds_the_weight_to_the_asked_one(
    bench: Bench, weight: float, asked: float, code: int, tmp_path: Path
) -> None:
    path = anonymous.written(tmp_path / "model.onnx", bench.merged(weight), INT8)
    exit_code, words = bench.run(path, "right", weight=asked)
    assert exit_code == code, words
    assert f"right.safetensors at weight {weight:.2f}" in words


def test_an_adapter_that_is_missing_fails_beside_one_that_is_there(bench: Bench, tmp_path: Path) -> None:
    path = anonymous.written(tmp_path / "model.onnx", bench.merged(), INT8)
    code, words = bench.run(path, "right", "other")
    assert code == 1
    assert "merged, then quantized" in words
    assert "does not hold" in words


def test_a_dropped_layer_is_noticed(bench: Bench, tmp_path: Path) -> None:
    weights = bench.merged() | {name: bench.weights[name] for name in list(bench.weights)[:3]}
    path = anonymous.written(tmp_path / "model.onnx", weights, INT8)
    found = bench.ask(path)
    assert _presences(found) == ["in part", "not in"]
    assert "5 layers hold it, and 3 hold the base's weight" in _of(found, "right").reason
    assert bench.run(path, "right")[0] == 1


def test_an_adapter_that_rounding_erased_is_in_and_does_nothing(bench: Bench, tmp_path: Path) -> None:
    path = anonymous.written(tmp_path / "model.onnx", bench.after(INT4, "faint"), INT4)
    found = bench.ask(path, "faint", "other")
    assert (_presences(found), found.order) == (["in", "not in"], "quantize-merge")
    trace = _of(found, "faint")
    assert (trace.fate, trace.weight) == ("does nothing", 1)
    assert abs(trace.arrived or 0) < 0.1
    code, words = bench.run(path, "faint")
    assert code == 1
    assert "does nothing: " in words


def test_what_would_leave_the_same_file_is_undecided_and_not_absent(bench: Bench, tmp_path: Path) -> None:
    path = anonymous.written(tmp_path / "model.onnx", bench.merged(1.0, "fainter"), INT4)
    found = bench.ask(path, "fainter")
    assert (found.answer, _presences(found)) == ("undecided", ["undecided"])
    assert "rounding is larger than its change" in found.adapters[0].reason
    assert bench.run(path, "fainter")[0] == 3


def test_parallel_adapters_are_not_told_apart_and_versions_are(bench: Bench, tmp_path: Path) -> None:
    shutil.copy(bench.path("right"), bench.path("copy"))
    path = anonymous.written(tmp_path / "model.onnx", bench.merged(), INT8)
    found = bench.ask(path, "right", "copy", "other")
    assert _presences(found) == ["undecided", "undecided", "not in"]
    assert _of(found, "copy").alike == [bench.path("right")]
    assert bench.run(path, "right", "copy")[0] == 3
    later = {name: change + 0.1 * bench.changes["other"][name] for name, change in bench.changes["right"].items()}
    version = {name: w + later[name] for name, w in bench.weights.items()}
    found = bench.ask(anonymous.written(tmp_path / "later.onnx", version, INT8), "right")
    assert (found.answer, _presences(found)) == ("undecided", ["undecided"])


def test_weights_that_are_not_rounded_to_the_nearest_are_undecided(bench: Bench, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(5)
    shaken = {name: w + 0.0005 * torch.randn(w.shape, generator=generator) for name, w in bench.merged().items()}
    found = bench.ask(anonymous.written(tmp_path / "model.onnx", shaken, INT4))
    assert _presences(found) == ["undecided", "not in"]
    assert _of(found, "right").weight == pytest.approx(1, abs=4 * _of(found, "right").error)
    assert (_of(found, "right").signal or 0) > 20


def test_a_file_that_takes_an_adapter_as_inputs_holds_none(bench: Bench, tmp_path: Path) -> None:
    path = anonymous.bound(tmp_path / "model.onnx", bench.weights, INT8)
    found = bench.ask(path)
    assert (found.answer, found.bound) == ("the base alone", len(anonymous.SHAPES))
    assert "take an adapter as inputs" in bench.run(path, "right")[1]


def test_what_cannot_be_compared_is_refused(bench: Bench, tmp_path: Path) -> None:
    path = anonymous.written(tmp_path / "model.onnx", bench.merged(), INT8)
    anonymous.base(tmp_path / "base", seed=9)
    for words, message in {
        (str(path), "--base", str(tmp_path / "base"), "--lora", bench.path("right")): "weights are this base's",
        (str(path), "--base", bench.base): "LoRAs that may be in it",
        (str(path), "--lora", bench.path("right")): "compared with a base",
        (str(path), "--base", bench.base, "--lora", bench.path("right"), "--details"): "of forecasts",
        (str(path), "--base", bench.base, "--lora", bench.path("right"), "--lora", bench.path("right")): "given twice",
        (str(tmp_path / "none.onnx"), "--base", bench.base, "--lora", bench.path("right")): "does not exist",
    }.items():
        done = run("inspect", *words)
        assert isinstance(done.exception, UserError), words
        assert message in done.exception.what, words
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="no ONNX, or cut off"):
        bench.ask(path)


@pytest.mark.parametrize(("side", "refused"), [(64, False), (10**6, True)])
def test_constants_that_grow_are_not_computed(bench: Bench, side: int, refused: bool, tmp_path: Path) -> None:
    graph = anonymous.Graph()
    for weight in bench.merged().values():
        x = graph.source(4, weight.shape[1])
        graph.result(anonymous.matmul(graph, x, weight, plan.grid(weight, INT8, "float32"), INT8))
    sides = graph.constant(np.array([side, side]))
    wide = graph.node("Expand", [graph.constant(np.ones((1, 1), np.float32)), sides])
    graph.result(graph.node("MatMul", [graph.source(4, side), wide]))
    path = graph.save(tmp_path / "model.onnx")
    if refused:
        with pytest.raises(UserError, match="fits no memory"):
            bench.ask(path)
    else:
        assert bench.ask(path).unmatched == 0  # no weight that is read


@pytest.mark.parametrize("harm", ["blocks", "sides"])
def test_a_weight_that_makes_no_sense_is_left_out_and_takes_no_memory(bench: Bench, harm: str, tmp_path: Path) -> None:
    layout = anonymous.nbits if harm == "sides" else anonymous.matmul
    model = onnx.load(anonymous.written(tmp_path / "model.onnx", bench.merged(), INT4, layout))
    node = next(node for node in model.graph.node if node.op_type in {"MatMulNBits", "DequantizeLinear"})
    for attribute in node.attribute:
        if attribute.name in {"block_size", "N"}:
            attribute.i = 2**30
    onnx.save(model, tmp_path / "harmed.onnx")
    found = bench.ask(tmp_path / "harmed.onnx")
    assert (_presences(found), found.layers) == (["in", "not in"], len(anonymous.SHAPES) - 1)


@pytest.mark.parametrize("place", ["weight", "branch"])
def test_a_file_with_nan_is_refused_and_not_explained(bench: Bench, place: str, tmp_path: Path) -> None:
    """A layer of NaN differs by no number of steps: left out, the others would say that all is well."""
    path = tmp_path / "model.onnx"
    if place == "weight":
        weights = bench.merged()
        next(iter(weights.values()))[3, 5] = torch.nan
        anonymous.written(path, weights, CAST)
    else:
        model = onnx.load(anonymous.beside(path, bench.weights, bench.changes["right"], INT8))
        scale = next(node.input[1] for node in model.graph.node if node.op_type == "Mul")
        constant = next(one for one in model.graph.initializer if one.name == scale)
        constant.CopyFrom(onnx.numpy_helper.from_array(np.float32([np.nan]), scale))
        onnx.save(model, path)
    with pytest.raises(UserError, match="holds NaN or infinity"):
        bench.ask(path)


def test_constants_without_sides_or_values_and_nodes_without_inputs_are_no_layers(bench: Bench, tmp_path: Path) -> None:
    model = onnx.load(anonymous.written(tmp_path / "model.onnx", bench.merged(), INT8))
    source = model.graph.input[0].name
    for place, shape in enumerate([(), (1,), (0, 64), (64, 0)]):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(shape, np.float32), f"odd{place}"))
        model.graph.node.append(onnx.helper.make_node("MatMul", [source, f"odd{place}"], [f"y{place}"]))
    model.graph.node.append(onnx.helper.make_node("Conv", [source], ["alone"]))
    onnx.save(model, tmp_path / "odd.onnx")
    found = bench.ask(tmp_path / "odd.onnx")
    assert (_presences(found), found.layers, found.bound) == (["in", "not in"], len(anonymous.SHAPES), 0)


def test_many_paths_to_one_constant_are_walked_once(tmp_path: Path) -> None:
    graph, calls = anonymous.Graph(), 0
    name = graph.constant(np.ones((4, 4), np.float32))
    for _ in range(11):
        name = graph.node("QuantizeLinear", [name, name, name])
    graph.result(graph.node("MatMul", [graph.source(4, 4), name]))

    class Counting(Decoder):
        def is_constant(self, name: str, deep: int = 0) -> bool:
            nonlocal calls
            calls += 1
            return super().is_constant(name, deep)

    assert [one.sides for one in Counting(graph.save(tmp_path / "model.onnx")).operands] == [(4, 4)]
    assert calls < 100


def test_an_adapter_of_other_layers_is_undecided(bench: Bench, tmp_path: Path) -> None:
    tensors = {name.replace("unet.", "text_encoder."): value for name, value in load_file(bench.path("right")).items()}
    save_file(tensors, bench.path("encoder"))
    path = anonymous.written(tmp_path / "model.onnx", bench.merged(), INT8)
    found = bench.ask(path, "right", "encoder")
    assert (_presences(found), _of(found, "encoder").elsewhere) == (["in", "undecided"], len(anonymous.SHAPES))
    assert bench.run(path, "right", "encoder")[0] == 3


def test_the_command_gives_json(bench: Bench, tmp_path: Path) -> None:
    path = anonymous.written(tmp_path / "model.onnx", bench.merged(), INT8)
    words = ("inspect", str(path), "--base", bench.base, "--lora", bench.path("right"), "--json")
    done = run(*words)
    assert done.exit_code == 0
    assert Attribution.model_validate_json(done.stdout).adapters[0].following == len(anonymous.SHAPES)
    assert json.loads(done.stdout)["order"] == "merge-quantize"


@pytest.mark.parametrize("branches", [False, True])
def test_our_own_files_are_read_convolutions_and_branches_too(
    prepared: Prepared, demo_arms: Arms, branches: bool, tmp_path: Path
) -> None:
    state = demo_arms.state("base" if branches else "adapted")
    planned = {
        name: plan.LayerPlan(plan.grid(state[f"{name}.weight"], INT8, "float32"), numbers.input)
        for name, numbers in prepared.plan.items()
    }
    factors = {layer: demo_arms.factors(layer) for layer in demo_arms.denoiser_layers()} if branches else {}
    qdq.save(qdq.quantized(prepared.graph, state, planned, factors), tmp_path / "model.onnx")
    found = qcheck.attribute(tmp_path / "model.onnx", library.NAME, ["flat", "ink"])
    assert _presences(found) == ["in", "not in"], found
    assert found.order == ("unmerged" if branches else "merge-quantize")
    assert (found.unmatched, _of(found, "flat").weight) == (0, pytest.approx(1, abs=1e-3))


@pytest.mark.parametrize("scaled", [True, False])
def test_codes_that_a_factors_rounding_turns_are_no_sign_of_an_adapter(scaled: bool) -> None:
    before = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    grid = plan.Grid(formats.find("int8"), "tensor", before.abs().max().view(1) / 127)
    file = grid.fake(before)
    file[0, :20] += grid.step  # 20 of 4096 codes
    layer = Layer("a", before, file, grid, grid.fake(before), {}, scaled=scaled)
    assert attribution.judged([layer], {}, "merge-quantize").told == ([] if scaled else ["a"])
