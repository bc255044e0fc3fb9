"""A request and the command line that asks for it again are one thing."""

from pathlib import Path

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qcheck.api.request import check_spec
from qcheck.cli.check import parse
from qcheck.core.errors import UserError
from qcheck.demo import library
from qcheck.spec import command, limits, probe, recipe, scheme, target
from qcheck.spec.check import CheckSpec, Execution
from qcheck.spec.order import ORDERS
from qcheck.spec.use import Use

DEVICE = target.find("jetson-thor-t5000")
SCHEMES = [found for found in DEVICE.runnable() if not found.needs]
WORDS = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=12)
ADAPTERS = [str(library.ADAPTERS / f"{name}.safetensors") for name in library.adapters()]


@st.composite
def uses(draw: st.DrawFn, least: int, most: int) -> tuple[Use, ...]:
    """Shipped adapters, each once, at any finite weight."""
    weights = st.floats(-4, 4, allow_nan=False)
    chosen = draw(st.lists(st.sampled_from(ADAPTERS), min_size=least, max_size=most, unique=True))
    return tuple(Use(source=source, weight=draw(weights)) for source in chosen)


@st.composite
def specs(draw: st.DrawFn) -> CheckSpec:
    """Requests with shipped values and with values of the user's own."""
    own = draw(st.booleans())
    judged = limits.find("default")
    sampling = {
        "steps": draw(st.integers(1, 50)),
        "guidance": draw(st.floats(0, 20)),
        "seed": draw(st.integers(500, 10**6)),
        "drawn": draw(st.booleans()),
        "width": draw(st.sampled_from([None, 64, 512])),
        "height": draw(st.sampled_from([None, 64, 512])),
    }
    chosen = probe.find("emoji").model_copy(update=sampling)
    how = recipe.find("emoji")
    schemes = tuple(draw(st.lists(st.sampled_from(SCHEMES), min_size=1, max_size=3, unique_by=lambda s: s.name)))
    if own:
        title = draw(WORDS)
        schemes = tuple(one.model_copy(update={"name": f"my-{one.name}", "title": title}) for one in schemes)
        how = how.model_copy(update={"name": "mine", "keep": tuple(draw(st.lists(WORDS, max_size=2)))})
        judged = judged.model_copy(update={"name": "strict", "negligible_effect": draw(st.floats(1e-6, 1e-3))})
        prompts = tuple(f"a {draw(WORDS)} {n}" for n in range(3))
        chosen = chosen.model_copy(update={"name": "asked", "prompts": prompts})
    trigger = draw(st.none() | WORDS)
    chosen = probe.triggered(chosen, trigger)
    adapters = draw(uses(1, 2))
    others = tuple(use for use in draw(uses(0, 2)) if use not in adapters) if len(adapters) == 1 else ()
    chosen_orders = tuple(draw(st.lists(st.sampled_from(ORDERS), min_size=1, unique=True)))
    return CheckSpec(
        base=str(library.PIPELINE),
        adapters=adapters,
        references=adapters if draw(st.booleans()) else (),
        common=draw(uses(0, 1)),
        allow_unmatched=draw(st.booleans()),
        schemes=schemes,
        orders=chosen_orders,
        max_rank=draw(st.none() | st.integers(1, 64)) if "bound" in chosen_orders else None,
        bound_with=others if "bound" in chosen_orders else (),
        target=DEVICE.model_copy(update={"name": "my-board"}) if own else DEVICE,
        probes=probe.repeated(chosen, judged.looks[-1]),
        trigger=trigger,
        recipe=how,
        limits=judged,
        max_probes=draw(st.none() | st.integers(2, judged.looks[-1])),
        require=draw(st.sampled_from(["all", "any"])),
        execution=Execution(
            threads=draw(st.integers(1, 64)), batch=draw(st.integers(1, 64)), build=draw(st.booleans())
        ),
    )


@given(spec=specs())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_command_line_of_a_request_asks_for_that_request(tmp_path: Path, spec: CheckSpec) -> None:
    command.save(spec, tmp_path)
    assert command.words(spec, tmp_path)[0] == "check"
    assert parse(command.words(spec, tmp_path)[1:]) == spec


@given(spec=specs())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_settings_of_a_request_ask_for_that_request(tmp_path: Path, spec: CheckSpec) -> None:
    """As a qcheck.toml: all but how a machine runs it."""
    file = tmp_path / "asked.toml"
    command.save(spec, tmp_path)
    file.write_text(tomli_w.dumps({"check": command.settings(spec, tmp_path)}), "utf-8")
    assert parse(["--config", str(file)]).changed(execution=spec.execution) == spec


@given(spec=specs())
@settings(max_examples=60, deadline=None)
def test_a_request_survives_json(spec: CheckSpec) -> None:
    assert CheckSpec.model_validate_json(spec.model_dump_json()) == spec


