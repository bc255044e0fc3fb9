"""A report that was made on another machine: its files here are known by their digests."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from qcheck.core.digest import digest_of, digest_of_folder, file_digest
from qcheck.core.errors import UserError
from qcheck.demo import library
from qcheck.diagnose import judges
from qcheck.measure import utility
from qcheck.model import bases, lora
from qcheck.result.report import Report
from qcheck.spec.judge import Judge
from qcheck.spec.use import Use
from qcheck.tasks import exam, whereabouts
from qcheck.tasks.whereabouts import Given
from tests import reports
from tests.conftest import run


@dataclass(frozen=True)
class Project:
    """A folder with a base, an adapter and its original, and the report of a check that ran in it."""

    root: Path

    @property
    def base(self) -> Path:
        return self.root / "models" / "base"

    @property
    def lora(self) -> Path:
        return self.root / "loras" / "style.safetensors"

    @property
    def original(self) -> Path:
        return self.root / "loras" / "original.safetensors"

    @property
    def report(self) -> Report:
        """What a check in this folder writes."""
        spec = reports.SPEC.changed(
            base=str(self.base),
            adapters=(Use(source=str(self.lora), weight=0.5),),
            references=(Use(source=str(self.original), weight=0.5),),
        )
        inputs = [{"source": str(path), "digest": lora.digest(path)} for path in (self.lora, self.original)]
        return reports.report(
            reports.case(verdict="NEEDS-QAT"),
            spec=spec,
            base={"source": str(self.base), "digest": digest_of_folder(self.base)},
            adapters=inputs,
        )


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path / "ci" / "work")
    made.base.mkdir(parents=True)
    (made.base / bases.INDEX).write_text("{}")
    made.lora.parent.mkdir()
    made.lora.write_bytes(b"style")
    made.original.write_bytes(b"original")
    return made


@pytest.fixture
def moved(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Report, Project]:
    """The report, and the same files in another folder; nothing is left where the report says, or below the current."""
    report, here = project.report, Project(tmp_path / "home" / "me" / "project")
    shutil.move(project.root, here.root)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return report, here


def _here(report: Report, **given: object) -> Report:
    return whereabouts.here(report, Given(**given), file_digest)  # type: ignore[arg-type]


def test_where_nothing_moved_the_report_stays_as_it_is(project: Project) -> None:
    assert _here(project.report) == project.report


def test_files_are_given_in_any_order(moved: tuple[Report, Project]) -> None:
    report, there = moved
    spec = _here(report, base=str(there.base), lora=[str(there.original), str(there.lora)]).spec
    assert spec == there.report.spec


@pytest.mark.parametrize("start", ["", "qcheck-out/style"])
def test_files_are_taken_by_the_end_of_their_path_from_the_report_s_folder(
    moved: tuple[Report, Project], start: str
) -> None:
    report, there = moved
    assert _here(report, folder=there.root / start).spec == there.report.spec


def test_files_are_taken_by_the_end_of_their_path_from_the_current_folder(
    moved: tuple[Report, Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    report, there = moved
    monkeypatch.chdir(there.root)
    assert _here(report).spec == there.report.spec


def test_a_path_of_windows_has_an_end_too(moved: tuple[Report, Project]) -> None:
    report, there = moved
    spec = report.spec.changed(base=r"C:\work\models\base")
    assert _here(report.model_copy(update={"spec": spec}), folder=there.root).spec == there.report.spec


def test_the_shipped_demo_is_where_qcheck_is_installed(moved: tuple[Report, Project]) -> None:
    adapter = library.ADAPTERS / "flat.safetensors"
    use = Use(source="/ci/qcheck/demo/adapters/flat.safetensors", weight=1.0)
    spec = reports.SPEC.changed(base="/ci/qcheck/demo/pipeline", adapters=(use,))
    report = reports.report(
        spec=spec,
        base={"source": spec.base, "digest": digest_of_folder(library.PIPELINE)},
        adapters=[{"source": use.source, "digest": lora.digest(adapter)}],
    )
    assert (_here(report).spec.base, _here(report).spec.adapters[0].source) == (str(library.PIPELINE), str(adapter))


def test_what_is_nowhere_is_one_error_with_every_path_and_option(moved: tuple[Report, Project]) -> None:
    report, _ = moved
    with pytest.raises(UserError) as error:
        _here(report, folder=Path("of-ci"))
    assert "made on another machine" in error.value.what
    for path in (report.spec.base, report.spec.adapters[0].source, report.spec.references[0].source):
        assert repr(path) in error.value.what
    assert "qcheck advise of-ci --base DIR --lora FILE." in error.value.fix


def test_other_content_under_the_same_name_is_not_taken(moved: tuple[Report, Project]) -> None:
    report, there = moved
    there.lora.write_bytes(b"another")
    with pytest.raises(UserError, match="another machine") as error:
        _here(report, folder=there.root)
    assert f": here there is no lora {report.spec.adapters[0].source!r} with the digest" in error.value.what


def test_content_that_changed_in_place_is_not_taken(project: Project) -> None:
    report = project.report
    (project.base / bases.INDEX).write_text('{"changed": true}')
    with pytest.raises(UserError, match="have changed since: here there is no base"):
        _here(report)


@pytest.mark.parametrize("option", ["base", "lora", "ranges"])
def test_what_is_given_has_the_digest_of_the_report(project: Project, tmp_path: Path, option: str) -> None:
    """Also where the report's own path would do: who gives another file means another check."""
    other = tmp_path / "other"
    other.write_bytes(b"another")
    report = project.report
    with pytest.raises(UserError, match="is not what the report was made of") as error:
        _here(report, **{option: [str(other)] if option == "lora" else str(other)})
    named = {"base": report.base.digest, "lora": report.adapters[1].digest, "ranges": "which is none"}[option]
    assert named in error.value.what
    with pytest.raises(UserError, match="does not exist"):
        _here(report, lora=["nowhere.safetensors"])


