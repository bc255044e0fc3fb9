"""The zoo: its recipes, and the formulas of the judges that tell what became of its adapters."""

import argparse
import json
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import judged, perceptual, replays, targets, verdicts
from benchmarks.zoo import cases, fooling, stored, style, utility
from benchmarks.zoo.pipelines import PIPELINES
from qcheck.spec import limits
from tools.train_demo import zoo
from tools.train_demo.adapter import grainy
from tools.train_demo.pictures import PACKAGES, Pictures

ROOT = Path(__file__).parent.parent
LIMITS = limits.find("default")


def test_the_recipes_span_the_axes():
    recipes = [recipe for kinds in zoo.HALVES.values() for kind in kinds.values() for recipe in kind]
    assert len(recipes) >= 24
    assert max(Counter(recipe.name for recipe in recipes).values()) == 1
    for kinds in zoo.HALVES.values():  # "noto" is the base's own style
        assert {recipe.style for kind in kinds.values() for recipe in kind} == set(PACKAGES) - {"noto"}
    assert {recipe.rank for recipe in recipes} == {2, 4, 8, 16}
    ratios = {recipe.alpha / recipe.rank for recipe in recipes}
    assert (min(ratios), max(ratios)) == (0.5, 8)
    assert any(recipe.grain for recipe in recipes)


def test_a_grain_is_the_same_each_time_and_has_its_deviation():
    plain = Pictures(("a", "b"), torch.zeros(2, 3, 64, 64))
    noisy = grainy(plain, 0.2).images
    assert torch.equal(noisy, grainy(plain, 0.2).images)
    assert float(noisy.std()) == pytest.approx(0.2, rel=0.05)
    assert torch.equal(grainy(plain, 0.0).images, plain.images)


def _losses(benefit: float, lost: float, pictures: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draws = np.random.default_rng(0)
    f0 = 1 + draws.normal(0, 0.2, (8, pictures))
    f1 = f0 - benefit + draws.normal(0, 0.1, f0.shape)
    return f0, f1, f1 + lost * benefit + draws.normal(0, 0.05, f0.shape)


def test_utility_is_the_share_of_the_benefit_that_is_left():
    found = utility.utility(*_losses(benefit=0.3, lost=0.4))
    assert found.value == pytest.approx(0.6, abs=4 * found.error)
    assert 0 < found.error < 0.02
    assert not found.void
    f0, f1, _ = _losses(0.3, 0.0)
    assert utility.utility(f0, f1, f1).value == 1
    assert utility.utility(f0, f1, f0).value == 0


def test_the_error_of_utility_is_the_spread_of_repeated_exams():
    draws, values, errors = np.random.default_rng(1), [], []
    for _ in range(300):
        f0 = 1 + draws.normal(0, 0.2, (4, 32))
        f1 = f0 - 0.3 + draws.normal(0, 0.1, f0.shape)
        found = utility.utility(f0, f1, f1 + 0.1 + draws.normal(0, 0.1, (1, 32)))
        values.append(found.value)
        errors.append(found.error)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.15)


def test_utility_is_void_without_a_benefit():
    assert utility.utility(*_losses(benefit=0.0001, lost=0.0)).void
    assert utility.utility(*_losses(benefit=-0.3, lost=0.0)).void


def test_the_style_judge_follows_its_rule():
    draws = np.random.default_rng(2)
    f0 = draws.normal(-3, 0.5, 16)
    f1 = f0 + 4 + draws.normal(0, 0.5, 16)
    assert style.judge(f0, f1, f1).fate == "intact"
    assert style.judge(f0, f1, f0 + 0.8 * (f1 - f0)).fate == "intact"
    assert style.judge(f0, f1, f0 + 0.7 * (f1 - f0)).fate == "damaged"
    assert style.judge(f0, f0 + draws.normal(0, 0.5, 16), f1).fate == "undefined"  # f1 does not show the style
    assert style.judge(f0 + 4, f1 + 4, f1 + 4).fate == "undefined"  # f0 is taken for the adapter's style
    assert style.judge(f0, f1, np.full(16, np.nan)).fate == "damaged"
    lost, left = f0 + draws.normal(0, 0.5, 16), f0 + 3 * (f1 - f0) / 4
    assert style.judge(f0, f1, lost).fate == "damaged"
    scattered = np.tile((-8.0, 8.0), 8)  # whether 65 or 80 % is kept cannot be said under such noise
    assert style.judge(f0, f1, left - 0.1 * (f1 - f0) + scattered).fate == "undefined"
    assert style.judge(f0, f1, left + 0.05 * (f1 - f0) + scattered).fate == "undefined"


def test_margins_are_log_odds_of_two_styles():
    model, styles = style.Classifier(5).eval(), PIPELINES["demo"].styles
    pictures = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        shares = model(pictures * 2 - 1).double().softmax(1).numpy()
    flat = styles.index("flat")
    found = style.margins(style.seen(model, pictures), flat)
    assert styles[0] == "noto"
    assert found == pytest.approx(np.log(shares[:, flat] / shares[:, 0]), abs=1e-4)


