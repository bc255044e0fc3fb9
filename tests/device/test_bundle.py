"""A bundle of the demo, verified as the board would: by its own verify.pyz, in a Python that has numpy alone."""

import ast
import json
import os
import random
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from qcheck.cli.app import app
from qcheck.core.errors import UserError
from qcheck.device import bundle as bundles
from qcheck.device import effect, gates, replay, tensors
from qcheck.device.backends import OnnxBackend
from qcheck.device.bundle import Bundle
from qcheck.device.errors import CannotVerify
from qcheck.device.tensors import Tensor
from qcheck.device.verify import Outcome, Verification
from qcheck.tasks import pack
from tests.conftest import Finished, run
from tests.device.conftest import Bundled, rewritten, signed


def verified(folder: Path, work: Path, **options: Any) -> Outcome:
    """The bundle through ONNX Runtime, in this process."""
    return Verification(bundles.read(folder), OnnxBackend(), work, lambda _: None, **options).run()


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of results that whole verifications share."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def outcome(bundled: Bundled, work: Path) -> Outcome:
    """The whole bundle, base arm included."""
    return verified(bundled.folder, work)


def test_the_bundle_is_small_whole_and_says_what_it_is(bundled: Bundled) -> None:
    names = {path.relative_to(bundled.folder).as_posix() for path in bundled.folder.rglob("*") if path.is_file()}
    assert {one["path"] for one in bundled.told["files"]} == names - {"SHA256SUMS"}
    assert sum(one["bytes"] for one in bundled.told["files"]) < 30e6
    assert (bundled.told["verdict"], bundled.told["scheme"], bundled.told["probes"]) == ("PASS", "int8", 8)
    roles = {one["name"]: one["role"] for one in bundled.facts["components"]}
    assert roles == {
        "unet": "denoiser",
        "unet.base": "base",
        "unet.twin": "twin",
        "text_encoder": "encoder",
        "vae_decoder": "decoder",
    }
    assert str(Path.home()) not in (bundled.folder / "bundle.json").read_text("utf-8")
    checked = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=bundled.folder, check=False)
    assert checked.returncode == 0


def test_the_hosts_own_outputs_give_the_hosts_own_numbers(bundled: Bundled) -> None:
    bundle = bundles.read(bundled.folder)
    arms = [[bundle.outputs(probe, arm) for probe in range(bundle.probes)] for arm in ("f0", "f1", "q0", "q1")]
    e = effect.energies(*arms)
    expected = {(one["name"], one["arm"]): one for one in bundle.facts["expected"]}
    every = {(gate["name"], gate["arm"]): gates.Gate(**gate) for gate in bundle.facts["limits"]["gates"]}
    for name, values in (("effect_survival", effect.survival(e)), ("stratum_survival", effect.stratum_survival(e))):
        here = gates.measure(values, every[name, "adapted"], bundle.facts["limits"]["alpha"])
        there = expected[name, "adapted"]
        assert (here.value, here.low, here.high) == pytest.approx(
            (there["value"], there["low"], there["high"]), rel=1e-6
        )


def test_the_files_verdict_is_the_hosts_and_its_numbers_are_within_rounding(bundled: Bundled, outcome: Outcome) -> None:
    assert (outcome.verdict, bundled.facts["asked"]["verdict"]) == ("PASS", "PASS")
    here = {(one.name, one.arm): one for one in outcome.measurements}
    for there in bundled.facts["expected"]:
        found = here[there["name"], there["arm"]]
        half = max(there["high"] - there["value"], 0.01)  # float16 flips codes: another draw of the same error
        assert found.value == pytest.approx(there["value"], abs=half), found.name
    assert here["picture_error", "adapted"].value < 1e-3
    assert here["embedding_cosine", "adapted"].value > 0.9999
    assert set(outcome.missing) == {"latent_kl_excess", "lattice_amplitude", "over_smoothing"}


def test_a_free_run_by_the_solver_as_data_is_the_hosts(bundled: Bundled, tmp_path: Path) -> None:
    bundle = bundles.read(bundled.folder)
    twin = bundle.component("twin")
    assert twin is not None
    assert bundle.solver is not None
    with_twin = replace(bundle, components=(_as_denoiser(bundle, twin),))
    runner = OnnxBackend().open(twin).runner
    (final, *_) = replay.free(_only_first(with_twin), bundle.solver, runner, "adapted", replay.Results(tmp_path), print)
    expected = bundle.final(0, "f1")
    assert np.linalg.norm(final - expected) / np.linalg.norm(expected) < 0.02  # f1 in float16, beside f1 in float32


def _as_denoiser(bundle: Bundle, twin: bundles.Component) -> bundles.Component:
    return bundles.Component(twin.name, "denoiser", twin.path, twin.compute, twin.inputs, twin.outputs, ())


