import math

import pytest

from qcheck.judge import deciding, next_step
from qcheck.judge.looks import until_decided
from qcheck.judge.verdict import judge
from qcheck.result.build import Build
from qcheck.result.measurement import Judged, Measurement
from qcheck.result.verdict import Deciding, Outcome
from qcheck.spec import limits as limits_module
from qcheck.spec.limits import Gate
from qcheck.spec.measurement import Limit, beside

LIMITS = limits_module.find("default")
NAN = float("nan")
BLAMING = [gate for gate in LIMITS.gates if gate.role not in ("control", "warning")]


def _healthy(**changed: tuple[float, float, float] | None) -> list[Measurement]:
    """A measurement inside every gate, except those given as ``name__arm=(low, value, high)`` or None to leave out."""
    found = []
    for gate in LIMITS.gates:
        middle = _inside(gate)
        values = changed.get(f"{gate.name}__{gate.arm}", (middle, middle, middle))
        if values is not None:
            low, value, high = values
            p = None if gate.role == "control" else _p(gate, low, high)
            found.append(Measurement(name=gate.name, arm=gate.arm, unit="", value=value, low=low, high=high, p=p))
    return found


def _p(gate: Gate, low: float, high: float) -> float:
    """Certain where the interval is clearly inside or beyond, large where it straddles."""
    beyond = (gate.low is not None and high < gate.low) or (gate.high is not None and low > gate.high)
    return 1e-9 if beyond else 0.5


def _inside(gate: Gate) -> float:
    if gate.low is not None and gate.high is not None:
        return (gate.low + gate.high) / 2
    return gate.low + 1 if gate.low is not None else gate.high - 1  # type: ignore[operator]


@pytest.mark.parametrize(
    ("changed", "outcome"),
    [
        ({}, "PASS"),
        ({"effect_survival__adapted": (0.0, 0.05, 0.1)}, "NEEDS-QAT"),
        ({"effect_survival__adapted": (1.4, 1.5, 1.6)}, "NEEDS-QAT"),
        ({"effect_survival__adapted": (0.75, 0.85, 0.95)}, "INCONCLUSIVE"),
        ({"stratum_survival__adapted": (0.3, 0.4, 0.5)}, "NEEDS-QAT"),
        ({"endpoint_error__adapted": (0.7, 0.8, 0.9)}, "NEEDS-QAT"),
        ({"endpoint_error__adapted": (NAN, NAN, NAN)}, "NEEDS-QAT"),
        ({"endpoint_error__base": (0.7, 0.8, 0.9), "endpoint_error__adapted": (0.7, 0.8, 0.9)}, "FAIL-RECIPE"),
        ({"endpoint_error__base": (NAN, NAN, NAN)}, "FAIL-RECIPE"),
        (
            {"reference_deviation__adapted": (-30.0, -25.0, -20.0), "endpoint_error__base": (0.7, 0.8, 0.9)},
            "FAIL-ADAPTER",
        ),
        ({"reference_deviation__adapted": (NAN, NAN, NAN), "export_control__adapted": (0.0, 0.0, 0.0)}, "FAIL-ADAPTER"),
        ({"export_control__adapted": (20.0, 20.0, 20.0), "stratum_survival__adapted": (0.3, 0.4, 0.5)}, "INVALID"),
        ({"weakened_survival__adapted": (0.9, 0.9, 0.9)}, "INVALID"),
        ({"weakened_survival__adapted": (0.81, 0.81, 0.81), "effect_survival__adapted": (0.0, 0.05, 0.1)}, "INVALID"),
        ({"weakened_survival__adapted": (0.8, 0.8, 0.8)}, "PASS"),
        ({"weakened_survival__adapted": None}, "INVALID"),
        ({"effect_survival__adapted": None}, "INVALID"),
        (
            {"reference_deviation__adapted": (-9.0, -7.5, -6.0), "stratum_survival__adapted": (0.3, 0.4, 0.5)},
            "INCONCLUSIVE",
        ),
        ({"endpoint_error__base": (0.3, 0.45, 0.6), "endpoint_error__adapted": (0.7, 0.8, 0.9)}, "INCONCLUSIVE"),
        ({"endpoint_error__base": (0.3, 0.45, 0.6), "effect_survival__adapted": (0.0, 0.05, 0.1)}, "NEEDS-QAT"),
        ({"endpoint_error__base": (0.3, 0.45, 0.6)}, "INCONCLUSIVE"),
        (  # what is open on the adapted arm alone excuses nothing else there
            {"endpoint_error__adapted": (0.7, 0.8, 0.9), "lattice_amplitude__adapted": (0.05, 0.07, 0.09)},
            "NEEDS-QAT",
        ),
    ],
)
def test_the_ladder_of_blame(changed: dict[str, tuple[float, float, float] | None], outcome: Outcome) -> None:
    assert judge(_healthy(**changed), [], LIMITS).outcome == outcome


