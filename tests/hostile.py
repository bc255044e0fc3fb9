"""Files that a stranger might send to do harm: each maker gives the bytes or the model of one."""

import json
import os
import resource
import signal
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, helper

from qcheck.core.errors import UserError
from qcheck.device import bundle as bundles
from qcheck.device.errors import CannotVerify
from qcheck.tasks import pack

DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000
DIGITS = "9" * 10_000
_HANG = 60  # seconds after which a test fails that would wait for ever
_MEMORY = 400e6  # bytes that reading a tiny file may take


def snapshot(folder: Path) -> dict[str, Any]:
    """Every path below ``folder`` with what it is: a file's size and time, a link's target."""
    paths = [Path(place, name) for place, folders, names in os.walk(folder) for name in (*folders, *names)]
    return {str(path): (os.lstat(path).st_size, os.lstat(path).st_mtime_ns) for path in paths if not path.is_dir()}


@contextmanager
def harmless(folder: Path) -> Iterator[None]:
    """The block ends, in little memory, without a change of anything in ``folder``."""

    def hang(*_: object) -> None:
        raise TimeoutError("it waits for ever")

    earlier = signal.signal(signal.SIGALRM, hang)
    before, memory = snapshot(folder), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.alarm(_HANG)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, earlier)
    assert snapshot(folder) == before
    assert 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) < _MEMORY


def refused(call: Callable[[], object], folder: Path, said: str) -> None:
    """``call`` ends in one error that says what is wrong, with how to mend it, and does no harm."""
    with harmless(folder), pytest.raises((UserError, CannotVerify)) as caught:
        call()
    error = caught.value
    what = error.what if isinstance(error, UserError) else error.problem
    assert said in what
    assert error.fix.endswith(".")


DOWN = "unet.mid_block.attentions.0.proj_in.lora_A.weight"
UP = DOWN.replace("_A", "_B")
_VALUES = np.ones(16, np.float32).tobytes()


def entry(shape: Sequence[int] = (2, 4), place: tuple[int, int] = (0, 32), dtype: str = "F32") -> dict[str, Any]:
    """A tensor as the header of a safetensors file has it."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(place)}


SECOND = entry((4, 2), (32, 64))
LORA: Mapping[str, Any] = {DOWN: entry(), UP: SECOND}


def safetensors(header: Any, data: bytes = _VALUES, length: int | None = None) -> bytes:
    """A safetensors file of that header, as an object or as bytes, which claims to be so long."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def described(**metadata: Any) -> bytes:
    """A LoRA with that metadata; what is no text becomes JSON."""
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    return safetensors({"__metadata__": texts, **LORA})


_EACH = ",".join(f'"{name}":{json.dumps(one)}' for name, one in [(DOWN, LORA[DOWN]), *LORA.items()])