def test_ranges_pictures_and_networks_are_given_too(project: Project, tmp_path: Path) -> None:
    report, weights, ranges = project.report, tmp_path / "lpips.pth", tmp_path / "ranges.json"
    weights.write_bytes(b"weights")
    ranges.write_bytes(b"ranges")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(utility.LEAST):
        (pictures / f"{number}.png").write_bytes(bytes([number]))
    network = Judge(kind="lpips", path=str(weights))
    digests = {
        "ranges": {"source": "/ci/ranges.json", "digest": digest_of(ranges)},
        "style_pictures": {"source": "/ci/pictures", "digest": exam.digest_of_pictures(report.spec, pictures)},
        "judges": [{"source": "lpips=/ci/lpips.pth", "digest": judges.digest(network)}],
    }
    spec = report.spec.changed(
        ranges="/ci/ranges.json", style_pictures="/ci/pictures", judges=(Judge(kind="lpips", path="/ci/lpips.pth"),)
    )
    elsewhere = Report.model_validate(report.model_dump(by_alias=True) | digests | {"spec": spec})
    with pytest.raises(UserError, match="--ranges FILE --style-pictures DIR --judge KIND=PATH"):
        _here(elsewhere)
    given = {"ranges": str(ranges), "style_pictures": str(pictures), "judge": [network.text()]}
    spec = _here(elsewhere, **given).spec
    assert (spec.ranges, spec.style_pictures, spec.judges) == (str(ranges), str(pictures), (network,))


def test_the_command_takes_them(moved: tuple[Report, Project], tmp_path: Path) -> None:
    report, there = moved
    report.save(tmp_path / "report")
    words = ("advise", str(tmp_path / "report"), "--dry-run", "--out", str(tmp_path / "advice"))
    assert "made on another machine" in str(run(*words, "--base", str(there.base)).exception)
    with_them = run(*words, "--base", str(there.base), "--lora", str(there.lora), "--lora", str(there.original))
    assert "another machine" not in str(with_them.exception)
