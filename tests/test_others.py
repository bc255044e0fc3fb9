"""INT8 files that ModelOpt and ONNX Runtime made are judged as our simulation of the ranges in them is."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import nn

from qcheck.model.arms import Arms
from qcheck.quantize import fake, formats, qdq, sites
from qcheck.quantize.plan import Grid, LayerPlan, Plan, Static
from qcheck.runtime.ort_runner import session
from qcheck.runtime.torch_runner import TorchRunner
from tests import rivals
from tests.conftest import Prepared, run

INT8 = formats.find("int8")

# Rounding sends two runs of one quantized network apart: among nine simulations, their states 1e-6 to 1e-4 of their
# size apart, the standard deviation is .003 for effect_survival, .004 for endpoint_error, up to .06 dB. These files are
# within .003, .014 and .12 dB of theirs; one layer by itself is within 4e-5 of its largest output.
WITHIN = {"ratio": 0.02, "dB": 0.3, "sd": 0.02, "1 - cos": 0.01, "nat": 0.05}


class Layer(NamedTuple):
    """A layer in a file: its node, the value that is quantized for it, and its numbers."""

    node: NodeProto
    source: str
    plan: LayerPlan


@dataclass(frozen=True)
class Theirs:
    """A file of someone else's: its layers, and the steps of inputs that are quantized without a weight."""

    path: Path
    layers: Mapping[str, Layer]
    inputs: Mapping[str, Static]

    @property
    def plan(self) -> Plan:
        """The numbers of all layers."""
        return {name: layer.plan for name, layer in self.layers.items()}


class Graph:
    """The nodes of a file, and what Q/DQ stands between them."""

    def __init__(self, path: Path) -> None:
        graph = onnx.load(path).graph
        self.nodes = list(graph.node)
        self._makers = {output: node for node in graph.node for output in node.output}
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}

    def quantized(self, name: str) -> tuple[str, torch.Tensor] | None:
        """What a value is quantized from, and the steps [groups]; None where it is not."""
        maker = self._makers.get(name)
        if maker is not None and maker.op_type == "Transpose":
            return self.quantized(maker.input[0])
        if maker is None or maker.op_type != "DequantizeLinear":
            return None
        codes, (step, zero) = maker.input[0], (self._constant(given) for given in maker.input[1:])
        assert not zero.any(), f"the zero point of {maker.name} is not 0"
        return self._makers[codes].input[0] if codes in self._makers else codes, torch.from_numpy(step.flatten())

    def _constant(self, name: str) -> np.ndarray:
        if name in self._tensors:
            return numpy_helper.to_array(self._tensors[name])
        maker = self._makers[name]
        if maker.op_type == "Cast":
            return self._constant(maker.input[0])
        return numpy_helper.to_array(maker.attribute[0].t)


def read(path: Path, name_of: Callable[[NodeProto], str]) -> Theirs:
    """The steps at every node that computes, by the name of its layer in torch."""
    graph, layers, inputs = Graph(path), dict[str, Layer](), dict[str, Static]()
    for node in graph.nodes:
        if node.op_type in {"Conv", "Gemm", "MatMul", "LayerNormalization"}:
            values, weights = (graph.quantized(name) for name in node.input[:2])
            if values is None:
                continue
            static = Static(INT8, values[1][0])
            if weights is None:
                inputs[name_of(node)] = static
            else:
                layers[name_of(node)] = Layer(node, values[0], LayerPlan(Grid(INT8, "channel", weights[1]), static))
    return Theirs(path, layers, inputs)


@contextmanager
def simulated(unet: nn.Module, theirs: Theirs) -> Iterator[nn.Module]:
    """``unet`` computing with the steps of a file; then as it was."""

    def hooked(step: Static) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], torch.Tensor]:
        return lambda _, given: step.fake(given[0])

    hooks = [unet.get_submodule(name).register_forward_pre_hook(hooked(step)) for name, step in theirs.inputs.items()]
    try:
        with fake.simulated(unet, theirs.plan):
            yield unet
    finally:
        for hook in hooks:
            hook.remove()


@pytest.fixture(scope="module")
def states(demo_arms: Arms) -> list[dict[str, torch.Tensor]]:
    """What the denoiser is fed while the pipeline draws two pictures in eight steps, to calibrate on."""
    found = list[dict[str, torch.Tensor]]()

    def see(_: nn.Module, given: tuple[torch.Tensor, torch.Tensor], named: Mapping[str, torch.Tensor]) -> None:
        sample, timestep = given
        hidden = named["encoder_hidden_states"]
        found.append({"sample": sample, "timestep": timestep.float().reshape(1), "encoder_hidden_states": hidden})

    with demo_arms.held("adapted") as family:
        hook = family.module.register_forward_pre_hook(see, with_kwargs=True)
        family.pipe.set_progress_bar_config(disable=True)
        asked = {"num_inference_steps": 8, "guidance_scale": 3, "output_type": "latent"}
        family.pipe(["red apple", "sad cat"], generator=torch.Generator().manual_seed(5), **asked)
        hook.remove()
    return found