ADAPTERS = {
    "a header of 2**63 bytes": (safetensors(LORA, length=2**63), "header too large"),
    "a header longer than the file": (safetensors(LORA, length=10**7), "not a whole safetensors file"),
    "no JSON": (safetensors(b"no JSON here"), "invalid JSON"),
    "deep JSON": (safetensors(DEEP.encode()), "recursion limit"),
    "overlapping tensors": (safetensors({DOWN: entry(), UP: entry((4, 2), (16, 48))}), "invalid offset"),
    "tensors beyond the file": (safetensors({DOWN: entry(), UP: entry((4, 2), (32, 640))}), "not a whole"),
    "negative offsets": (safetensors({DOWN: entry(place=(-32, 0)), UP: SECOND}), "invalid value"),
    "a name twice": (safetensors(f"{{{_EACH}}}".encode()), "twice"),
    "an overflowing shape": (safetensors({DOWN: entry((2**40, 2**40)), UP: SECOND}), "overflow"),
    "a shape that wraps to nothing": (safetensors({DOWN: entry((2**32, 2**32), (0, 0))}, b""), "overflow"),
    "nothing of 2**62 rows": (safetensors({DOWN: entry((0, 2**62), (0, 0)), UP: entry((4, 0), (0, 0))}, b""), "rank 0"),
    "a negative shape": (safetensors({DOWN: entry((-2, -4)), UP: SECOND}), "invalid value"),
    "an unknown type": (safetensors({DOWN: entry(dtype="Q7"), UP: SECOND}), "unknown variant"),
    "complex numbers": (safetensors({DOWN: entry(place=(0, 64), dtype="C64")}), "is of type C64"),
    "5000 axes": (safetensors({DOWN: entry([1] * 5000 + [2, 4]), UP: SECOND}), "has 5002 axes"),
    "no bytes": (b"", "header too small"),
    "a length alone": (struct.pack("<Q", 0), "invalid JSON"),
    "no tensors": (safetensors({}, b""), "no LoRA factors"),
    "names that are no UTF-8": (safetensors(b'{"\xff":{}}'), "UTF-8"),
    "half a surrogate as a name": (safetensors(b'{"\\ud800":{}}'), "invalid JSON"),
    "a config that is no JSON": (described(lora_adapter_metadata=DEEP), "metadata is not JSON"),
    "alpha that is a word": (described(lora_adapter_metadata={"unet.r": 4, "unet.lora_alpha": "x"}), "a number"),
    "alpha of 2000 digits": (described(lora_adapter_metadata='{"lora_alpha": ' + "9" * 2000 + "}"), "a number"),
    "patterns that are a list": (described(lora_adapter_metadata={"unet.alpha_pattern": [1]}), "a table of numbers"),
    "a pattern that takes years": (
        described(lora_adapter_metadata={"alpha_pattern": {"(a+)+$": 1}}),
        "has the pattern",
    ),
}
IGNORED = {
    "tags in deep JSON": described(ss_tag_frequency=DEEP),
    "counts of tags that are no numbers": described(ss_tag_frequency={"a": {"x": "NaN", "y": [1], "z": None}}),
    "counts without end": described(ss_tag_frequency='{"a": {"x": 1e999}}'),
}


def model(
    nodes: Sequence[NodeProto] = (),
    tensors: Sequence[TensorProto] = (),
    side: int = 4,
    functions: Sequence[FunctionProto] = (),
    domain: str = "f",
) -> ModelProto:
    """A graph of one input and one output, which adds ``w`` where it has no other nodes."""
    inputs, outputs = ([helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", side])] for n in ("sample", "y"))
    made = nodes or [helper.make_node("Add", ["sample", "w"], ["y"])]
    graph = helper.make_graph(made, "hostile", inputs, outputs, list(tensors))
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(domain, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=functions)


def outside(location: str, offset: object = 0, length: object = 16) -> TensorProto:
    """A tensor whose bytes are in another file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=(4,), data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _inside(dims: Sequence[int] = (4,)) -> TensorProto:
    return TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, raw_data=bytes(16))


def _constant(tensor: TensorProto) -> list[NodeProto]:
    return [helper.make_node("Constant", [], ["w"], value=tensor), helper.make_node("Add", ["sample", "w"], ["y"])]


def _filled(count: int) -> ModelProto:
    """A graph that fills a tensor of that many numbers."""
    size = TensorProto(name="size", data_type=TensorProto.INT64, dims=(1,), int64_data=[count])
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["large"]),
        helper.make_node("ReduceSum", ["large"], ["sum"]),
        helper.make_node("Add", ["sample", "sum"], ["y"]),
    ]
    return model(nodes, [size])


def _branches(tensor: TensorProto, depth: int = 1) -> ModelProto:
    """Ifs inside each other, of which the innermost adds a tensor of its own."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Add", ["sample", "w"], ["o0"])], "g", [], [value("o0", 1, None)], [tensor]
    )
    other = helper.make_graph([helper.make_node("Identity", ["sample"], ["e"])], "e", [], [value("e", 1, None)])
    for level in range(1, depth + 1):
        node = helper.make_node("If", ["c"], [f"o{level}"], then_branch=graph, else_branch=other)
        graph = helper.make_graph([node], "g", [], [value(f"o{level}", 1, None)])
    node = helper.make_node("If", ["c"], ["y"], then_branch=graph, else_branch=other)
    return model([node], [TensorProto(name="c", data_type=TensorProto.BOOL, dims=(), raw_data=b"\1")])