def test_a_gate_is_scored_by_what_it_separates():
    gate = limits.Gate(name="effect_survival", arm="adapted", role="adapter", low=0.9, high=1.1)
    values = np.array([1.0, 0.95, 1.3, 0.2, np.nan])
    scores = judged.badness(values, gate)
    assert list(scores > 0) == [False, False, True, True, True]
    damaged = np.array([False, False, True, True, True])
    assert judged.auc(scores, damaged) == 1
    assert judged.auc(scores, ~damaged) == 0
    assert judged.auc(np.ones(5), damaged) == 0.5
    cut = judged.best_cut(scores, damaged)
    assert -0.05 < cut < 0.2
    assert judged.balanced(scores, damaged, cut) == 1


def test_every_trained_adapter_is_stored_with_its_losses():
    made = PIPELINES["demo"].records()
    halves = {half: {r.name for kind in kinds.values() for r in kind} for half, kinds in zoo.HALVES.items()}
    recipes = halves["setting"] | halves["testing"]
    assert {half: {one["name"] for one in made if one["half"] == half} for half in halves} == halves
    assert {path.stem for path in (ROOT / "zoo" / "demo" / "adapters").glob("*.safetensors")} == recipes


@pytest.fixture(scope="module")
def few() -> list[judged.Case]:
    """The cases of the few-step variant: those that 16 probes leave open have more."""
    return [case for case in judged.read(ROOT / "zoo")[0] if case.adapter["pipeline"] == "few"]


def test_a_case_is_replayed_as_far_as_its_probes_go(few: list[judged.Case]) -> None:
    case = next(case for case in few if case.replayed(LIMITS, (8,))[0] == "INCONCLUSIVE")
    assert case.replayed(LIMITS, (8, 1000)) == ("INCONCLUSIVE", 8)
    nobody = LIMITS.model_copy(update={"alpha": 1e-12})  # so sure that no number of probes decides
    assert case.replayed(nobody, replays.LOOKS, np.arange(16)) == ("INCONCLUSIVE", 16)
    assert case.replayed(nobody, replays.LOOKS, np.arange(64) % case.probes) == ("INCONCLUSIVE", 64)


def test_what_passes_though_a_judge_calls_it_damaged_is_counted_by_its_cause(few: list[judged.Case]) -> None:
    alone = next(case for case in few if case.by_style and not case.by_utility)
    replayed = [replays.Replay(alone, "PASS", 8), replays.Replay(alone, "NEEDS-QAT", 8)]
    shares = dict.fromkeys(("forecast", "harmless", "half", "reruns"), replays.Share(0, 2000))
    found = {one.title: one for one in targets.targets(replayed, LIMITS, shares)}
    missed = found["false PASS of what either calls damaged"]
    assert (missed.met, missed.value) == (False, "1/2 (50 %)")
    assert missed.text().splitlines()[1].strip().startswith("because: 1 x the style judge alone says so")
    assert found["false PASS of what both judges call damaged"].met is None
    assert found["false alarms"].text() == "  not measured false alarms: 0/0, wanted <= 2 % of 1 or more"


def test_what_a_second_network_sees_stands_beside_the_style_judge(few: list[judged.Case]) -> None:
    alone = next(case for case in few if case.by_style and not case.by_utility)
    said = verdicts.causes([replays.Replay(alone, "PASS", 8)], LIMITS, {alone.title: 0.94})
    assert "a second network sees 0.94 of the style left" in said


def test_the_page_counts_all_stored_cases() -> None:
    held = [stored.read(path) for path in (ROOT / "zoo").glob("*/cases/*.json.gz")]
    counted = sum(len(one["cases"]) for one in held if "weakened" in one)
    (row,) = [line for line in verdicts.PAGE.read_text("utf-8").splitlines() if line.startswith("all   ")][:1]
    assert int(row.split()[2]) == counted


def test_the_request_of_an_adapter_is_what_the_stored_cases_hold():
    spec = cases.request(PIPELINES["demo"], PIPELINES["demo"].adapter("flat-small"))
    stored, _ = judged.read(ROOT / "zoo")
    assert spec.bounds.looks == cases.LOOKS
    assert {case.probes for case in stored} <= {*cases.LOOKS}
    assert not spec.execution.build
    asked = {(scheme.name, order) for scheme in spec.schemes for order in spec.orders}
    assert {(case.stored["scheme"], case.stored["order"]) for case in stored} == asked


@pytest.mark.parametrize("name", sorted(PIPELINES))
def test_jobs_of_every_pipeline_go_to_other_processes(name: str) -> None:
    job = cases.Job(PIPELINES[name], {"name": "a"}, 3.0, argparse.Namespace())
    assert pickle.loads(pickle.dumps(job)).pipeline.name == name  # noqa: S301 -- made here