def test_shipped_values_are_named_and_nothing_is_written_for_them(tmp_path: Path) -> None:
    spec = check_spec("demo", "flat", scheme="int8", max_probes=8, steps=4, trigger="shiny", threads=1)
    command.save(spec, tmp_path)
    assert not list(tmp_path.iterdir())
    line = command.line(command.words(spec))
    for part in ("check demo", "--lora flat", "--scheme int8", "--probes emoji", "--steps 4", "--max-probes 8"):
        assert part in line
    assert parse(command.words(spec)[1:]) == spec


def test_a_changed_value_of_a_shipped_name_is_a_file(tmp_path: Path) -> None:
    finer = scheme.find("int4-g128").model_copy(update={"compute": "bfloat16"})
    spec = check_spec("demo", "flat", scheme=finer, threads=1)
    command.save(spec, tmp_path)
    assert f"{tmp_path}/inputs/scheme/int4-g128.toml" in command.line(command.words(spec, tmp_path))
    assert parse(command.words(spec, tmp_path)[1:]) == spec


def test_a_user_s_files_are_values_of_the_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request holds what the files said, whatever becomes of them."""
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(command.text(scheme.find("int8").model_copy(update={"title": "mine"})))
    Path("how.toml").write_text(
        'title = "how"\nmethod = "mse"\nprompts = "cal.toml"\nsamples = 2\nstrata = 2\nseed = 0\nkeep = []\n'
    )
    Path("cal.toml").write_text('prompts = ["one thing", "another thing"]\n')
    Path("prompts.txt").write_text("a red ball\na blue ball\n")
    spec = check_spec("demo", "flat", scheme="mine.toml", recipe="how.toml", prompts="prompts.txt", threads=1)
    for name in ("mine.toml", "how.toml", "cal.toml", "prompts.txt"):
        Path(name).unlink()
    assert spec.schemes[0].title == "mine"
    assert spec.recipe.prompts.prompts == ("one thing", "another thing")
    assert len(spec.probes.prompts) == spec.limits.looks[-1]
    command.save(spec, tmp_path / "report")
    assert parse(command.words(spec, tmp_path / "report")[1:]) == spec


def test_a_recipe_file_names_its_prompts_beside_itself(tmp_path: Path) -> None:
    (tmp_path / "how").mkdir()
    (tmp_path / "how" / "r.toml").write_text(
        'title = "r"\nmethod = "max"\nprompts = "p.toml"\nsamples = 1\nstrata = 1\nseed = 0\nkeep = []\n'
    )
    (tmp_path / "how" / "p.toml").write_text('prompts = ["beside"]\n')
    assert recipe.find(str(tmp_path / "how" / "r.toml")).prompts.prompts == ("beside",)


@pytest.mark.parametrize(
    ("keywords", "seen"),
    [
        ({"weight": [1.0, 2.0]}, "1 adapters and 2 weights"),
        ({"reference_lora": ["flat", "ink"]}, "1 adapters and 2 references"),
        ({"scheme": ["int8", "int8"]}, "scheme is named twice"),
        ({"max_probes": 1000}, "1000 probes are beyond the last look"),
        ({"max_probes": 1}, "max_probes 1"),
        ({"steps": 0}, "steps 0"),
        ({"guidance": -1.0}, "guidance -1.0"),
        ({"guidance": float("inf")}, "guidance inf"),
        ({"weight": float("nan")}, "weight nan"),
        ({"threads": -1}, "threads -1"),
        ({"require": "most"}, "unknown requirement 'most'"),
        ({"scheme": "int9"}, "unknown scheme 'int9'"),
        ({"scheme": "fp8"}, "cannot run on"),
        ({"probes": "emoji", "prompts": ["x"]}, "are given"),
        ({"prompts": []}, "prompts []"),
        ({"with_lora": "flat=much"}, "'much' is no number"),
        ({"prompts": ["red heart"], "seed": recipe.find("emoji").seed}, "overlap"),
    ],
)
def test_a_mistake_in_a_request_is_one_clear_error(keywords: dict[str, object], seen: str) -> None:
    with pytest.raises(UserError) as told:
        check_spec("demo", "flat", **keywords)  # type: ignore[arg-type]
    assert seen in told.value.what
    assert told.value.fix


def test_eight_prompts_from_python_are_as_many_probes_as_the_last_look_asks() -> None:
    """They are repeated with other seeds, so that no probe is counted twice."""
    spec = check_spec("demo", "flat", scheme="int8", prompts=[f"thing {n}" for n in range(8)])
    probes = probe.probes(spec.probes, (1.0,))
    assert len(probes) == spec.limits.looks[-1] == 64
    assert len({(one.prompt, one.seed) for one in probes}) == 64
    with pytest.raises(UserError, match="8 probes, and the last look is at 64"):
        spec.changed(probes=spec.probes.model_copy(update={"prompts": spec.probes.prompts[:8]}))


def test_calibration_draws_nothing() -> None:
    """Ranges are found at the recipe's own seed and timesteps, whatever the probes drew."""
    judged = probe.find("emoji")
    drawn = judged.model_copy(update={"seed": 5, "drawn": True})
    how = recipe.find("emoji")
    assert recipe.calibration(how, drawn) == recipe.calibration(how, judged)