def _function(name: str, calls: Sequence[str]) -> FunctionProto:
    names = ["a", *(f"v{place}" for place in range(1, len(calls))), "b"]
    nodes = [
        helper.make_node(call, [names[place]], [names[place + 1]], domain="" if call == "Identity" else "f")
        for place, call in enumerate(calls)
    ]
    return helper.make_function(
        "f", name, ["a"], ["b"], nodes, [helper.make_opsetid("", 20), helper.make_opsetid("f", 1)]
    )


def _doubling(depth: int, calls: int = 2) -> ModelProto:
    """Functions that call the one before ``calls`` times."""
    functions = [_function("F0", ["Identity"] * 2)]
    functions += [_function(f"F{level}", [f"F{level - 1}"] * calls) for level in range(1, depth + 1)]
    functions.reverse()
    return model([helper.make_node(f"F{depth}", ["sample"], ["y"], domain="f")], functions=functions)


def _nested(depth: int) -> bytes:
    """A protobuf of graphs inside of attributes of nodes, that deep."""

    def sized(content: bytes) -> bytes:
        length, left = b"", len(content)
        while left > 127:
            length, left = length + bytes([left & 127 | 128]), left >> 7
        return length + bytes([left]) + content

    graph = b""
    for _ in range(depth):
        graph = b"\x0a" + sized(b"\x2a" + sized(b"\x32" + sized(graph)))
    return b"\x3a" + sized(graph)


_LOOP = [helper.make_node("Add", ["z", "sample"], ["y"]), helper.make_node("Identity", ["y"], ["z"])]
_ELSEWHERE = "no file in the folder of the model"
ONNX: Mapping[str, tuple[ModelProto | bytes, str]] = {
    "a tensor above the folder": (model(tensors=[outside("../secret.bin")]), _ELSEWHERE),
    "a tensor at an absolute path": (model(tensors=[outside("/etc/passwd")]), _ELSEWHERE),
    "a tensor behind a link": (model(tensors=[outside("link.bin")]), _ELSEWHERE),
    "a tensor in a pipe": (model(tensors=[outside("pipe")]), _ELSEWHERE),
    "a tensor without end": (model(tensors=[outside("/dev/zero")]), _ELSEWHERE),
    "a constant above the folder": (model(_constant(outside("../secret.bin"))), _ELSEWHERE),
    "a branch's tensor above the folder": (_branches(outside("../secret.bin")), _ELSEWHERE),
    "a function's constant above the folder": (
        model(
            [helper.make_node("F", ["sample"], ["y"], domain="f")],
            functions=[
                helper.make_function(
                    "f", "F", ["sample"], ["y"], _constant(outside("../secret.bin")), [helper.make_opsetid("", 20)]
                )
            ],
        ),
        _ELSEWHERE,
    ),
    "a negative offset": (model(tensors=[outside("w.bin", -16)]), "does not load"),
    "an offset of 2**62": (model(tensors=[outside("w.bin", 2**62)]), "does not load"),
    "a length of 2**62": (model(tensors=[outside("w.bin", 0, 2**62)]), "does not load"),
    "a negative length": (model(tensors=[outside("w.bin", 0, -1)]), "does not load"),
    "an offset that is a word": (model(tensors=[outside("w.bin", "x")]), "does not load"),
    "a graph in a circle": (model(_LOOP), "not acyclic"),
    "a weight of 2**62 numbers": (model(tensors=[_inside((2**62,))]), "does not load"),
    "an input of 2**62 numbers": (model(tensors=[_inside((1,))], side=2**62), "fits no memory"),
    "a value of 2**40 numbers": (_filled(2**40), "fits no memory"),
    "an operator of nobody": (model([helper.make_node("Evil", ["sample"], ["y"], domain="f")]), "not a registered"),
    "a function that calls itself": (
        model([helper.make_node("F", ["sample"], ["y"], domain="f")], functions=[_function("F", ["F"])]),
        "does not load",
    ),
    "functions that double 40 times": (_doubling(40), "functions expand"),
    "functions that double 14 times": (_doubling(14), "functions expand"),
    "functions 200 deep": (_doubling(200, 1), "more than 100 deep"),
    "branches 5000 deep": (_nested(5000), "no ONNX, or cut off"),
    "half a file": (model(tensors=[_inside()]).SerializeToString()[:60], "no ONNX, or cut off"),
    "no bytes": (b"", "does not load"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), "no ONNX, or cut off"),
    "safetensors": (safetensors(LORA), "no ONNX, or cut off"),
}