def _only_first(bundle: Bundle) -> Bundle:
    facts = {**bundle.facts, "probes": bundle.facts["probes"][:1]}
    return replace(bundle, facts=facts)


def test_any_changed_byte_is_refused_by_name(bundle_copy: Path) -> None:
    draws = random.Random(0)  # noqa: S311
    files = sorted(path for path in bundle_copy.rglob("*") if path.is_file())
    weights = [path.stat().st_size for path in files]
    largest = [draws.choices(files, weights)[0] for _ in range(10)]
    for path in [*largest, *draws.sample(files, 20), bundle_copy / "SHA256SUMS", bundle_copy / "bundle.json"]:
        content = path.read_bytes()
        place, value = draws.randrange(len(content)), draws.randrange(1, 256)
        rewritten(path, content[:place] + bytes([content[place] ^ value]) + content[place + 1 :])
        with pytest.raises(CannotVerify, match=r"changed|no bundle|cannot be read"):
            bundles.read(bundle_copy)
        rewritten(path, content)
    bundles.read(bundle_copy)


def test_a_transfer_that_broke_off_is_refused(bundle_copy: Path) -> None:
    (bundle_copy / "reference" / "007" / "q1.final.bin").unlink()
    with pytest.raises(CannotVerify, match=r"q1\.final\.bin cannot be read: No such file") as caught:
        bundles.read(bundle_copy)
    assert caught.value.fix == bundles.AGAIN
    with pytest.raises(CannotVerify, match="is no bundle"):
        bundles.read(bundle_copy / "model")


def _edited(folder: Path, **changes: Any) -> None:
    """Change bundle.json as someone would who knows the digests."""
    facts = json.loads((folder / "bundle.json").read_text("utf-8")) | changes
    rewritten(folder / "bundle.json", json.dumps(facts).encode())
    signed(folder)


def test_digests_that_were_cut_and_files_that_were_added_are_refused(bundle_copy: Path) -> None:
    sums = (bundle_copy / "SHA256SUMS").read_bytes()
    rewritten(bundle_copy / "SHA256SUMS", b"".join(sums.splitlines(keepends=True)[:-20]))
    with pytest.raises(CannotVerify, match="is not of this bundle: SHA256SUMS has no digest of it"):
        bundles.read(bundle_copy)
    rewritten(bundle_copy / "SHA256SUMS", sums)
    (bundle_copy / "model" / "left-over.onnx").write_bytes(b"older")
    with pytest.raises(CannotVerify, match=r"left-over\.onnx is not of this bundle"):
        bundles.read(bundle_copy)


@pytest.mark.parametrize("change", [{"components": 7}, {"solver": {"timesteps": "x"}}, {"components": [{"name": 1}]}])
def test_a_signed_bundle_that_says_nonsense_is_one_error(bundle_copy: Path, change: dict[str, Any]) -> None:
    _edited(bundle_copy, **change)
    with pytest.raises(CannotVerify, match="as this verifier reads it"):
        bundles.read(bundle_copy)


def test_a_newer_schema_is_refused(bundle_copy: Path) -> None:
    _edited(bundle_copy, schema="qcheck-bundle/2")
    with pytest.raises(CannotVerify, match="is of the schema 'qcheck-bundle/2', and this verifier reads"):
        bundles.read(bundle_copy)


def test_a_size_that_no_input_has_is_refused(bundle_copy: Path, tmp_path: Path) -> None:
    sample = bundle_copy / "probes" / "003" / "sample.bin"
    rewritten(sample, sample.read_bytes() * 2)
    signed(bundle_copy)
    with pytest.raises(CannotVerify, match=r"sample\.bin has \d+ bytes, and 8 of sample float16\[2, 4, 16, 16\] have"):
        verified(bundle_copy, tmp_path)


def test_outputs_that_are_not_finite_fail(small: Path, tmp_path: Path) -> None:
    opened = bundles.read(small)
    verification = Verification(opened, OnnxBackend(), tmp_path, lambda _: None)
    results = replay.Results(verification.results(opened.denoiser, OnnxBackend().open(opened.denoiser)))
    broken = np.full((opened.strata, *opened.shape), np.nan, np.float32)
    results.obtain("forced-000", lambda: broken)
    found = verified(small, tmp_path)
    assert found.verdict == "FAIL"
    assert "effect_survival (adapted) is not finite" in found.reasons[0]
    assert np.isnan(found.explained["host_gap_db"])


def test_results_of_another_bundle_are_not_taken(small: Path, bundled: Bundled, tmp_path: Path) -> None:
    """Bundles that are exported to the same place one after the other share the folder of results."""
    folders = set()
    for folder in (small, bundled.folder):
        opened = bundles.read(folder)
        one = OnnxBackend().open(opened.denoiser)
        folders.add(Verification(opened, OnnxBackend(), tmp_path, lambda _: None).results(opened.denoiser, one))
    assert len(folders) == 2


