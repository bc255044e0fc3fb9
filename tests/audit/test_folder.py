"""An audit sees what was edited, whoever edited it, and says of a sound report that it is."""

import base64
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qcheck
from benchmarks.audit import edits
from qcheck.core import digest, places
from qcheck.core.errors import UserError
from qcheck.core.folder import rewrite
from qcheck.core.values import DATA
from qcheck.judge import fleet
from qcheck.measure import endpoint
from qcheck.measure.doubt import doubt
from qcheck.report import fleet as fleet_report
from qcheck.report import seal, statement
from qcheck.result import store
from qcheck.result.fleet import Row, Store
from qcheck.result.report import Case, Report
from qcheck.spec import command, limits
from qcheck.tasks import audit as audit_rows
from qcheck.tasks import basis, decide, trust
from tests import audits
from tests.audit.conftest import PASSING
from tests.audits import Change, printed, resealed


def test_a_folder_that_nobody_touched_is_sound(sound: Path) -> None:
    code, text = printed(str(sound))
    assert code == 0, text
    assert "8 of 8 files are as they were written" in text
    result = json.loads(printed(str(sound / "report.json"), "--json")[1])
    assert [(case["stated"], case["evidence"]) for case in result["folders"][0]["cases"]] == [
        ("PASS", "PASS"),
        ("NEEDS-QAT", "NEEDS-QAT"),
    ]


def test_a_verdict_that_was_edited_is_named_whether_or_not_the_seal_was_renewed(sound: Path) -> None:
    def flattered(content: dict[str, Any]) -> None:
        content["cases"][1]["verdict"] = "PASS"

    path = sound / "report.json"
    path.write_text(path.read_text("utf-8").replace('"NEEDS-QAT"', '"PASS"'), "utf-8")
    code, text = printed(str(sound))
    assert code == 1
    assert "the report says PASS, the evidence gives NEEDS-QAT" in text
    assert "changed: report.json" in text
    code, text = printed(str(resealed(sound, flattered)))
    assert code == 1
    assert "the report says PASS, the evidence gives NEEDS-QAT" in text
    assert "changed:" not in text


def _first(content: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in content["cases"][0]["measurements"] if one["name"] == name)


def _changes() -> dict[str, tuple[Change, str]]:
    def at(name: str, key: str, value: Any) -> Change:
        return lambda content: _first(content, name).update({key: value})

    def of_case(key: str, value: Any) -> Change:
        return lambda content: content["cases"][0].update({key: value})

    def kept(content: dict[str, Any]) -> None:
        content["cases"][0]["basis"]["samples"][0]["rows"][0][0] = 0.5

    def unfit(content: dict[str, Any]) -> None:
        content["cases"][0]["basis"]["energies"]["f1"].pop()

    def alone(content: dict[str, Any]) -> None:
        del content["cases"][0]["basis"]["samples"][0]["rows"][1:]

    def alone_in_energy(content: dict[str, Any]) -> None:
        for rows in content["cases"][0]["basis"]["energies"].values():
            del rows[1:]

    def infinite(content: dict[str, Any]) -> None:
        energies = content["cases"][0]["basis"]["energies"]
        energies["kept"][0], energies["effect"][0] = ([value * 1e308 for value in energies["effect"][0]] for _ in "ab")

    def looser(content: dict[str, Any]) -> None:
        content["spec"]["limits"]["alpha"] = 0.02

    return {
        "value": (at("effect_survival", "value", 1.1), "effect_survival (adapted): value is 1.1 in the report"),
        "bound": (at("endpoint_error", "high", 0.1), "high is 0.1 in the report"),
        "p-value": (at("effect_survival", "p", 0.5), "p is 0.5 in the report"),
        "limit": (at("effect_survival", "limit", {"low": 0.1, "high": 9.0}), "limit is 0.1 .. 9 in the report"),
        "status": (at("effect_survival", "status", "undecided"), "status is undecided in the report"),
        "detectable loss": (
            of_case("trust", {"detectable_loss": 0.01, "rerun_stability": 1.0}),
            "detectable loss is 0.01",
        ),
        "reruns": (
            lambda content: content["cases"][0]["trust"].update(rerun_stability=0.5),
            "0.5 of reruns end alike in the report, and the probes give 1",
        ),
        "no trust": (of_case("trust", None), "how far the verdict can be trusted is not in the report"),
        "without a limit": (at("psnr", "value", 50.0), "psnr (adapted): value is 50 in the report"),
        "classifier": (at("classifier_auc", "low", 0.5), "classifier_auc (adapted): low is 0.5"),
        "worst prompt": (at("worst_prompt", "value", 0.0), "worst_prompt (adapted): value is 0 in the report"),
        "a probe": (kept, "effect_survival (adapted): value is"),
        "fewer numbers": (unfit, "the numbers of its probes do not fit together"),
        "energies beyond floats": (infinite, ""),
        "one probe": (alone, "of fewer than 2 probes"),
        "one probe's energies": (alone_in_energy, "of fewer than 2 probes"),
        "no numbers": (of_case("basis", None), "the report keeps no numbers of its probes"),
        "number of probes": (of_case("probes_used", 7), "probes_used is 7, and numbers of 8 probes are kept"),
        "what decided": (of_case("deciding", None), "and the report says None"),
        "limits": (looser, "the digest of the limits is"),
        "twice": (
            lambda content: content["cases"][0]["measurements"].insert(0, _first(content, "psnr") | {"value": 99.0}),
            "psnr (adapted) is there 2 times",
        ),
        "made up": (
            lambda content: content["cases"][0]["measurements"].append(
                _first(content, "psnr") | {"name": "ssim", "value": 0.9}
            ),
            "ssim (adapted) is 0.9 in the report, and no number of a probe gives it",
        ),
        "taken out": (
            lambda content: content["cases"][0]["measurements"].remove(_first(content, "export_control")),
            "export_control (adapted) is not in the report",
        ),
    }