def saved(made: ModelProto | bytes, folder: Path) -> Path:
    """The file of a model, in a folder with a link and a pipe, beside a secret."""
    inner = folder / "model"
    inner.mkdir()
    (folder / "secret.bin").write_bytes(bytes(16))
    (inner / "w.bin").write_bytes(bytes(16))
    (inner / "link.bin").symlink_to("../secret.bin")
    os.mkfifo(inner / "pipe")
    path = inner / "hostile.onnx"
    path.write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
    return path


DEEP_TOML = "a = " + "[" * 5000 + "]" * 5000
TOML = {
    "deep arrays": DEEP_TOML,
    "deep tables": "a = " + "{a = " * 2000 + "1" + "}" * 2000,
    "a name of 100000 parts": f"[{'.'.join(['a'] * 100_000)}]",
    "a number of 10000 digits": f"a = {DIGITS}",
    "a NUL": "\0",
    "no UTF-8": b"\xff\xfe",
    "no such day": "a = 2026-99-99",
    "an unknown key that turns red": '"\\u001b[31m" = 1',
    "2 MB": "#" * 2_000_000,
}
TOML_SAID = {"deep arrays": "deeply", "deep tables": "deeply", "a name of 100000 parts": "dots", "2 MB": "larger than"}
JSON = {
    "deep": DEEP,
    "a number of 10000 digits": f'{{"a": {DIGITS}}}',
    "a NUL": "\0",
    "no UTF-8": b"\xff",
    "a list": "[]",
}


def written(path: Path, content: str | bytes) -> str:
    """The path of a new file of that content."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def load_onnx(path: Path) -> ModelProto:
    """The model in a file, without what lies beside it."""
    return onnx.load(path, load_external_data=False)


HALF: dict[str, Any] = {"name": "sample", "dtype": "float16", "shape": [2, 4, 8, 8]}
FACTS: dict[str, Any] = {
    "schema": bundles.SCHEMA,
    "qcheck": "0",
    "asked": {
        **dict.fromkeys(("base", "adapter", "scheme", "order", "target", "verdict", "host_machine"), "x"),
        **dict.fromkeys(("base_digest", "file_digest", "limits_digest"), "0"),
        "adapter_digests": ["0"],
        "weights": [1.0],
        "guidance": 3.0,
        "steps": 8,
    },
    "components": [
        {
            "name": "unet",
            "role": "denoiser",
            "file": "model/unet/model.onnx",
            "compute": "float16",
            "float32": [],
            "inputs": [HALF],
            "outputs": [HALF | {"name": "out"}],
            "layers": [],
        }
    ],
    "component_samples": 1,
    "denoiser": {
        "latent": "sample",
        "time": "timestep",
        "varying": ["sample"],
        "own_in_base": [],
        "adapter": [],
        "shape": [4, 8, 8],
    },
    "guidance": 3.0,
    "tile": 0,
    "calibrated": False,
    "probes": [{"prompt": "a cat", "seed": 0}],
    "strata": [1.0],
    "solver": {"timesteps": [1.0], "scales": [1.0], "start": [1.0], "outputs": [[1.0]]},
    "no_solver": "",
    "limits": {"alpha": 0.05, "tail": [0.5, 1.5], "bad_share": 0.2, "gates": []},
    "host_only": {},
    "forecast": {"call_ms": None, "engine_bytes": None, "builder_bytes": 1, "memory_bytes": 1},
}


def bundle(place: Path, content: str | bytes = "") -> Path:
    """A signed bundle of that bundle.json in a folder of its own."""
    made = place / "bundle"
    made.mkdir()
    written(made / bundles.NAME, content or json.dumps(FACTS))
    pack.sums(made)
    return made
