"""Groups of prompts: an adapter has to survive in each, and the report says in which it does not."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcheck.core.errors import UserError
from qcheck.judge import verdict as verdicts
from qcheck.measure import effect, groups, registry
from qcheck.measure.control import Control
from qcheck.measure.interval import measure
from qcheck.measure.sample import Sample
from qcheck.report import markdown
from qcheck.result.basis import Basis
from qcheck.result.measurement import Judged
from qcheck.result.report import GroupSurvival
from qcheck.spec import limits, probe
from qcheck.spec.measurement import Limit
from qcheck.spec.probe import ProbeSet
from qcheck.tasks import again, trust
from qcheck.tasks import basis as bases
from qcheck.tasks.decide import Instrument, by_group, decide, grouped
from tests import audits, reports
from tests.measure.test_laws import TIMES, Drawn, view

GENERAL = probe.find("general")
LIMITS = limits.find("default")
LIMIT = Limit(low=0.8, high=1.2)


def _set(tmp_path: Path, text: str) -> ProbeSet:
    path = tmp_path / "mine.txt"
    path.write_text(text, "utf-8")
    return probe.from_text(path, GENERAL)


def test_groups_of_a_text_file_take_turns(tmp_path: Path) -> None:
    chosen = _set(tmp_path, "a plain one\n[person]\na man\na woman\n# no prompt\n[ place ]\na street\n[]\nlast\n")
    assert chosen.prompts == ("a plain one", "a man", "a street", "last", "a woman")
    assert chosen.groups == ("", "person", "place", "", "person")


def test_without_a_header_there_are_no_groups(tmp_path: Path) -> None:
    assert _set(tmp_path, "a man\na (red:1.2) [blurry] cat\n").groups == ()
    with pytest.raises(UserError, match="holds no prompt"):
        _set(tmp_path, "[person]\n[place]\n")


def test_prompts_by_group_of_the_python_api() -> None:
    chosen = probe.from_prompts({"person": ["a man", "a woman"], "place": ["a street"]}, GENERAL)
    assert chosen.prompts == ("a man", "a street", "a woman")
    assert chosen.groups == ("person", "place", "person")
    with pytest.raises(UserError, match="one is empty"):
        probe.from_prompts({"person": []}, GENERAL)


def test_repeated_prompts_stay_in_their_groups_and_a_set_needs_one_for_each() -> None:
    chosen = probe.repeated(probe.from_prompts({"person": ["a man"], "place": ["a street"]}, GENERAL), 5)
    assert chosen.groups == ("person", "place", "person", "place", "person")
    assert ProbeSet.model_validate_json(chosen.model_dump_json()) == chosen
    with pytest.raises(ValueError, match="2 prompts and 1 groups"):
        ProbeSet(name="x", prompts=("a", "b"), groups=("c",), seed=0, steps=1, guidance=1)


def test_a_set_whose_first_prompts_lack_a_group_is_refused(tmp_path: Path) -> None:
    """A check that decides by its first eight prompts would pass without having looked at that group."""
    names = ["person"] * 8 + ["place"] * 8
    path = tmp_path / "mine.toml"
    path.write_text(f"prompts = {['p'] * 16}\ngroups = {names}\nseed = 0\nsteps = 4\nguidance = 3\n", "utf-8")
    with pytest.raises(UserError, match="'place' is not among the first 2 prompts"):
        probe.find(str(path))


NAMES = ("person", "place") * 8
LOST = np.where(np.array(NAMES) == "person", 0.3, 1.0) + np.resize([-0.02, 0.02, 0.02, -0.02], 16)


def _sample(values: np.ndarray) -> Sample:
    return Sample("effect_survival", "adapted", values)


def test_a_lost_group_fails_and_names_its_probes() -> None:
    lost, kept = grouped(LIMITS, [_sample(LOST)], NAMES)
    assert (lost.name, lost.survival.status, lost.outside) == ("person", "fail", [1, 3, 5, 7, 9, 11, 13, 15])
    assert lost.survival.value == pytest.approx(0.3)
    assert (kept.name, kept.survival.status, kept.outside) == ("place", "pass", [])
    assert lost.text() == (
        "group person: survival 0.30 [0.28, 0.32] of 8 probes, not kept; "
        "outside by itself: probe 1, 3, 5, 7, 9, 11, 13, 15"
    )


def test_a_group_that_the_mean_hides_keeps_a_check_from_passing() -> None:
    """Two of 16 probes are lost: their mean over all is inside the limit."""
    names = ("rare", *[""] * 7) * 2
    values = np.where(np.array(names) == "rare", 0.3, 1.0) + np.resize([-0.001, 0.001, 0.001], 16)
    assert values.mean() > LIMIT.low  # type: ignore[operator]
    (measured,), chosen = by_group(LIMITS, [_sample(values)], names)
    gate = chosen.gate("group_survival", "adapted")
    assert gate is not None
    assert (gate.low, gate.high, gate.role, measured.where) == (0.8, 1.2, "adapter", "rare")
    assert gate.outside(0.3) == "in this group of prompts more than a fifth of what the LoRA does is lost"
    assert gate.outside(1.5) == "in this group of prompts what the LoRA does is done more than a fifth too much"
    assert verdicts.status(measured, gate, {("group_survival", "adapted")}) == "fail"


@pytest.mark.parametrize("names", [(), ("",) * 16])
def test_without_groups_nothing_is_added(names: tuple[str, ...]) -> None:
    assert by_group(LIMITS, [_sample(LOST)], names) == ([], LIMITS)
    assert grouped(LIMITS, [_sample(LOST)], names) == []
    assert (by_group(LIMITS, [], NAMES), grouped(LIMITS, [], NAMES)) == (([], LIMITS), [])


def test_limits_of_ones_own_may_leave_groups_alone() -> None:
    gates = [gate.model_copy(update={"each_group": False}) for gate in LIMITS.gates]
    chosen = LIMITS.model_copy(update={"gates": gates})
    assert by_group(chosen, [_sample(LOST)], NAMES) == ([], chosen)
    with pytest.raises(ValueError, match="each_group"):
        limits.Gate(name="excess_error", arm="adapted", role="adapter", high=5, each_group=True)


def test_a_group_of_one_probe_stays_open() -> None:
    (one,) = groups.each(_sample(np.array([1.0, 1.01, 0.99])), ("alone", "", ""), LIMIT, 0.01)
    assert (one.value, one.low, one.high, one.p) == (1.0, -math.inf, math.inf, 1.0)
    (broken,) = groups.each(_sample(np.array([np.nan, 1.01, 0.99])), ("alone", "", ""), LIMIT, 0.01)
    assert not np.isfinite(broken.value)  # type: ignore[arg-type]
    assert broken.p == 0.0


def test_p_values_are_corrected_for_the_number_of_groups() -> None:
    sample, names = _sample(np.linspace(0.7, 0.9, 12)), ("a", "b", "c") * 4
    every = groups.each(sample, names, LIMIT, 0.0165)
    alone = [measure(_sample(sample.values[place::3]), LIMIT, 0.0165).p for place in range(3)]
    assert [one.p for one in every] == [min(1.0, 3 * p) for p in alone if p is not None]


def test_an_audit_names_a_group_that_the_probes_do_not_give() -> None:
    spec = audits.SPEC.changed(probes=audits.SPEC.probes.model_copy(update={"groups": ("animal", "") * 32}))
    case = audits.case(0.01)
    kept = bases.samples(Basis.model_validate(case["basis"]).samples)
    (animal,) = grouped(spec.bounds.computing("float16"), kept, spec.probes.groups)

    def said(stated: list[GroupSurvival]) -> list[str]:
        report = audits.report(case | {"groups": stated}, spec=spec)
        return [
            text
            for text in again.of_case(report, report.cases[0], trusted=False).differences
            if "group_survival" not in text
        ]

    better = animal.survival.model_copy(update={"value": 2.0})
    assert said([animal]) == []
    assert said([animal.model_copy(update={"survival": better})])[0].startswith("group animal: effect_survival")
    other = "the groups of prompts in the report are not those that the request and the probes give"
    assert said([]) == said([animal.model_copy(update={"outside": [1]})]) == [other]


def test_reruns_know_the_groups() -> None:
    """Drawn again, a lost group is lost again: without its groups the check would have passed."""
    drawn = Drawn(0, 16, 0.01)
    names = ("rare", *[""] * 3) * 4
    drawn.q1[::4] = drawn.q0[::4] + 0.75 * (drawn.f1 - drawn.f0)[::4]
    silent = [Control(name, np.zeros(3), (0, 1, 2), TIMES) for name in ("export_control", "compute_control")]
    instrument = Instrument(silent, lambda _: np.full(16, 0.45), lambda _: None)
    chosen = LIMITS.computing("float16").model_copy(update={"looks": (16,)})
    samples, energies = registry.samples(view(drawn)), effect.energies(*drawn.arms)
    outcomes = {named: decide(chosen, instrument, samples, energies, [], named).outcome for named in ((), names)}
    assert outcomes == {(): "PASS", names: "NEEDS-QAT"}
    stable = trust.rerun_stability("NEEDS-QAT", chosen, instrument, samples, energies, [], names)
    assert stable > 0.8
    assert trust.rerun_stability("NEEDS-QAT", chosen, instrument, samples, energies, []) == 0.0


@given(st.lists(st.floats(0.5, 1.5), min_size=6, max_size=6), st.sampled_from([LIMIT, Limit(low=0.8), Limit(high=1.2)]))
def test_where_the_worst_group_is_inside_all_are(values: list[float], limit: Limit) -> None:
    every = groups.each(_sample(np.array(values)), ("a", "b", "c") * 2, limit, 0.0165)
    worst = groups.group_survival(every, limit)
    assert worst.p == min(one.p for one in every if one.p is not None)
    if limit.holds(worst.low, worst.high):
        assert all(limit.holds(one.low, one.high) for one in every)


def test_the_worst_group_is_the_one_with_least_room_and_one_that_is_not_finite_before_all() -> None:
    small = np.resize([-0.01, 0.01], 8)
    near, far = _sample(0.85 + small), _sample(1.1 + small)
    values = np.concatenate([near.values, far.values])
    names = ("near",) * 8 + ("far",) * 8
    assert groups.group_survival(groups.each(_sample(values), names, LIMIT, 0.0165), LIMIT).where == "near"
    values[-1] = np.nan
    assert groups.group_survival(groups.each(_sample(values), names, LIMIT, 0.0165), LIMIT).where == "far"


def test_every_rendering_names_the_group() -> None:
    lost = GroupSurvival(
        name="*person*",
        survival=Judged.model_validate(
            reports.measurement("effect_survival", value=0.3, low=0.2, high=0.4, status="fail")
        ),
        probes=[1, 2],
        outside=[2],
    )
    report = reports.report(reports.case(groups=[lost]))
    assert "group \\*person\\*: survival 0.30 \\[0.20, 0.40\\] of 2 probes, not kept" in markdown.render(report)