@pytest.mark.parametrize(
    "change", [{"name": "../unet"}, {"file": "model/../../../etc/passwd"}, {"file": "/etc/passwd"}]
)
def test_a_bundle_that_names_files_elsewhere_is_refused(bundle_copy: Path, change: dict[str, str]) -> None:
    facts = json.loads((bundle_copy / "bundle.json").read_text("utf-8"))
    facts["components"][0].update(change)
    _edited(bundle_copy, components=facts["components"])
    with pytest.raises(CannotVerify, match="which is no plain name of a file"):
        bundles.read(bundle_copy)


def test_a_component_in_bfloat16_is_not_measured_on_a_processor(bundled: Bundled, tmp_path: Path) -> None:
    """And where the denoiser itself is one, nothing can be verified."""
    bundle = bundles.read(bundled.folder)
    verification = Verification(bundle, OnnxBackend(), tmp_path, lambda _: None)
    decoder = bundle.component("decoder")
    assert decoder is not None
    described, errors, missing = verification._other(replace(decoder, compute="bfloat16"), verification.gates())
    assert (described, errors) == ([], [])
    assert "vae_decoder computes in bfloat16, for which ONNX Runtime has no kernels" in missing["vae_decoder"]
    with pytest.raises(CannotVerify, match="unet computes in bfloat16"):
        OnnxBackend().open(replace(bundle.denoiser, compute="bfloat16"))


def test_a_file_that_lost_its_adapter_fails(small: Path, tmp_path: Path) -> None:
    model = small / "model"
    for path in (model / "unet.base").iterdir():
        rewritten(model / "unet" / path.name, path.read_bytes())
    signed(small)
    found = verified(small, tmp_path)
    assert found.verdict == "FAIL"
    assert any("more than a fifth of what the LoRA does is lost" in reason for reason in found.reasons)
    assert found.missing["endpoint_error"] == "left out"


def test_the_verifier_knows_numpy_alone_and_pythons_syntax_of_3_8(bundled: Bundled) -> None:
    allowed = {*sys.stdlib_module_names, "numpy"}
    with zipfile.ZipFile(bundled.folder / "verify.pyz") as archive:
        for name in archive.namelist():
            tree = ast.parse(archive.read(name), feature_version=(3, 8))
            for node in ast.walk(tree):
                absolute = isinstance(node, ast.ImportFrom) and node.level == 0 and [node.module or ""]
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else absolute or []
                roots = {one.split(".")[0] for one in names}
                assert roots <= allowed | {"qcheck_verify", "onnxruntime"}, (name, roots)
    first, second = (bundled.folder / "verify.pyz").read_bytes(), bundled.folder.parent / "again.pyz"
    pack.verifier(second)
    assert second.read_bytes() == first


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python without site-packages but for numpy, and ONNX Runtime, which stands in for an engine."""
    return bare_python(tmp_path_factory.mktemp("bare"), ("numpy", "numpy.libs", "onnxruntime"))


def bare_python(folder: Path, packages: tuple[str, ...]) -> Path:
    """A virtual environment that has these packages of this one, and nothing else."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    only = folder / "only"
    only.mkdir()
    site = Path(np.__file__).parents[1]
    for name in packages:
        if (site / name).exists():
            (only / name).symlink_to(site / name)
    (place,) = folder.glob("lib/python3*/site-packages")
    (place / "only.pth").write_text(f"{only}\n", "utf-8")
    return folder / "bin" / "python"


def test_the_archive_verifies_alone_is_killed_and_goes_on(bundled: Bundled, outcome: Outcome, bare: Path) -> None:
    """The same numbers as in one go, with the reasons why no engine was run."""
    work = bundled.folder.with_name("killed")
    verifier = bundled.folder / "verify.pyz"
    options = ["--work", str(work), "--no-free-run", "--json"]
    command = [str(bare), "-I", str(verifier), str(bundled.folder), *options]
    environment = {**os.environ, "PATH": "/nowhere"}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment
    ) as first:
        assert first.stderr is not None
        for line in first.stderr:
            if "probe 4 of" in line:
                first.kill()
                break
    stored = {path: path.stat().st_mtime_ns for path in work.rglob("*.npy")}
    assert len(stored) >= 2
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 3, done.stderr  # a gate that was left out is not passed
    assert all(path.stat().st_mtime_ns == when for path, when in stored.items())
    found = json.loads(done.stdout)
    whole = {(one.name, one.arm): one.value for one in outcome.measurements}
    here = {(one["name"], one["arm"]): one["value"] for one in found["measurements"]}
    assert here == pytest.approx({key: whole[key] for key in here})
    assert ("effect_survival", "adapted") in here
    assert not found["runner"]["deployed"]
    assert any("no module named 'tensorrt'" in warning.lower() for warning in found["warnings"])
    assert "endpoint_error (adapted) was not measured: free runs were left out" in found["reasons"]
    assert "INCONCLUSIVE (numerics only)  int8 merge-quantize" in (work / "verify.txt").read_text("utf-8")
    assert json.loads((work / "verify.json").read_text("utf-8")) == found