def test_holm_asks_more_of_one_gate_among_many() -> None:
    """.01 is below alpha, and beyond the limit by its own interval, but not after Holm over all gates."""
    found = [
        m.model_copy(update={"value": 0.4, "low": 0.3, "high": 0.5, "p": 0.01}) if m.name == "stratum_survival" else m
        for m in _healthy()
    ]
    assert judge(found, [], LIMITS).outcome == "INCONCLUSIVE"
    certain = [
        m.model_copy(update={"p": LIMITS.alpha / len(BLAMING)}) if m.name == "stratum_survival" else m for m in found
    ]
    assert judge(certain, [], LIMITS).outcome == "NEEDS-QAT"


def test_holm_steps_down() -> None:
    """The second smallest p-value is compared with alpha over one gate less."""
    second = LIMITS.alpha / (len(BLAMING) - 0.5)  # too large for the first step, small enough for the second
    changed = {"effect_survival": 1e-9, "endpoint_error": second}
    found = [
        m.model_copy(update={"value": 99.0, "low": 98.0, "high": 100.0, "p": changed[m.name]})
        if m.name in changed and m.arm != "base"
        else m
        for m in _healthy()
    ]
    judged = {(m.name, m.arm): m.status for m in judge(found, [], LIMITS).measurements}
    assert judged["effect_survival", "adapted"] == judged["endpoint_error", "adapted"] == "fail"
    alone = [m.model_copy(update={"p": 0.5}) if m.name == "effect_survival" else m for m in found]
    judged = {(m.name, m.arm): m.status for m in judge(alone, [], LIMITS).measurements}
    assert judged["endpoint_error", "adapted"] == "undecided"


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        ("built", "PASS"),
        ("not run", "PASS"),
        ("refused", "FAIL-RECIPE"),
        ("fell back", "FAIL-RECIPE"),
        ("crashed", "INVALID"),
    ],
)
def test_a_build_that_ended_badly_is_never_a_pass(status: str, outcome: Outcome) -> None:
    content = {"builder": "b", "capability": "8.6", "proxy": True, "status": status, "detail": "said so"}
    verdict = judge(_healthy(), [], LIMITS, [Build.model_validate(content)])
    assert verdict.outcome == outcome
    assert outcome == "PASS" or "said so" in verdict.reasons[0]


@pytest.mark.parametrize(("p", "told"), [(1e-9, True), (LIMITS.alpha, True), (0.4, False)])
def test_what_quantization_hides_is_told_and_decides_nothing(p: float, told: bool) -> None:
    found = [
        m.model_copy(update={"value": 4.0, "low": 3.1, "high": 4.9, "p": p}) if m.name == "hidden_lattice" else m
        for m in _healthy()
    ]
    verdict = judge(found, [], LIMITS)
    assert verdict.outcome == "PASS"
    assert bool(verdict.warnings) == told
    assert [m.name for m in verdict.measurements if m.warns] == [
        "effect_to_error", "worst_stratum", "hidden_jitter", "hidden_lattice"
    ]  # fmt: skip
    if told:
        (warning,) = verdict.warnings
        assert warning.startswith("hidden_lattice (both) 4 ")
        assert warning.endswith("; limit <= 3: quantization hides a grid that the LoRA has at full precision")


@pytest.mark.parametrize(("low", "high", "name"), [(-14.0, -12.0, "effect_to_error"), (22.0, 24.0, "worst_stratum")])
def test_a_faint_or_a_loud_adapter_is_told_and_passes(low: float, high: float, name: str) -> None:
    verdict = judge(_healthy(**{f"{name}__adapted": (low, (low + high) / 2, high)}), [], LIMITS)
    assert verdict.outcome == "PASS"
    assert [warning.split()[0] for warning in verdict.warnings] == [name]


