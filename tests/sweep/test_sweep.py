"""A sweep of the demo from files to the page: what it stores, how it goes on, and what shared work may not change."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from lxml import etree
from safetensors.torch import save_file

import qcheck
from qcheck.api import sweep as api
from qcheck.api.request import check_spec
from qcheck.core.cache import Cache
from qcheck.core.errors import UserError
from qcheck.demo import library
from qcheck.judge import fleet
from qcheck.model import arms, load, lora
from qcheck.model.device import CPU
from qcheck.spec.use import Use
from qcheck.tasks import executors
from qcheck.tasks.session import Warm
from tests.conftest import run
from tests.sweep.test_fleet import row

FEW = ("--steps", "2", "--max-probes", "2", "--no-build", "--threads", "1")


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], Result]:
    """The demo's faint and flat, and a file that is no adapter."""
    root = tmp_path_factory.mktemp("sweep")
    (root / "broken.safetensors").write_bytes(b"no adapter")
    (root / "plan.toml").write_text('base = "demo"\nlora = ["faint", "flat", "broken.safetensors"]\n', "utf-8")
    words = ["sweep", str(root / "plan.toml"), "--scheme", "int4-g128", *FEW, "--out", str(root / "out")]
    return root / "out", words, run(*words)


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    lines = (folder / "index.jsonl").read_text("utf-8").splitlines()
    return {Path(one["adapter"]).stem: one for one in map(json.loads, lines)}


def test_a_corrupt_adapter_is_a_row_and_the_others_have_verdicts(swept: tuple[Path, list[str], Result]) -> None:
    folder, _, result = swept
    assert result.exit_code == 3, result.output
    by_name = rows(folder)
    assert by_name["broken"]["verdict"] is None
    assert "broken.safetensors" in by_name["broken"]["error"]
    assert {by_name[name]["verdict"] for name in ("faint", "flat")} <= {"PASS", "INCONCLUSIVE"}
    for name in ("faint", "flat"):
        one = by_name[name]
        assert one["survival"] == pytest.approx(1, abs=0.2)
        assert 0 <= one["doubt"] <= 1
        assert (one["scheme"], one["order"], one["probes"]) == ("int4-g128", "merge-quantize", 2)
        assert (folder / one["page"]).read_text("utf-8").startswith("<!doctype html>")
        kept = {path.name for path in (folder / one["page"]).parent.iterdir()}
        assert kept == {"report.html", "report.json", "report.intoto.json", "SHA256SUMS"}
    assert {path.stem for path in (folder / "cases").iterdir()} == {one["case"] for one in by_name.values()}
    assert not [*folder.glob(".work-*")]
    audited = qcheck.audit(folder)
    assert (audited.code, len(audited.folders), audited.folders[0].unaudited) == (0, 3, 1)