def test_a_board_without_any_runner_says_so_and_what_to_do(bundled: Bundled, tmp_path: Path) -> None:
    python = bare_python(tmp_path / "none", ("numpy", "numpy.libs"))
    command = [
        str(python),
        "-I",
        str(bundled.folder / "verify.pyz"),
        str(bundled.folder),
        "--work",
        str(tmp_path / "w"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": "/nowhere"}, check=False)
    assert done.returncode == 2
    assert "nothing here can run the bundle" in done.stderr
    assert "fix:   On a Jetson run it with /usr/bin/python3" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_way_back_gives_one_report(
    bundled: Bundled, finished: Finished, tmp_path: Path, work: Path, outcome: Outcome
) -> None:
    out = tmp_path / "verify.json"
    done = run("verify", str(bundled.folder), "--runner", "onnxruntime", "-o", str(out), "--work", str(work))
    assert done.exit_code == 0, done.output
    assert "numerics only, not the deployed engine" in done.stdout
    report = Path(shutil.copytree(finished.folder, tmp_path / "report"))
    merged = run("report", "--merge", str(out), str(report))
    assert merged.exit_code == 0, merged.output
    assert "PASS on" in merged.stdout
    case = json.loads((report / "report.json").read_text("utf-8"))["cases"][0]
    assert [one["value"] for one in case["board"]["measurements"]] == pytest.approx(
        [one.value for one in outcome.measurements]
    )
    for name in ("report.md", "report.html"):
        assert "numerics only" in (report / name).read_text("utf-8")
    matrix = CliRunner().invoke(app, ["compare", str(report), str(finished.folder), "--json"])
    changes = json.loads(matrix.stdout)["changes"]
    assert [(one["name"], one["direction"]) for one in changes] == [("the board", "worse")]
    assert run("audit", str(report), "--verified", str(out)).exit_code == 0
    _changed(out, verdict="FAIL")
    assert "another answer of the board" in run("audit", str(report), "--verified", str(out)).output
    assert run("report", "--merge", str(out), str(report)).exit_code == 1
    for name in ("report.md", "report.html", "junit.xml"):
        text = (report / name).read_text("utf-8")
        assert "Ship " not in text, name
        assert "FAIL-RECIPE" in text, name
    for name, value in (("base_digest", "another"), ("weights", [0.5]), ("guidance", 7.5), ("file_digest", "another")):
        _changed(out, **{name: value})
        refused = run("report", "--merge", str(out), str(report))
        assert isinstance(refused.exception, UserError), name
        assert "the board verified another" in str(refused.exception), name
        _changed(out, **{name: bundled.facts["asked"][name]})


def _changed(out: Path, **changes: Any) -> None:
    """Change what verify.json says, or what it was asked."""
    content = json.loads(out.read_text("utf-8"))
    for name, value in changes.items():
        (content if name in content else content["asked"])[name] = value
    out.write_text(json.dumps(content), "utf-8")


def test_a_file_of_another_size_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    with path.open("wb") as stream:
        stream.truncate(1 << 40)  # a hole: it takes no room until somebody reads it
    with pytest.raises(CannotVerify, match="has 1099511627776 bytes"):
        tensors.read(path, Tensor("x", "float32", (3,)))


@pytest.mark.parametrize("dtype", [*tensors.TYPES])
def test_a_tensor_comes_back_as_it_was_written(dtype: str, tmp_path: Path) -> None:
    values = np.array([[0.0, 1.0, -2.5], [1e-3, 300.0, 1.0]], np.float32)
    raw = tensors.from_float(values, dtype)
    (tmp_path / "x.bin").write_bytes(raw.tobytes())
    back = tensors.read(tmp_path / "x.bin", Tensor("x", dtype, (3,)), 2)
    assert back.tobytes() == raw.tobytes()
    if dtype in ("float32", "float16", "bfloat16", "float64"):
        assert tensors.to_float(back, dtype) == pytest.approx(values, rel=2**-8)


def test_bfloat16_is_rounded_as_torch_rounds_it() -> None:
    import torch

    values = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    values[:4] = [np.inf, -np.inf, np.nan, 3.4e38]
    expected = torch.from_numpy(values).bfloat16()
    bits = tensors.from_float(values, "bfloat16")
    assert np.array_equal(tensors.to_float(bits, "bfloat16"), expected.float().numpy(), equal_nan=True)