@pytest.mark.parametrize("name", [*_changes()])
def test_a_number_that_does_not_follow_from_the_probes_is_named(sound: Path, name: str) -> None:
    change, said = _changes()[name]
    code, text = printed(str(resealed(sound, change)))
    assert code == 1, text
    assert said in text.replace("\n", " "), text


@pytest.mark.parametrize(("stated", "code"), [(0.97, 0), (0.96, 0), (0.95, 1), (None, 1)])
def test_two_reruns_of_a_hundred_may_differ_between_machines(
    stated: float | None, code: int, sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust, "rerun_stability", lambda *_: 0.98)

    def changed(content: dict[str, Any]) -> None:
        for case in content["cases"]:
            case["trust"]["rerun_stability"] = stated

    assert printed(str(resealed(sound, changed)))[0] == code


def test_a_reference_that_is_not_finite_is_judged_again_by_its_health(tmp_path: Path) -> None:
    """There are no outputs to compare then, and nothing to trust."""
    health = endpoint.reference_health(np.ones((8, 4)), np.full((8, 4), np.nan))
    verdict = decide.broken(audits.SPEC.bounds.computing("float16"), health)
    measured = [one.model_dump() for one in verdict.measurements]
    kept = {"basis": basis.of_broken(health).model_dump(), "trust": None, "measurements": measured}
    deciding = None if verdict.deciding is None else verdict.deciding.model_dump()
    case = audits.case(0.01) | kept | {"verdict": verdict.outcome, "deciding": deciding}
    folder = audits.folder(tmp_path / "out", audits.report(case))
    assert printed(str(folder))[0] == 0, printed(str(folder))[1]
    trusted = {"detectable_loss": 0.1, "rerun_stability": 1.0}
    resealed(folder, lambda content: content["cases"][0].update(trust=trusted))
    assert "how far the verdict can be trusted is in the report" in printed(str(folder))[1]


def test_a_check_that_stopped_while_the_evidence_was_open_is_named(tmp_path: Path) -> None:
    open_case = audits.case(0.52)
    assert open_case["verdict"] == "INCONCLUSIVE"
    longer = audits.SPEC.changed(max_probes=16)
    folder = audits.folder(tmp_path / "out", audits.report(open_case, spec=longer))
    code, text = printed(str(folder))
    assert (code, "the check did not go on to 16" in text) == (1, True)
    assert qcheck.audit(audits.folder(tmp_path / "whole", audits.report(open_case))).code == 0