@pytest.mark.parametrize(
    ("changed", "outcome", "warns"),
    [
        ({}, "PASS", True),
        ({"effect_survival__adapted": (0.7, 0.85, 1.0)}, "INCONCLUSIVE", True),
        ({"stratum_survival__adapted": (0.3, 0.4, 0.5)}, "INCONCLUSIVE", False),  # it is the reason itself
        ({"endpoint_error__base": (0.7, 0.8, 0.9)}, "FAIL-RECIPE", True),
    ],
)
def test_an_adapter_whose_own_soundness_is_open_is_not_blamed_and_may_pass(
    changed: dict[str, tuple[float, float, float]], outcome: str, warns: bool
) -> None:
    verdict = judge(_healthy(reference_deviation__adapted=(6.0, 7.5, 9.0), **changed), [], LIMITS, last=True)
    assert verdict.outcome == outcome
    warned = [text for text in verdict.warnings if text.startswith("reference_deviation")]
    assert bool(warned) == warns
    assert verdict.reasons[0].startswith("reference_deviation") == ("stratum_survival__adapted" in changed)
    (seen,) = [one for one in verdict.measurements if one.name == "reference_deviation"]
    assert (seen.status, seen.decides) == ("undecided", not warns)
    if outcome == "PASS":
        assert "of what quantization does" in verdict.reasons[0]
        assert warned[0].endswith("open whether the LoRA is sound at full precision")
        assert verdict.deciding is None or verdict.deciding.name != "reference_deviation"


def test_an_open_reference_asks_for_more_probes_until_the_last_look() -> None:
    """What 64 probes would call broken is not passed at eight; nor is it where nothing else is asked."""
    found = _healthy(reference_deviation__adapted=(6.0, 7.5, 9.0))
    assert judge(found, [], LIMITS).outcome == "INCONCLUSIVE"
    alone = LIMITS.model_copy(update={"gates": [gate for gate in LIMITS.gates if gate.role == "reference"]})
    assert judge(found, [], alone, last=True).outcome == "INCONCLUSIVE"


@pytest.mark.parametrize("value", [0.9, float("nan")])
def test_what_is_not_outside_has_no_words_for_it(value: float) -> None:
    gate = next(gate for gate in LIMITS.gates if gate.name == "effect_survival")
    assert gate.outside(value) == ""


@pytest.mark.parametrize("low", [0.05, 0.6])
def test_a_reason_says_what_it_means_to_be_outside_where_that_is_certain(low: float) -> None:
    verdict = judge(_healthy(effect_survival__adapted=(low, 0.7, 0.95 if low > 0.5 else 0.75)), [], LIMITS)
    means = ": more than a fifth of what the LoRA does is lost"
    assert verdict.reasons[0].startswith("effect_survival (adapted) 0.7 ")
    assert verdict.reasons[0].endswith(means) == (verdict.outcome == "NEEDS-QAT") == (low < 0.5)


@pytest.mark.parametrize(
    ("name", "value", "means"),
    [
        ("effect_survival", 0.5, "is lost"),
        ("effect_survival", 1.5, "too much"),
        ("reference_deviation", -20.0, "collapsed"),
        ("reference_deviation", 20.0, "saturated"),
    ],
)
def test_a_reason_says_on_which_side_of_its_limit_a_value_lies(name: str, value: float, means: str) -> None:
    verdict = judge(_healthy(**{f"{name}__adapted": (value - 0.01, value, value + 0.01)}), [], LIMITS)
    assert means in verdict.reasons[0]
    others = {"is lost", "too much", "collapsed", "saturated"} - {means}
    assert not any(other in verdict.reasons[0] for other in others)


@pytest.mark.parametrize(
    ("bad", "probes", "blocks"),
    [(1, 16, False), (2, 16, True), (1, 8, True), (1, 10, False), (6, 64, False), (7, 64, True)],
)
def test_more_than_a_tenth_of_bad_probes_blocks_pass(bad: int, probes: int, blocks: bool) -> None:
    found = judge(_healthy(), [place < bad for place in range(probes)], LIMITS)
    assert found.outcome == ("INCONCLUSIVE" if blocks else "PASS")
    assert any("tail gate" in reason for reason in found.reasons) == blocks
    assert not blocks or found.deciding is None


