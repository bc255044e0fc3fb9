"""A report made with the user's own files: asked for again by the command on its page, advised on, and compared.

The files are gone by then: what a report needs of them it holds itself. Ranges and adapters are named by their place.
"""

import dataclasses
import html
import json
import shlex
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from qcheck.demo import library
from qcheck.report.html import view
from qcheck.result import store
from qcheck.result.report import Report
from qcheck.spec import command, limits, scheme, target
from tests.conftest import run

SMALL = ("--steps", "4", "--no-build", "--threads", "1")
RECIPE = """
title = "two things"
method = "percentile"
percentile = 99.5
prompts = "things.toml"
samples = 2
strata = 2
seed = 7000
keep = ["conv_in", "conv_out"]
"""


def own(folder: Path) -> list[Path]:
    """A scheme, a recipe with its prompts, limits that nothing keeps, a target and prompts, each a file of its own."""
    int8, default = scheme.find("int8"), limits.find("default")
    survival = {"low": 5.0, "high": 6.0}
    gates = [gate.model_copy(update=survival if gate.name == "effect_survival" else {}) for gate in default.gates]
    files = {
        "mine.toml": command.text(int8.model_copy(update={"title": "mine"})),
        "how.toml": RECIPE,
        "things.toml": 'prompts = ["green bottle", "blue umbrella"]\n',
        "strict.toml": command.text(default.model_copy(update={"gates": gates, "alpha": 0.4})),
        "board.toml": command.text(target.find("jetson-agx-orin-64gb")),
        "prompts.txt": "red apple\npanda\nghost\n",
    }
    for name, text in files.items():
        (folder / name).write_text(text, "utf-8")
    return [folder / name for name in files]


def nudged(path: Path) -> None:
    """The demo's adapter, a little stronger."""
    with safe_open(library.ADAPTERS / "flat.safetensors", "pt") as stream:
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        metadata = stream.metadata()
    save_file({n: 1.02 * t if "lora_B" in n else t for n, t in tensors.items()}, path, metadata=metadata)


def drawn(folder: Path) -> None:
    """Pictures that the demo's adapter drew."""
    folder.mkdir()
    for number in (1, 2, 3):
        shutil.copy(Path(__file__).parent / "report" / "folder" / "pictures" / f"f1-{number}.webp", folder)


OPTIONS = {
    "files": ("--lora", "flat", "--scheme", "mine.toml", "--target", "board.toml", "--prompts", "prompts.txt"),
    "inputs": (
        *("--lora", "own.safetensors", "--reference-lora", "flat", "--scheme", "int8", "--ranges", "ranges.json"),
        *("--style-pictures", "drawn"),
    ),
}


@dataclasses.dataclass(frozen=True)
class Made:
    """A report, its folder, and what its page says asks for the same."""

    folder: Path
    report: Report
    words: list[str]


@pytest.fixture(scope="module", params=list(OPTIONS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A report from own files, which are removed afterwards."""
    place = tmp_path_factory.mktemp("own")
    files, folder = own(place), place / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        if request.param == "inputs":
            nudged(place / "own.safetensors")
            drawn(place / "drawn")
            calibrate = ("calibrate", "demo", "--lora", "flat", "--scheme", "int8", "--recipe", "how.toml")
            ranges = run(*calibrate, *SMALL, "--out", "ranges.json")
            assert ranges.exit_code == 0, ranges.output
        asked = ("check", "demo", *OPTIONS[request.param], "--recipe", "how.toml", "--limits", "strict.toml")
        result = run(*asked, *SMALL, "--max-probes", "2", "--out", str(folder))
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 1, result.output
    for file in files:
        file.unlink()
    report = store.read(folder)
    words = shlex.split(view.again(report))
    assert html.escape(shlex.join(words), quote=True).replace("&#x27;", "&#39;") in (folder / "report.html").read_text()
    return Made(folder, report, words)


@pytest.fixture(scope="module")
def repeated(made: Made) -> Path:
    """The folder that the page's command wrote, typed in the report's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made.folder)
        result = run(*made.words[1:])
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 1, result.output
    (folder,) = (made.folder / "qcheck-out").iterdir()
    return folder


def test_the_command_of_the_page_measures_the_same_to_the_last_digit(made: Made, repeated: Path) -> None:
    report = store.read(repeated)
    assert report.spec == made.report.spec
    for before, after in zip(made.report.cases, report.cases, strict=True):
        kept = {"verdict", "reasons", "measurements", "steps", "layers", "deciding"}
        assert after.model_dump_json(include=kept) == before.model_dump_json(include=kept)
        assert [file.digest for file in after.artifact] == [file.digest for file in before.artifact]


def test_what_was_asked_for_is_in_the_report(made: Made) -> None:
    """Or the other tests would compare checks of something else."""
    spec, (case,) = made.report.spec, made.report.cases
    assert (spec.limits.name, spec.recipe.name, case.verdict) == ("strict", "how", "NEEDS-QAT")
    assert "conv_in" in case.kept_layers
    if spec.references:
        assert {used.arms for used in made.report.adapters} == {"adapted", "reference"}
        assert made.report.ranges is not None
        assert made.report.style_pictures is not None
        assert made.report.style_pictures.source == spec.style_pictures
        utility = case["style_utility"]
        assert utility.status == "reported" or utility.where.startswith("void: ")
    else:
        assert (spec.schemes[0].title, spec.target.name, made.report.probes.prompts[0]) == (
            "mine",
            "board",
            "red apple",
        )


def test_it_is_advised_on(made: Made, tmp_path: Path) -> None:
    result = run("advise", str(made.folder), "--dry-run", "--json", "--out", str(tmp_path / "advice"))
    assert result.exit_code == 0, result.output
    (case,) = json.loads(result.stdout)["cases"]
    assert case["verdict"] == "NEEDS-QAT"
    kinds = {tried["kind"] for tried in case["tried"]}
    assert {"order", "mixed precision"} <= kinds
    assert ("qat" in kinds) == (not made.report.spec.references)


def test_it_and_its_repetition_compare_as_one(made: Made, repeated: Path) -> None:
    result = run("compare", str(made.folder), str(repeated), "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["compared"] > 10
    assert (found["changes"], found["differences"]) == ([], [])
