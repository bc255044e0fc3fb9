"""A bundle of two adapters: one file, one engine, a verdict for each."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import qcheck
from qcheck.core.errors import UserError
from qcheck.demo import library
from qcheck.device import main
from qcheck.judge import merge
from qcheck.result.verified import Verified
from tests.conftest import run
from tests.device.conftest import signed

FEW = {"scheme": "int4-g128", "order": "bound", "steps": 2, "build": False}


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "two"
    qcheck.bundle("demo", "flat", bound_with="ink=0.5", out=folder, bundle_probes=2, twin=False, **FEW)  # type: ignore[arg-type]
    return folder


def _verified(folder: Path, work: Path) -> Verified:
    return Verified.model_validate_json(main.as_json(main.run(folder, work, None, "onnxruntime", True)))


def test_each_adapter_is_judged_on_one_file(several: Path, tmp_path: Path) -> None:
    assert len(list(several.rglob("unet/model.onnx"))) == 1
    verified = _verified(several, tmp_path / "work")
    assert [one.asked.adapter for one in verified.every] == ["flat.safetensors", "ink.safetensors"]
    assert [one.asked.weights for one in verified.every] == [[1.0], [0.5]]
    assert len({one.asked.file_digest for one in verified.every}) == 1
    for one in verified.every:
        assert float(one.explained["host_gap_db"]) > 40
        values = {(m.name, m.arm): m.value for m in one.measurements}
        assert values["effect_survival", "adapted"] == pytest.approx(1, abs=0.2)
        assert one.verdict != "FAIL"


def test_an_engine_that_ignores_its_adapter_fails(several: Path, tmp_path: Path) -> None:
    (path,) = (several / "adapters" / "000" / "adapter").glob("lora_scale.bin")
    before = path.read_bytes()
    try:
        path.write_bytes(np.zeros(1, np.float16).tobytes())
        signed(several)
        first, other = _verified(several, tmp_path / "work").every
        assert first.verdict != "FAIL"
        assert other.verdict == "FAIL"
        assert any("effect_survival" in reason for reason in other.reasons)
        assert main.main([str(several), "--work", str(tmp_path / "work"), "--runner", "onnxruntime"]) == 1
        words = ("verify", str(several), "--work", str(tmp_path / "work"), "--runner", "onnxruntime")
        assert run(*words).exit_code == 1
    finally:
        path.write_bytes(before)
        signed(several)


def test_a_board_s_answer_goes_to_the_report_of_its_adapter(several: Path, tmp_path: Path) -> None:
    verified = _verified(several, tmp_path / "work")
    report = qcheck.check("demo", "ink", weight=0.5, bound_with="flat", out=tmp_path / "out", max_probes=2, **FEW)  # type: ignore[arg-type]
    (case,) = merge.merged(report, verified).cases
    assert case.board is not None
    assert case.board.asked.adapter == "ink.safetensors"


def test_adapters_that_change_text_encoders_do_not_share_a_bundle(tmp_path: Path) -> None:
    tensors = load_file(library.ADAPTERS / "ink.safetensors")
    layer = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    inputs = json.loads((library.PIPELINE / "text_encoder" / "config.json").read_text("utf-8"))
    tensors[f"{layer}.lora_A.weight"] = next(iter(tensors.values())).new_ones(2, inputs["hidden_size"])
    tensors[f"{layer}.lora_B.weight"] = next(iter(tensors.values())).new_ones(inputs["intermediate_size"], 2)
    path = tmp_path / "both.safetensors"
    save_file(tensors, path)
    with pytest.raises(UserError, match="changes text encoders, of which a bundle holds one"):
        qcheck.bundle("demo", str(path), bound_with="flat", out=tmp_path / "two", bundle_probes=2, **FEW)  # type: ignore[arg-type]
    assert not (tmp_path / "two").exists()