def test_the_bad_probes_are_named_by_number_and_the_limits_say_how_many_are_too_many() -> None:
    bad = [place in {1, 15} for place in range(16)]
    said = "effect_survival outside 0.5 .. 1.5 on 2 of 16 probes (number 2, 16), more than 10 %"
    assert said in judge(_healthy(), bad, LIMITS).reasons[0]
    assert judge(_healthy(), bad, LIMITS.model_copy(update={"bad_share": 0.125})).outcome == "PASS"


def test_a_pass_is_decided_by_what_is_closest_to_its_limit() -> None:
    """In halves of its interval: .3 with a half of .2 is closer than .1 with a half of .01."""
    found = judge(
        _healthy(stratum_survival__adapted=(0.69, 0.7, 0.72), endpoint_error__base=(0.0, 0.2, 0.4)), [], LIMITS
    )
    assert found.outcome == "PASS"
    assert found.deciding == Deciding(name="endpoint_error", arm="base")
    warned = judge(_healthy(hidden_lattice__both=(1.0, 2.0, 2.99)), [], LIMITS)
    assert warned.deciding is None  # nothing else has an interval, and a warning decides nothing


@pytest.mark.parametrize(
    ("changed", "by"),
    [
        (
            {"effect_survival__adapted": (0.0, 0.05, 0.1), "stratum_survival__adapted": (0.3, 0.4, 0.5)},
            "effect_survival (adapted)",
        ),
        (
            {"endpoint_error__base": (0.7, 0.8, 0.9), "stratum_survival__adapted": (0.3, 0.4, 0.5)},
            "endpoint_error (base)",
        ),
        ({"reference_deviation__adapted": (-30.0, -25.0, -20.0)}, "reference_deviation (adapted)"),
        (
            {"export_control__adapted": (20.0, 20.0, 20.0), "stratum_survival__adapted": (0.3, 0.4, 0.5)},
            "export_control (adapted)",
        ),
        ({"latent_kl_excess__adapted": (0.29, 0.3, 0.31)}, "latent_kl_excess (adapted)"),
        ({"effect_survival__adapted": None}, None),
    ],
)
def test_what_does_not_pass_is_decided_by_its_first_reason(
    changed: dict[str, tuple[float, float, float] | None], by: str | None
) -> None:
    found = judge(_healthy(**changed), [], LIMITS)
    assert by == (None if found.deciding is None else f"{found.deciding.name} ({found.deciding.arm})")
    assert by is None or found.reasons[0].startswith(f"{by} ")


def test_room_is_counted_in_halves_of_the_interval() -> None:
    """Of two sides the nearer; infinite where there is no interval, no number or no limit."""

    def room(limit: Limit | None, value: float | None, low: float | None, high: float | None) -> float:
        made = {"name": "over_smoothing", "arm": "base", "unit": "dB", "value": value, "low": low, "high": high}
        return deciding.room(Judged(**made, limit=limit))  # type: ignore[arg-type]

    assert room(Limit(high=2), 1.0, 0.9, 1.2) == pytest.approx(5)
    assert room(Limit(low=0.7, high=2), 1.0, 0.9, 1.2) == pytest.approx(3)
    assert room(Limit(high=2), 1.0, 1.0, 1.0) == room(Limit(low=0), 1.0, 1.0, 1.0) == math.inf
    assert room(None, 1.0, 0.9, 1.2) == math.inf
    assert room(Limit(high=2), NAN, NAN, NAN) == math.inf
    for unknown in ((None, 0.9, 1.2), (1.0, None, 1.2), (1.0, 0.9, None)):
        assert room(Limit(high=2), *unknown) == math.inf


def test_looks_end_with_the_first_that_is_not_open() -> None:
    asked: list[int] = []

    def look(count: int, decided: int) -> tuple[Outcome, str]:
        asked.append(count)
        return ("PASS" if count >= decided else "INCONCLUSIVE"), f"{count} probes"

    assert until_decided((8, 16, 32), lambda n: look(n, 16)) == (16, "PASS", "16 probes")
    assert until_decided((8, 16), lambda n: look(n, 99)) == (16, "INCONCLUSIVE", "16 probes")
    assert asked == [8, 16, 8, 16]


