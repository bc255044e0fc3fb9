"""An audit of what a board said: its numbers, what was not measured, and what changed since."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import qcheck
from qcheck.core.errors import UserError
from qcheck.device import gates
from qcheck.result import store
from qcheck.result.verified import Verified
from tests import audits
from tests.audits import printed, resealed


@pytest.fixture
def merged(sound: Path) -> Path:
    """The folder, with what a board said of its first case."""
    report = store.read(sound)
    board = Verified.model_validate_json(json.dumps(audits.verified(report))).model_dump(mode="json", by_alias=True)
    return resealed(sound, lambda content: content["cases"][0].update(board=board))


LOSSES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 0.55)  # undecided


TAIL = (1.0, 1.02, 1.01, 1.0, 1.03, 0.99, 1.01, 0.3)


def _effect(values: Sequence[float] = LOSSES, **changed: Any) -> list[dict[str, Any]]:
    """A board's measurements, its survival changed."""
    return [audits.measured("effect_survival", values, **changed), audits.measured("stratum_survival")]


def _without(name: str) -> list[dict[str, Any]]:
    return [one for one in _effect(audits.KEPT) if one["name"] != name]


BOARDS: dict[str, tuple[list[dict[str, Any]], str, str | None]] = {
    "open": (_effect(), "INCONCLUSIVE", None),
    "passed": (_effect(audits.KEPT), "PASS", None),
    "a verdict": (_effect(), "PASS", "the board's verdict is PASS in the report"),
    "a pass": (_effect(status="pass"), "PASS", "the board's effect_survival (adapted) is pass in the report"),
    "a failure": (_effect(status="fail"), "FAIL", "the board's effect_survival (adapted) is fail in the report"),
    "a value": (_effect(value=1.0), "INCONCLUSIVE", "the board's effect_survival (adapted): value is 1 in the report"),
    "a bound": (_effect(low=0.9, high=1.1, status="pass"), "PASS", "low is 0.9 in the report, and the probes give"),
    "a p-value": (_effect(p=1e-9, status="fail"), "FAIL", "the board's effect_survival (adapted): p is 1e-09"),
    "a limit": (_effect(limit={"low": 0.1, "high": 9.0}), "INCONCLUSIVE", "limit is 0.1 .. 9 in the report"),
    "another number": (_effect(rows=[[1.0]] * 8), "INCONCLUSIVE", "and the probes give 1"),
    "no numbers": (_effect(rows=[]), "INCONCLUSIVE", "effect_survival (adapted) of the board has no table of numbers"),
    "fewer probes": (_effect(TAIL[:6]), "PASS", "effect_survival (adapted) of the board has no table of numbers"),
    "another name": (_effect(name="ssim"), "INCONCLUSIVE", "ssim (adapted) of the board has no limit"),
    "twice": ([*_effect(audits.KEPT), *_effect(audits.KEPT)], "PASS", "effect_survival (adapted) is there 2 times"),
    "nothing": ([], "PASS", "effect_survival (adapted) was not measured"),
    "no stratum": (_without("stratum_survival"), "PASS", "stratum_survival (adapted) was not measured"),
    "no effect": (_without("effect_survival"), "PASS", "effect_survival (adapted) was not measured"),
    "the tail": (_effect(TAIL), "PASS", "effect_survival is outside 0.5 .. 1.5 on 1 of 8 probes"),
    "any limit of the picture": (
        [*_effect(audits.KEPT), audits.measured("endpoint_error", [5.0, 5.1] * 4, limit={"low": None, "high": 99.0})],
        "PASS",
        "endpoint_error (adapted): limit is <= 99 in the report",
    ),
}


@pytest.mark.parametrize("name", BOARDS)
def test_what_a_board_says_has_to_follow_from_its_probes(merged: Path, name: str) -> None:
    measurements, verdict, said = BOARDS[name]
    folder = resealed(
        merged, lambda content: content["cases"][0]["board"].update(measurements=measurements, verdict=verdict)
    )
    code, text = printed(str(folder))
    assert code == (0 if said is None else 1), text
    assert said is None or said in " ".join(text.split()), text


