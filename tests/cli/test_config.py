"""qcheck.toml: what is typed comes before the environment, that before the file, and that before the defaults."""

import json
import re
from pathlib import Path

import pytest
import typer

from benchmarks.readme import DOCS
from qcheck.cli import config
from qcheck.cli.app import app
from qcheck.core import cache
from qcheck.core.cache import Cache
from qcheck.core.errors import UserError
from qcheck.core.progress import Progress
from qcheck.result.report import Report
from qcheck.spec.check import CheckSpec
from qcheck.tasks import check as task
from tests.conftest import run


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QCHECK_THREADS", raising=False)
    return tmp_path


def _write(folder: Path, *lines: str) -> Path:
    file = folder / config.NAME
    file.write_text("\n".join(["[check]", *lines]))
    return file


WHOLE = ('base = "demo"', 'lora = "flat"', 'scheme = ["int8"]', 'target = "jetson-thor-t5000"', "threads = 3")


def _settings(*arguments: str) -> dict[str, tuple[object, str]]:
    found = run("check", *arguments, "--print-config", "--json")
    assert found.exit_code == 0, found.output
    return {setting["name"]: (setting["value"], setting["source"]) for setting in json.loads(found.stdout)}


def test_the_command_alone_does_the_projects_check(
    project: Path, asked: list[CheckSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Cache] = []
    started = task.check

    def check(spec: CheckSpec, folder: Path, store: Cache, progress: Progress) -> Report:
        kept.append(store)
        return started(spec, folder, store, progress)

    monkeypatch.setattr(task, "check", check)
    _write(project, *WHOLE, "max-probes = 16", "build = false", "no-cache = true", 'order = ["unmerged"]')
    assert run("check").exit_code == 1  # the verdict that the fixture gives
    spec = asked[0]
    assert [Path(used.source).stem for used in spec.adapters] == ["flat"]
    assert ([scheme.name for scheme in spec.schemes], spec.require) == (["int8"], "all")
    assert (spec.target.name, spec.orders, spec.bounds.looks[-1]) == ("jetson-thor-t5000", ("unmerged",), 16)
    assert (spec.execution.build, spec.execution.threads) == (False, 3)
    assert kept[0].root != cache.location()


def test_precedence(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _settings("demo", "--lora", "flat")["threads"][1] == "default"
    file = str(_write(project, *WHOLE))
    assert _settings()["threads"] == (3, file)
    monkeypatch.setenv("QCHECK_THREADS", "2")
    assert _settings()["threads"] == (2, "environment, QCHECK_THREADS")
    assert _settings("--threads", "1")["threads"] == (1, "command line")


def test_every_value_says_where_it_came_from(project: Path, cache_root: Path) -> None:
    file = str(_write(project, *WHOLE))
    found = _settings("--seed", "7", "--target", "dgx-spark")
    assert found["scheme"] == (["int8"], file)
    assert found["target"] == ("dgx-spark", "command line")
    assert found["seed"] == (7, "command line")
    assert found["steps"] == (20, "probe set")
    assert found["order"] == (["merge-quantize"], "default")
    assert found["cache"] == (str(cache_root / "qcheck"), "environment, QCHECK_CACHE")
    shown = run("check", "--print-config")
    assert shown.exit_code == 0
    assert "jetson-thor-t5000" in shown.stdout


@pytest.mark.parametrize(("probes", "source"), [(None, "base"), ("emoji", "probe set")])
def test_sampling_that_is_the_base_s_says_so(project: Path, probes: str | None, source: str) -> None:
    (project / "pipeline").mkdir()
    (project / "pipeline" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    chosen = () if probes is None else ("--probes", probes)
    found = _settings("pipeline", "--lora", "a.safetensors", "--steps", "7", *chosen)
    assert found["steps"] == (7, "command line")
    assert found["guidance"][1] == source
    assert found["seed"] == (100, "probe set")


def test_the_page_names_every_variable_that_stands_for_an_option(project: Path) -> None:
    command = typer.main.get_command(app)
    variables = {one.envvar for one in command.commands["check"].params if one.envvar}  # type: ignore[attr-defined]
    assert {"QCHECK_THREADS", "QCHECK_DEVICE"} <= variables
    page = (DOCS / "config.md").read_text("utf-8")
    assert variables | {cache.VARIABLE} == set(re.findall(r"`\$?(QCHECK_\w+)`", page))


def test_a_drawn_seed_is_shown_as_what_repeats_it(project: Path) -> None:
    _write(project, *WHOLE, 'seed = "random"')
    drawn, again = (_settings()["seed"][0] for _ in range(2))
    assert re.fullmatch(r"random:\d+", str(drawn))
    assert drawn != again
    assert _settings("--seed", str(drawn))["seed"] == (drawn, "command line")


def test_every_option_is_a_key_and_is_printed(project: Path) -> None:
    _write(project, *WHOLE)
    printed = set(_settings())
    helped = run("check", "--help").output
    for name in printed - {"base", "cache"}:
        assert f"--{name}" in helped
    assert {"lora", "with-lora", "recipe", "limits", "probes", "prompts", "max-probes", "artifact"} <= printed


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("schem = 1", r"unknown key of \[check\] 'schem'.*Did you mean 'scheme'"),
        ("max_probes = 8", "Did you mean 'max-probes'"),
        ('steps = "many"', "steps: Input should be a valid integer"),
        ("steps = 0", "greater than or equal to 1"),
        ("target = ['a', 'b']", "Give one value"),
        ("build = 1", "Give true or false"),
        ("steps = true", "Give one value"),
        ("[chek]", "unknown table or key 'chek'.*Did you mean 'check'"),
        ("steps =", "Invalid value"),
    ],
)
def test_a_mistake_is_one_error_that_names_file_and_key(project: Path, line: str, message: str) -> None:
    file = _write(project, line)
    found = run("check", "demo", "--lora", "flat", "--print-config")
    assert isinstance(found.exception, UserError)
    with pytest.raises(UserError, match=f"(?s){message}"):
        raise found.exception
    assert str(file) in found.exception.what


def test_the_nearest_file_above_is_taken_and_its_paths_are_beside_it(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "style.safetensors").touch()
    (project / "prompts.txt").write_text("a cat\n")
    inside = project / "a" / "b"
    inside.mkdir(parents=True)
    _write(
        project, 'base = "demo"', 'lora = "style.safetensors"', 'prompts = "./prompts.txt"', 'scheme = "int8"',
        'with-lora = "style.safetensors=0.5"',
    )  # fmt: skip
    monkeypatch.chdir(inside)
    found = _settings()
    style = str(project / "style.safetensors")
    assert found["lora"][0] == [style]
    assert found["with-lora"][0] == [f"{style}=0.5"]
    assert found["prompts"][0] == str(project / "prompts.txt")
    assert found["probes"] == ("prompts", "prompts")


@pytest.mark.parametrize(
    ("in_file", "asked", "other"), [("prompts", "probes", "emoji"), ("probes", "prompts", "b.txt")]
)
def test_what_is_asked_for_takes_the_place_of_what_the_file_has_instead(
    project: Path, in_file: str, asked: str, other: str
) -> None:
    for name in ("a.txt", "b.txt"):
        (project / name).write_text("a cat\n")
    _write(project, *WHOLE, f'{in_file} = "{"a.txt" if in_file == "prompts" else "general"}"')
    settings = _settings(f"--{asked}", str(project / other) if other.endswith("txt") else other)
    assert settings[asked][1] == "command line"
    assert settings["probes"][0] == other or settings["prompts"][0] == str(project / other)
    assert settings[in_file][1] in {"default", "prompts"}


def test_a_file_can_be_named(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = _write(tmp_path_factory.mktemp("other"), *WHOLE)
    _write(project, "nonsense = 1")
    assert _settings("--config", str(other))["target"] == ("jetson-thor-t5000", str(other))
    missing = run("check", "--config", "none.toml")
    assert isinstance(missing.exception, UserError)


def test_other_commands_do_not_read_it(project: Path, asked: list[CheckSpec]) -> None:
    _write(project, *WHOLE, "seed = 5")
    assert run("demo", "ink").exit_code == 1
    assert asked[0].target.name != "jetson-thor-t5000"
    assert asked[0].probes.seed != 5