def test_every_random_edit_of_a_byte_is_found(sound: Path) -> None:
    made = list(edits(sound, 50, seed=1))
    assert [edit for edit in made if not edit.found] == []
    assert len({edit.name for edit in made}) == 10
    assert qcheck.audit(sound).code == 0


@pytest.mark.parametrize(
    "changed", [lambda text: text[:-1] + b" ", lambda text: text[:-1], lambda text: text + text[-90:]]
)
def test_digests_that_are_not_as_they_are_written_are_changed(sound: Path, changed: Callable[[bytes], bytes]) -> None:
    path = sound / "SHA256SUMS"
    path.write_bytes(changed(path.read_bytes()))
    result = qcheck.audit(sound)
    assert (result.code, "SHA256SUMS" in result.folders[0].changed) == (2, True)


def test_a_file_that_is_gone_is_missing_and_one_that_was_added_is_vouched_for_by_nobody(sound: Path) -> None:
    (sound / "notes.txt").write_text("mine")
    code, text = printed(str(sound))
    assert (code, "in no digest: notes.txt" in text) == (0, True)
    for path in sorted(path for path in sound.rglob("*") if path.is_file() and path.name != "notes.txt"):
        content = path.read_bytes()
        path.unlink()
        name = path.relative_to(sound).as_posix()
        if name == "report.json":
            with pytest.raises(UserError, match="No such file"):
                qcheck.audit(sound)
        else:
            result = qcheck.audit(sound)
            assert (result.code, name in result.folders[0].missing) == (2, True), name
        path.write_bytes(content)


def test_a_report_that_is_none_any_more_says_that_it_was_changed(sound: Path) -> None:
    (sound / "report.json").write_bytes((sound / "report.json").read_bytes()[:-9])
    with pytest.raises(UserError, match="was changed after the check"):
        qcheck.audit(sound)


def test_another_file_for_the_board_makes_the_verdict_lapse_even_with_a_seal_of_its_own(sound: Path) -> None:
    (sound / audits.FILE).write_bytes(b"another graph")
    text = printed(str(resealed(sound, lambda _: None)))[1]
    assert f"int8 merge-quantize: the verdict lapses: {audits.FILE} was changed" in text
    assert f"changed: {audits.FILE}" in text  # the manifest beside it has another digest
    assert "int8-all merge-quantize: the verdict lapses" not in text


def test_a_file_of_another_tool_is_looked_at_where_it_lies(tmp_path: Path) -> None:
    elsewhere = tmp_path / "theirs.onnx"
    elsewhere.write_bytes(b"a graph")
    digests = {str(elsewhere): audits.digest_of_bytes(b"a graph")}
    file = PASSING["artifact"][0] | {
        "path": str(elsewhere),
        "sha256": digests,
        "digest": digest.joined(digests.values()),
    }
    report = audits.report(PASSING | {"quantized_layers": None, "order": "as given", "artifact": [file]})
    folder = audits.folder(tmp_path / "out", report)
    assert qcheck.audit(folder).folders[0].cases[0].lapsed == []
    elsewhere.write_bytes(b"another graph")
    (lapsed,) = qcheck.audit(folder).folders[0].cases[0].lapsed
    assert lapsed.startswith(f"{elsewhere} was changed")


@pytest.mark.parametrize(
    ("others", "whole"),
    [({}, True), ({"w1.bin": "1" * 64, "w2.bin": "2" * 64}, True), ({"adapter.safetensors": "3" * 64}, False)],
    ids=["own", "tensors in many files", "an adapter beside it"],
)
def test_the_digest_of_a_file_is_held_against_those_of_its_parts(
    sound: Path, others: dict[str, str], whole: bool
) -> None:
    def given(content: dict[str, Any]) -> None:
        file = content["cases"][0]["artifact"][0]
        file["sha256"] |= others
        file["digest"] = digest.joined(file["sha256"].values()) if whole else file["digest"]

    def forged(content: dict[str, Any]) -> None:
        content["cases"][0]["artifact"][0]["digest"] = "9" * 16

    (sound / audits.MANIFEST).unlink()
    assert qcheck.audit(resealed(sound, given)).code == 0
    assert "its digest in the report is 9999999999999999" in printed(str(resealed(sound, forged)))[1]