def test_a_board_s_decoder_has_to_be_measured_for_a_pass(merged: Path) -> None:
    def added(content: dict[str, Any]) -> None:
        board = content["cases"][0]["board"]
        board["components"].append(board["components"][0] | {"name": "vae_decoder", "role": "decoder"})

    assert "picture_error at vae_decoder was not measured" in " ".join(printed(str(resealed(merged, added)))[1].split())


def test_the_worst_picture_of_a_board_is_the_worst_of_its_pictures(merged: Path) -> None:
    gate = gates.Gate("picture_error", "adapted", "", None, 0.02, "")
    for stated, code in ((0.01, 0), (0.001, 1)):
        one = gates.worst([0.001, 0.01, 0.002], gate, "vae_decoder").to_json() | {"value": stated}
        folder = resealed(
            merged,
            lambda content, one=one: content["cases"][0]["board"].update(
                measurements=[*_effect(audits.KEPT), json.loads(json.dumps(one))]
            ),
        )
        assert printed(str(folder))[0] == code


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, None),
        ({"build": {"tensorrt": "10.7.0"}}, "another TensorRT: the verdict is of 10.3.0, and this is 10.7.0"),
        ({"verdict": "FAIL"}, "another answer of the board: the verdict is of PASS, and this is FAIL"),
        ({"board": {"model": "Thor"}}, "another board: the verdict is of Orin, and this is Thor"),
        ({"board": {"release": "R38.0"}}, "another release of Linux"),
        ({"runner": {"name": "trtexec"}}, "another runner: the verdict is of tensorrt, and this is trtexec"),
        ({"asked": {"base_digest": "9" * 16}}, "another base: the verdict is of 1111111111111111"),
        ({"asked": {"adapter_digests": ["9" * 16]}}, "another adapter"),
        ({"asked": {"file_digest": "9" * 16}}, "another file"),
    ],
)
def test_what_changed_on_the_board_is_named(merged: Path, changed: dict[str, Any], said: str | None) -> None:
    later = merged.parent / "verify.json"
    later.write_text(json.dumps(audits.verified(store.read(merged), **changed)), "utf-8")
    code, text = printed(str(merged), "--verified", str(later))
    assert code == (0 if said is None else 1), text
    assert said is None or f"int8 merge-quantize: the verdict lapses: {said}" in text


def test_a_board_of_another_case_is_an_error(merged: Path) -> None:
    later = merged.parent / "verify.json"
    later.write_text(json.dumps(audits.verified(store.read(merged), asked={"scheme": "fp8"})), "utf-8")
    with pytest.raises(UserError, match="fp8 merge-quantize, which is no case"):
        qcheck.audit(merged, verified=later)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, None),
        ({"tensorrt": "10.7.0"}, "another TensorRT"),
        ({"sha256": "9" * 64}, "the engine unet.engine was changed"),
        ({"digest": "9" * 64}, "the engine unet.engine was built from another file"),
    ],
)
def test_an_engine_of_other_making_is_named(merged: Path, changed: dict[str, Any], said: str | None) -> None:
    engine, parts = merged.parent / "unet.engine", (audits.FILE, f"{audits.FILE}.data")
    engine.write_bytes(b"an engine")
    own = "".join(audits.digest_of_bytes(audits.BYTES[name]) for name in parts)
    record = {"sha256": audits.digest_of_bytes(b"an engine"), "digest": audits.digest_of_bytes(own.encode())}
    record |= {"tensorrt": "10.3.0", "board": "Orin", "mode": "MAXN"}
    engine.with_name("unet.engine.json").write_text(json.dumps(record | changed), "utf-8")
    code, text = printed(str(merged), "--engine", str(engine))
    assert code == (0 if said is None else 1), text
    assert said is None or f"int8 merge-quantize: the verdict lapses: {said}" in text


def test_a_page_is_not_called_changed_where_the_board_verified_another_case(merged: Path, tmp_path: Path) -> None:
    sweep, later = tmp_path / "fleet", tmp_path / "verify.json"
    shutil.copytree(merged, sweep / "pages" / "flat-1")
    later.write_text(json.dumps(audits.verified(store.read(merged), asked={"scheme": "fp8"})), "utf-8")
    with pytest.raises(UserError, match="fp8 merge-quantize, which is no case"):
        qcheck.audit(sweep, verified=later)