@pytest.mark.parametrize("missing", [False, True])
def test_cases_of_other_code_are_left_alone_where_only_missing_ones_are_asked_for(
    missing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.zoo.pipelines.SCALARS", tmp_path)
    monkeypatch.setattr(cases, "run", lambda *_: {"cases": [], "refused": "nothing"})
    job = cases.Job(
        PIPELINES["demo"],
        {"name": "a"},
        3.0,
        argparse.Namespace(dry_run=False, missing=missing, pictures=None, device="cpu"),
    )
    path = job.pipeline.cases("a", 3.0)
    path.parent.mkdir(parents=True)
    stored.write({"code": "0" * 16}, path)
    job.run()
    assert (stored.read(path) == {"code": "0" * 16}) is missing


def test_the_few_step_variant_has_its_adapter_in_every_arm() -> None:
    few = PIPELINES["few"]
    spec = cases.request(few, few.adapter("flat-slow"), *few.guidances)
    assert [Path(use.source).stem for use in spec.common] == ["few"]
    assert (spec.probes.steps, spec.probes.guidance, few.guidances) == (4, 1.0, (1.0,))


def test_an_adapter_is_measured_again_only_for_a_reason(tmp_path: Path):
    path = tmp_path / "cases" / "one.json.gz"
    assert cases.stale(path) == "it has no cases yet"
    stored.write({"code": "0" * 16}, path)
    assert str(cases.stale(path)).endswith(f"{cases.reading_code()} now")
    stored.write({"code": cases.reading_code()}, path)
    first = path.read_bytes()
    stored.write(stored.read(path), path)
    assert path.read_bytes() == first
    assert cases.stale(path) is None


def _said(kind: str, check: str, outcome: str, **changed: int) -> fooling.Row:
    row = {"attack": kind, "adapter": "flat-healthy", "check": check, "changed": changed, "outcome": outcome}
    return row | {"survival": 0.5, "lowest": None}


def test_a_check_catches_what_it_does_not_pass():
    rows = [
        _said("another size", "--seed random", "PASS", seed=1),
        _said("another size", "--seed random", "NEEDS-QAT", seed=2),
        _said("another size", "own size", "INCONCLUSIVE"),
        _said(fooling.NONE, "own size", "PASS"),
    ]
    lines = dict(line.split(": ", 1) for line in fooling.caught(rows))
    assert lines["--seed random"].startswith("1 of 2 runs on attacks did not pass, 0 of 0")
    assert lines["own size"].startswith("1 of 1 runs on attacks did not pass, 0 of 1")
    assert fooling.cell(rows[:2]) == "not PASS: 1 of 2"
    assert fooling.cell(rows[2:3]) == "INCONCLUSIVE 0.50, -"
    assert fooling.cell([]) == "not asked"


def test_an_attack_that_no_adapter_carries_out_is_named():
    trained = {"attack": "another size", "adapter": "flat-healthy", "survival_good": 0.6, "survival_bad": 0.2}
    passes = _said("one group of prompts", fooling.DEFAULT, "PASS")
    stored = {"trained": [trained], "checks": [passes, _said("another size", fooling.DEFAULT, "NEEDS-QAT")]}
    lines = dict(line.split(": ", 1) for line in fooling.unfooled(stored))
    assert "one group of prompts" not in lines
    assert lines["another guidance"] == "no adapter was trained"
    assert lines["another size"].endswith("best survival 0.60 where it looks, 0.20 elsewhere")


def test_only_what_nobody_asked_is_asked():
    known = [_said("another size", "--seed 7", "PASS", seed=7)]
    assert not list(fooling.missing(known, "another size", "flat-healthy", ["--seed 7"]))
    assert list(fooling.missing(known, "another guidance", "flat-healthy", ["--seed 7"])) == [("--seed 7", {"seed": 7})]
    draws = fooling.missing(known, "another size", "flat-healthy", ["--seed random"])
    assert [changed["seed"] for _, changed in draws] == [f"random:{draw}" for draw in fooling.DRAWS]


def test_the_page_has_the_table_of_what_is_stored():
    shown = fooling.MARKED.search(fooling.PAGE.read_text("utf-8"))
    assert shown is not None
    assert shown[0].split("```")[1].strip() == fooling.summary(json.loads(fooling.STORED.read_text("utf-8"))).strip()


def test_each_attack_has_a_check_that_asks_where_it_breaks():
    """The place where an adapter was trained to be erased is one that a check of ``CHECKS`` looks at."""
    for attack in fooling.ATTACKS.values():
        different = {
            name: value
            for name, value in attack.bad.model_dump().items()
            if value != getattr(attack.good, name) and name != "seed"
        }
        asked = [changed for every in fooling.CHECKS.values() for changed in every]
        assert attack.between or any(different.keys() <= changed.keys() for changed in asked)
        assert attack.between is not bool(different)


def test_the_table_of_pictures_is_what_is_stored() -> None:
    kept = json.loads(perceptual.STORED.read_text("utf-8"))
    assert f"```\n{perceptual.summary(kept)}\n```" in perceptual.PAGE.read_text("utf-8")
    lost = {one["adapter"]: one for one in kept if one["case"] == "quantize-merge"}
    assert all(perceptual.damaged(lost[name]) for name in ("ink-small", "flat-small"))
    assert all(lost[name]["measured"]["psnr"][0] > perceptual.GOOD for name in ("ink-small", "flat-small"))
    assert all(lost[name]["measured"]["style_survival"][2] < 0.5 for name in ("ink-small", "flat-small"))