def test_what_is_no_digest_is_named(sound: Path) -> None:
    def odd(content: dict[str, Any]) -> None:
        content["cases"][0]["artifact"][0]["sha256"]["elsewhere.bin"] = "x" * 64

    code, text = printed(str(resealed(sound, odd)))
    assert code == 1
    assert "what the report gives for its SHA-256 is none" in text


def test_rendering_again_vouches_for_what_was_rendered_alone(sound: Path) -> None:
    (sound / "contact.png").write_bytes(b"another picture")
    (sound / "pictures/f0-1.webp").write_bytes(b"another picture")
    contents = {"report.html": b"rendered again"}
    rewrite(sound, {**contents, **seal.renewed(store.read(sound), sound, contents)})
    (result,) = qcheck.audit(sound).folders
    assert (result.changed, result.added) == (["pictures/f0-1.webp"], ["contact.png"])


def _own(folder: Path, **changed: Any) -> Path:
    """Limits of a recipient: the default ones but for what is ``changed``."""
    path = folder / "ours.toml"
    path.write_text(command.text(limits.find("default").model_copy(update=changed)), "utf-8")
    return path


def test_the_recipients_limits_judge_the_same_evidence(sound: Path, tmp_path: Path) -> None:
    assert printed(str(sound), "--limits", "default")[0] == 0
    strict = [
        gate.model_copy(update={"low": 1.5, "high": 2.0}) if gate.name == "effect_survival" else gate
        for gate in limits.find("default").gates
    ]
    code, text = printed(str(sound), "--limits", str(_own(tmp_path, gates=strict)))
    assert code == 1
    assert "int8 merge-quantize: the report says PASS, the limits given give NEEDS-QAT" in text
    (case, _) = qcheck.audit(sound, limits=limits.find("default").model_copy(update={"gates": strict})).folders[0].cases
    assert (case.stated, case.evidence, case.given, case.differences) == ("PASS", "PASS", "NEEDS-QAT", [])


def test_limits_that_ask_for_more_probes_are_open(sound: Path, tmp_path: Path) -> None:
    code, text = printed(str(sound), "--limits", str(_own(tmp_path, looks=(16, 32))))
    assert (code, "8 probes were run, and the first look of limits 'ours' is at 16" in text) == (1, True)


def test_a_control_that_nobody_ran_is_not_measured(sound: Path) -> None:
    gates = [
        gate.model_copy(update={"high": 0.3}) if gate.name == "weakened_survival" else gate
        for gate in limits.find("default").gates
    ]
    (case, _) = qcheck.audit(sound, limits=limits.find("default").model_copy(update={"gates": gates})).folders[0].cases
    assert case.given == "INVALID"
    assert "weakened_survival (adapted) was not measured" in case.reasons[0]


SURVIVAL = ("effect_survival", "adapted")


def _row(report: Report, case: Case, digest: str) -> Row:
    """The row of a case in a sweep whose page is flat-1."""
    bounds = report.spec.bounds
    return Row(
        case=digest,
        adapter=" + ".join(use.source for use in report.spec.adapters),
        weight=report.spec.adapters[0].weight,
        base=report.spec.base,
        scheme=case.scheme,
        order=case.order,
        target=report.spec.target.name,
        survival=next((m.value for m in case.measurements if (m.name, m.arm) == SURVIVAL), None),
        verdict=case.verdict,
        deciding=case.decided,
        reasons=case.reasons,
        probes=case.probes_used,
        doubt=doubt(case.measurements, case.probes_used, bounds.alpha, len(bounds.looks)),
        page="pages/flat-1/report.html",
    )