@pytest.mark.parametrize(
    ("outcome", "order", "status", "deployed", "words"),
    [
        ("NEEDS-QAT", "quantize-merge", "built", "x.onnx", "use merge-quantize or unmerged"),
        ("NEEDS-QAT", "refit", "built", "x.onnx", "an engine of its own"),
        ("NEEDS-QAT", "unmerged", "built", "x.onnx", "QAT of the adapter comes last"),
        ("INVALID", "unmerged", "crashed", "x.onnx", "--no-build judges without it"),
        ("INVALID", "unmerged", "built", "x.onnx", "no number here can be trusted"),
        ("FAIL-RECIPE", "unmerged", "refused", "x.onnx", "does not run this file as asked"),
        ("FAIL-RECIPE", "unmerged", "built", "x.onnx", "breaks the base itself"),
        ("PASS", "unmerged", "not run", "x.onnx", "nothing has compiled x.onnx"),
        ("PASS", "unmerged", "built", "x.onnx", "Ship x.onnx"),
        ("PASS", "unmerged", "not run", None, "Ship it"),
    ],
)
def test_the_next_step_follows_from_what_was_found(
    outcome: Outcome, order: str, status: str, deployed: str | None, words: str
) -> None:
    made = Build.model_validate({"builder": "b", "capability": "8.6", "proxy": True, "status": status})
    assert words in next_step.next_step(outcome, order, deployed, [made])


def test_a_build_whose_precision_could_not_be_read_is_to_be_measured() -> None:
    read = {"layers": 2, "products": 2, "operands": {}, "fell_back": [], "bytes": {}, "promised": {}}
    for unread, words in (["a"], "its precision could not be read"), ([], "Ship x.onnx"):
        content = {"builder": "b", "capability": "8.6", "proxy": True, "status": "built"}
        made = Build.model_validate(content | {"realised": read | {"unread": unread}})
        assert words in next_step.next_step("PASS", "unmerged", "x.onnx", [made])


def test_a_measurement_without_a_gate_is_reported_and_decides_nothing() -> None:
    extra = Measurement(name="excess_error", arm="adapted", unit="dB", value=9.0, low=9.0, high=9.0)
    found = judge([*_healthy(), extra], [], LIMITS)
    assert found.outcome == "PASS"
    assert found.measurements[-1].status == "reported"


def test_not_measured_is_never_a_pass() -> None:
    missing = Measurement(name="effect_survival", arm="adapted", unit="ratio", value=None, where="no reason")
    kept = [m for m in _healthy() if m.name != "effect_survival"]
    found = judge([*kept, missing], [], LIMITS)
    assert found.outcome == "INVALID"
    assert "not measured" in found.reasons[0]


def test_every_gate_of_the_default_limits_is_a_measurement_of_this_version() -> None:
    assert {g.name for g in LIMITS.gates} == {
        "export_control", "compute_control", "noop_control", "weakened_survival", "reference_deviation",
        "effect_survival", "stratum_survival", "endpoint_error", "over_smoothing", "lattice_amplitude",
        "latent_kl_excess", "effect_to_error", "worst_stratum", "hidden_jitter", "hidden_lattice",
    }  # fmt: skip


def test_a_gate_of_any_role_and_arm_that_fails_never_passes() -> None:
    for arm in ("base", "adapted", "both"):
        for role in ("control", "reference", "absolute", "adapter"):
            gate = Gate(name="endpoint_error", arm=arm, role=role, high=1.0)  # type: ignore[arg-type]
            seen = Measurement(name="endpoint_error", arm=arm, unit="", value=9.0, low=8.0, high=10.0, p=1e-9)  # type: ignore[arg-type]
            assert judge([seen], [], LIMITS.model_copy(update={"gates": [gate]})).outcome != "PASS", (arm, role)


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (1.2, ".3g", "1.2"),
        (1.2003, ".3g", "1.2003"),
        (1.1997, ".2f", "1.1997"),
        (0.79999, ".2f", "0.79999"),
        (1.2 + 2.3e-16, ".2f", "1.2000000000000002"),
        (0.884, ".3g", "0.884"),
        (5.004, ".2f", "5.00"),
        (NAN, ".2f", "nan"),
        (float("inf"), ".3g", "inf"),
    ],
)
def test_a_number_is_not_rounded_onto_its_limit_or_past_it(value: float, form: str, text: str) -> None:
    assert beside(value, Limit(low=0.8, high=1.2), form) == text


def test_no_reason_contradicts_itself_by_rounding() -> None:
    reasons = judge(_healthy(effect_survival__adapted=(0.884, 1.1, 1.2003)), [], LIMITS).reasons
    assert any("effect_survival (adapted) 1.1  [0.884, 1.2003]; limit 0.8 .. 1.2" in reason for reason in reasons), (
        reasons
    )