@pytest.fixture(scope="module")
def modelopt(
    demo_arms: Arms, states: list[dict[str, torch.Tensor]], tmp_path_factory: pytest.TempPathFactory
) -> Theirs:
    """ModelOpt's default INT8; it names every node after the module that it is in."""

    def calibrate(denoiser: nn.Module) -> None:
        for state in states:
            denoiser(*state.values())

    path = tmp_path_factory.mktemp("modelopt") / "theirs.onnx"
    with demo_arms.held("adapted") as family:
        rivals.export(rivals.quantized(family.module, "INT8_DEFAULT_CFG", calibrate), states[0], path)
    return read(path, lambda node: ".".join(node.name.split("/")[1:-1]))


@pytest.fixture(scope="module")
def layers(exported: Prepared) -> Mapping[str, str]:
    """The layer of every node of our export that computes with a weight."""
    return {str(site.node.name): layer for layer, site in sites.find(exported.graph.graph).items()}


@pytest.fixture(scope="module")
def static(
    exported: Prepared,
    demo_arms: Arms,
    layers: Mapping[str, str],
    states: list[dict[str, torch.Tensor]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Theirs:
    """ONNX Runtime's static INT8 of every layer."""
    folder = tmp_path_factory.mktemp("static")
    qdq.save(sites.fill(exported.graph, demo_arms.state("adapted")), folder / "plain.onnx")
    rows = [{name: value.numpy() for name, value in state.items()} for state in states]
    rivals.static(folder / "plain.onnx", rows, [*layers], folder / "theirs.onnx")
    return read(folder / "theirs.onnx", lambda node: layers[node.name])


@pytest.fixture(scope="module")
def short(static: Theirs, layers: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> Theirs:
    """The same with inputs cut at half of their range."""
    model = onnx.load(static.path)
    steps = {node.input[1] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    for tensor in model.graph.initializer:
        if tensor.name in steps:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) / 2, tensor.name))
    path = tmp_path_factory.mktemp("short") / "theirs.onnx"
    onnx.save(model, path)
    return read(path, lambda node: layers[node.name])


def judged(path: Path, out: Path) -> dict[str, Any]:
    """The case of ``qcheck check --artifact``."""
    given = ("check", "demo", "--lora", "flat", "--artifact", str(path), "--no-build", "--json", "--out", str(out))
    result = run(*given, "--steps", "4", "--max-probes", "8", "--threads", "1")
    assert result.exit_code in {0, 1, 3}, result.output
    (case,) = json.loads(result.stdout)["cases"]
    found: dict[str, Any] = case
    return found


@pytest.mark.parametrize(("maker", "verdict"), [("modelopt", "PASS"), ("static", "PASS"), ("short", "NEEDS-QAT")])
def test_a_file_is_judged_as_our_simulation_of_its_ranges(
    maker: str,
    verdict: str,
    request: pytest.FixtureRequest,
    demo_arms: Arms,
    prepared: Prepared,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    theirs: Theirs = request.getfixturevalue(maker)
    found = judged(theirs.path, tmp_path / "theirs")
    stand_in = onnx.load(theirs.path)
    stand_in.doc_string = "its simulation runs instead"  # another digest, or the file's own outputs would be reused
    onnx.save(stand_in, tmp_path / "stand-in.onnx")
    runners: list[TorchRunner] = []
    with simulated(prepared.unet, theirs) as unet:

        def simulation(*_: object) -> nullcontext[TorchRunner]:
            runners.append(TorchRunner(demo_arms.base.family.entry(unet)))
            return nullcontext(runners[-1])

        monkeypatch.setattr("qcheck.sampling.subject.OnnxRunner", simulation)
        ours = judged(tmp_path / "stand-in.onnx", tmp_path / "ours")
    assert runners
    assert (found["verdict"], ours["verdict"]) == (verdict, verdict)
    for a, b in zip(found["measurements"], ours["measurements"], strict=True):
        if a["status"] in {"reported", "not measured"} and a["name"] != "effect_to_error":
            continue
        assert a["value"] == pytest.approx(b["value"], abs=WITHIN[a["unit"]]), (a["name"], b["name"])


@pytest.mark.parametrize(("maker", "count"), [("modelopt", 191), ("static", 202)])
def test_every_layer_of_a_file_computes_what_is_simulated(
    maker: str,
    count: int,
    request: pytest.FixtureRequest,
    prepared: Prepared,
    states: list[dict[str, torch.Tensor]],
    tmp_path: Path,
) -> None:
    """On the file's own input of that layer, where no earlier rounding is in the way."""
    theirs: Theirs = request.getfixturevalue(maker)
    model, path = onnx.load(theirs.path), tmp_path / "opened.onnx"
    shown = {name for layer in theirs.layers.values() for name in (layer.source, layer.node.output[0])}
    fed = {given.name: states[0][given.name].numpy() for given in model.graph.input}
    shown -= {*fed, model.graph.output[0].name}
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in sorted(shown))
    onnx.save(model, path)
    running = session(path, 1)
    outputs = [found.name for found in running.get_outputs()]
    values = {**fed, **dict(zip(outputs, running.run(outputs, fed), strict=True))}
    worst = {}
    with fake.simulated(prepared.unet, theirs.plan), torch.no_grad():
        for name, layer in theirs.layers.items():
            module = prepared.unet.get_submodule(name)
            ours = module(torch.from_numpy(values[layer.source]))
            if layer.node.op_type == "MatMul" and module.bias is not None:
                ours = ours - module.bias
            wanted = torch.from_numpy(values[layer.node.output[0]])
            worst[name] = float((ours - wanted).abs().max() / wanted.abs().max())
    assert len(worst) == count
    assert max(worst.values()) < 1e-4