def test_the_pages_of_a_sweep_are_audited_and_their_rows_beside_them(sound: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "fleet"
    shutil.copytree(sound, sweep / "pages" / "flat-1")
    shutil.copytree(sound, sweep / "pages" / "flat-2")
    report = store.read(sound)
    for place, case in enumerate(report.cases):
        Store(places.at(sweep)).write(_row(report, case, str(place)))
    names = ["cases/0.json", "cases/1.json", "pages/flat-1/SHA256SUMS", "pages/flat-2/SHA256SUMS"]
    seal.of_sweep(places.at(sweep), names)
    assert qcheck.audit(sweep).code == 0
    broken = report.cases[0].measurements[0].model_copy(update={"value": math.nan})
    assert audit_rows._text(broken) == audit_rows._text(broken.model_copy())
    for changed, said in (
        ({"verdict": "PASS"}, "says verdict PASS, and its report NEEDS-QAT"),
        ({"probes": 16}, "says number of probes 16, and its report 8"),
        ({"reasons": ["fine"]}, "gives other reasons"),
        ({"doubt": 0.01}, "has a p-value of 0.01"),
        ({"scheme": "fp8"}, "names a report that has no such case"),
        ({"survival": 0.5}, "has a survival of 0.5"),
        ({"adapter": "other.safetensors"}, "says adapter other.safetensors"),
        ({"weight": 3.0}, "says weight 3.0"),
        ({"base": "/x"}, "says base /x"),
        ({"target": "jetson-thor"}, "says target jetson-thor"),
        ({"page": None}, "has no page that says so"),
        ({"page": None, "stage": "forecast", "verdict": "PASS"}, "has no page that says so"),
        ({"page": "pages/gone/report.html"}, "has no page that says so"),
    ):
        row = _row(report, report.cases[1], "1").model_copy(update=changed)
        (sweep / "cases" / "1.json").write_text(row.to_json(), "utf-8")
        code, text = printed(str(sweep))
        assert (code, said in text) == (1, True), text
    Store(places.at(sweep)).forget(["1"])
    (sweep / "pages/flat-2/report.html").write_bytes(b"changed")
    audited = qcheck.audit(sweep)
    assert [folder.code for folder in audited.folders] == [2, 0, 2]
    assert audited.folders[0].missing == ["cases/1.json"]


def test_every_file_of_a_sweep_s_own_is_held_against_its_digest(sound: Path, tmp_path: Path) -> None:
    sweep, report = tmp_path / "fleet", store.read(sound)
    shutil.copytree(sound, sweep / "pages" / "flat-1")
    held = Store(places.at(sweep))
    held.mark()
    rows = [_row(report, case, str(place)) for place, case in enumerate(report.cases)]
    for row in rows:
        held.write(row)
    lost = {"case": "2", "stage": "forecast", "verdict": "NEEDS-QAT", "page": None}
    forecast = rows[0].model_copy(update=lost)
    held.write(forecast)
    every = [*rows, forecast]
    held.index(every)
    files = fleet_report.write(fleet.summary(every), held.files)
    seal.of_sweep(held.files, [*files, *held.names(every), "pages/removed/SHA256SUMS"])
    audited = qcheck.audit(sweep)
    assert (audited.code, audited.folders[0].unaudited) == (0, 1)
    assert "1 rows have no page" in printed(str(sweep))[1]
    own = sorted(path for path in sweep.rglob("*") if path.is_file() and "pages" not in path.parts)
    assert len(own) == 3 + 2 + 5 + ("index.parquet" in files)
    for path in own:
        content = path.read_bytes()
        path.write_bytes(content.replace(b"a", b"b", 1))
        name = path.relative_to(sweep).as_posix()
        found = qcheck.audit(sweep)
        assert found.code != 0, name
        assert name in found.folders[0].changed or path.name == "SHA256SUMS"  # there another file is called changed
        path.unlink()
        assert name in qcheck.audit(sweep).folders[0].missing
        path.write_bytes(content)
    shutil.rmtree(sweep / "pages")
    assert qcheck.audit(sweep).code == 1
    (sweep / "SHA256SUMS").unlink()
    (sweep / "cases" / "0.json").write_text("{")
    assert qcheck.audit(sweep).folders[0].changed == ["cases/0.json"]


def test_limits_that_give_another_verdict_are_told_from_one_that_was_forged(sound: Path, tmp_path: Path) -> None:
    own = audits.report(PASSING).spec.bounds
    strict = tmp_path / "strict.toml"
    strict.write_text((DATA / "limits" / f"{own.name}.toml").read_text("utf-8").replace("low = 0.8", "low = 0.999", 1))
    code, text = printed(str(sound), "--limits", str(strict))
    assert code == 1
    assert "sound by its own limits, and limits 'strict' give another verdict" in text


def test_what_is_no_report_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a report nor a sweep"):
        qcheck.audit(tmp_path)
    (tmp_path / "pages").mkdir()
    with pytest.raises(UserError, match="has neither rows nor pages"):
        qcheck.audit(tmp_path)


@pytest.mark.parametrize(
    ("changed", "result", "place"),
    [
        ({}, "PASSED", "passedTests"),
        ({"warnings": ["look"]}, "WARNED", "warnedTests"),
        ({"verdict": "INCONCLUSIVE"}, "FAILED", "failedTests"),
        ({"verdict": "NEEDS-QAT"}, "FAILED", "failedTests"),
    ],
)
def test_the_statement_says_of_the_files_for_the_board_what_the_report_says(
    changed: dict[str, Any], result: str, place: str
) -> None:
    text = statement.render(audits.report(PASSING | changed), {"report.json": "a" * 64})
    content = json.loads(text)
    assert content["_type"] == "https://in-toto.io/Statement/v1"
    assert content["predicateType"] == "https://in-toto.io/attestation/test-result/v0.1"
    names = [audits.FILE, f"{audits.FILE}.data"]
    digests = [{"sha256": audits.digest_of_bytes(audits.BYTES[name])} for name in names]
    assert [(one["name"], one["digest"]) for one in content["subject"]] == [*zip(names, digests, strict=True)]
    predicate = content["predicate"]
    assert predicate["result"] == result
    lists = {name: predicate[name] for name in ("passedTests", "warnedTests", "failedTests")}
    assert lists == {key: [] for key in lists} | {place: ["int8 merge-quantize"]}
    assert predicate["configuration"][0]["digest"] == {"sha256": "a" * 64}


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A private key of ECDSA, and beside it the public one, by openssl."""
    pytest.importorskip("cryptography")
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    private = tmp_path / "key.pem"
    subprocess.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(private)], check=True)
    openssl("ec", "-in", str(private), "-pubout", "-out", str(tmp_path / "pub.pem"))
    return private


def openssl(*words: str) -> bytes:
    return subprocess.run(["openssl", *words], capture_output=True, check=True).stdout


@pytest.mark.parametrize("text", [False, True], ids=["raw", "base64"])
def test_a_signature_of_the_statement_vouches_for_every_file(sound: Path, key: Path, text: bool) -> None:
    file, public = key.with_name("report.sig"), key.with_name("pub.pem")
    raw = openssl("dgst", "-sha256", "-sign", str(key), str(sound / "report.intoto.json"))
    file.write_bytes(base64.b64encode(raw) + b"\n" if text else raw)
    words = (str(sound), "--signature", str(file), "--public-key", str(public))
    assert printed(*words)[0] == 0
    (sound / "pictures/f0-1.webp").write_bytes(b"another picture")
    seal.write(store.read(sound), sound)  # by someone who knows how, and has no key
    code, said = printed(*words)
    assert (code, "not signed by the key given" in said) == (2, True)


def test_half_a_signature_is_an_error(sound: Path, key: Path) -> None:
    with pytest.raises(UserError, match="--signature is given alone"):
        qcheck.audit(sound, signature=key)
    with pytest.raises(UserError, match="no public key in PEM"):
        qcheck.audit(sound, signature=key, public_key=sound / "report.md")
    with pytest.raises(UserError, match="No such file"):
        qcheck.audit(sound, signature=sound / "absent", public_key=key.with_name("pub.pem"))


LIGHT = """
import sys
class Block:
    def find_spec(self, name, *_):
        if name.split(".")[0] in {blocked}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
import qcheck
print(qcheck.audit(sys.argv[1]).code)
"""


def test_an_audit_needs_no_heavy_library(sound: Path) -> None:
    blocked = {"torch", "diffusers", "transformers", "peft", "onnx", "onnx_ir", "onnxruntime", "scipy", "PIL", "jinja2"}
    code = LIGHT.replace("{blocked}", repr(blocked))
    done = subprocess.run([sys.executable, "-c", code, str(sound)], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"