def test_the_same_sweep_again_runs_nothing(
    swept: tuple[Path, list[str], Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, words, _ = swept
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    monkeypatch.setattr(executors, "over", None)
    assert run(*words).exit_code == 3
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert after == before
    told = run(*words, "--dry-run", "--json")
    assert json.loads(told.stdout)["missing"] == 0
    shards = [json.loads(run(*words, "--dry-run", "--json", "--shard", f"{n}/2").stdout)["cases"] for n in (1, 2)]
    assert sum(shards) == json.loads(told.stdout)["cases"] == 3


class Inline:
    """A slot in this process."""

    def __init__(self, place: executors.Place) -> None:
        self.run = place.worker().run

    def close(self) -> None:
        pass


def test_errors_are_tried_again_where_that_is_asked(
    swept: tuple[Path, list[str], Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, words, _ = swept
    monkeypatch.setattr(executors, "local", lambda place, _: [Inline(place)])
    other = folder.parent / "broken.safetensors"
    case = folder / "cases" / f"{rows(folder)['broken']['case']}.json"
    before = case.stat().st_mtime_ns
    assert run(*words, "--retry-errors").exit_code == 3
    assert case.stat().st_mtime_ns > before
    other.unlink()
    changed = run(*words, "--dry-run", "--json")  # another file is another case, and no old row is its
    assert json.loads(changed.stdout)["missing"] == 1
    other.write_bytes(b"no adapter")


def test_a_verdict_in_a_sweep_is_that_of_a_check(swept: tuple[Path, list[str], Result], tmp_path: Path) -> None:
    folder, _, _ = swept
    words = ("check", "demo", "--lora", "flat", "--scheme", "int4-g128", *FEW, "--out", str(tmp_path / "out"), "--json")
    alone = json.loads(run(*words).stdout)["cases"][0]
    there = json.loads((folder / rows(folder)["flat"]["page"]).with_name("report.json").read_bytes())["cases"][0]
    for name in ("verdict", "deciding", "reasons", "measurements"):
        assert there[name] == alone[name], name


def test_machine_readable_files_have_every_case(swept: tuple[Path, list[str], Result]) -> None:
    folder, _, _ = swept
    schema = etree.XMLSchema(etree.parse(Path(__file__).parents[1] / "report" / "junit-10.xsd"))
    document = etree.parse(folder / "junit.xml")
    schema.assertValid(document)
    assert len(document.findall(".//testcase")) == 3
    assert len(document.findall(".//error")) >= 1
    assert len((folder / "summary.csv").read_text("utf-8").splitlines()) == 4
    assert (folder / "index.parquet").exists()
    text = (folder / "summary.md").read_text("utf-8")
    assert "3 cases of 3 adapters" in text
    assert "broken" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--shard", "3/2"), "--shard '3/2' is no part"),
        (("--executor", "slurm"), "unknown executor 'slurm'"),
        (("--lora", "nowhere/*.safetensors"), "holds no adapter"),
    ],
)
def test_bad_options_are_one_error(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    result = run("sweep", "demo", "--lora", "faint", *words, "--out", str(tmp_path / "out"))
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)


def test_what_cannot_be_read_is_named_before_anything_runs(tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no adapter")
    words = (
        "sweep",
        "demo",
        "--lora",
        "faint",
        "--scheme",
        "int4-g128",
        *FEW,
        "--out",
        str(tmp_path / "out"),
        "--dry-run",
    )
    alone = json.loads(run(*words, "--json").stdout)
    both = json.loads(run(*words, "--lora", str(broken), "--json").stdout)
    assert (both["cases"], both["missing"]) == (2, 2)
    assert (both["calls"], alone["unreadable"]) == (alone["calls"], [])
    (said,) = both["unreadable"]
    assert str(broken) in said
    assert f"cannot be read, and will be an error: {said}" in run(*words, "--lora", str(broken)).stdout


def test_another_requirement_is_an_error_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown requirement 'most'"):
        run_raising("sweep", "demo", "--lora", "faint", "--require", "most", "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def run_raising(*words: str) -> None:
    exception = run(*words).exception
    if exception is not None:
        raise exception


@pytest.mark.parametrize(("require", "code"), [("all", 1), ("any", 0), ("none", 0)])
def test_the_exit_code_is_what_is_required(
    require: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base is that of the project, in the folder or above it."""
    asked: list[Any] = []

    def sweep(plan: str | None, **given: Any) -> fleet.Summary:
        asked.append((plan, given["base"]))
        return fleet.summary([row("a"), row("b", "NEEDS-QAT")])

    monkeypatch.setattr(api, "sweep", sweep)
    (tmp_path / "qcheck.toml").write_text('[check]\nbase = "./pipeline"\nscheme = "int8"\n')
    for name in ("pipeline", "below"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert run("sweep", "--lora", "x", "--out", "out", "--require", require).exit_code == code
    assert asked == [(None, str(tmp_path / "pipeline"))]
    assert run("sweep", "other", "--lora", "x", "--out", "out").exit_code == 1
    assert asked[-1] == (None, "other")


@pytest.mark.parametrize(("text", "said"), [(None, "neither a base nor a plan"), ("[check]\n", "has no base")])
def test_without_a_base_anywhere_it_is_an_error(
    text: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / "qcheck.toml").write_text(text)
    with pytest.raises(UserError, match=said):
        run_raising("sweep", "--lora", "x", "--out", "out")


def test_a_folder_of_something_else_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="is no folder of a sweep"):
        api.sweep(base="demo", lora="faint", out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_adapter_that_does_not_fit_costs_no_second_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strange = tmp_path / "strange.safetensors"
    save_file({f"unet.nowhere.lora_{part}.weight": torch.ones(2, 2) for part in "AB"}, strange)
    loads, own, warm, spec = list[str](), load.load, Warm(), check_spec("demo", "faint", scheme="int8")
    monkeypatch.setattr(load, "load", lambda source, *rest: (loads.append(source), own(source, *rest))[1])

    def merged(source: Path) -> arms.Arms:
        return warm.arms(spec, CPU, Cache(Path("unused")), [lora.read(Use(source=str(source), weight=1.0))])

    merged(library.ADAPTERS / "flat.safetensors")
    with pytest.raises(UserError):
        merged(strange)
    again = merged(library.ADAPTERS / "faint.safetensors")
    assert len(loads) == 1
    with again.held("base") as family:
        fresh = own(spec.base).denoiser.state_dict()
        assert all(torch.equal(value, fresh[name]) for name, value in family.module.state_dict().items())


def test_swapped_adapters_are_those_merged_into_a_new_base() -> None:
    """Also where the next adapter leaves layers alone that the last one changed."""
    adapters = {
        name: lora.read(Use(source=str(library.ADAPTERS / f"{name}.safetensors"), weight=1.0))
        for name in ("flat", "faint")
    }
    warm = Warm()
    for name in ("flat", "faint", "flat"):
        spec = check_spec("demo", name, scheme="int8")
        swapped = warm.arms(spec, CPU, Cache(Path("unused")), [adapters[name]])
        fresh = arms.apply(load.load(spec.base), [adapters[name]])
        assert swapped.layers == fresh.layers
        for side in ("base", "adapted"):
            with swapped.held(side) as ours, fresh.held(side) as theirs:
                for (key, one), other in zip(
                    ours.module.state_dict().items(), theirs.module.state_dict().values(), strict=True
                ):
                    assert torch.equal(one, other), (name, side, key)
