"""Style and subject of pictures, on features that are drawn: exact laws, no network."""

from collections.abc import Callable

import numpy as np
import pytest

from qcheck.device.arithmetic import pseudo_values
from qcheck.measure import interval, style
from qcheck.measure.style import Features

COUNT = 6


def drawn(seed: int, count: int = COUNT) -> Features:
    rng = np.random.default_rng(seed)
    places = tuple(rng.standard_normal((count, c, 2, 2)) for c in (3, 5))
    return Features(tuple(rng.standard_normal((count, d)) for d in (4, 6)), places, places[-1].mean((2, 3)))


def between(a: Features, b: Features, share: float) -> Features:
    def mixed(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return x + share * (y - x)

    styles = tuple(mixed(x, y) for x, y in zip(a.styles, b.styles, strict=True))
    places = tuple(mixed(x, y) for x, y in zip(a.places, b.places, strict=True))
    return Features(styles, places, mixed(a.subject, b.subject))


F0, F1 = drawn(0), drawn(1)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0, 1.3])
def test_style_survival_is_the_share_that_is_left(share: float) -> None:
    found = style.style_survival(F0, F1, between(F0, F1, share)).values
    assert found == pytest.approx(np.full(COUNT, share))
    assert style.each(F0, F1, between(F0, F1, share)) == pytest.approx(np.full(COUNT, share))


def test_every_stage_counts_alike_whatever_its_size() -> None:
    def louder(one: Features) -> Features:
        return Features((1000 * one.styles[0], one.styles[1]), one.places, one.subject)

    half = Features((F0.styles[0], F1.styles[1]), F1.places, F1.subject)  # one stage lost, one kept
    assert style.style_survival(F0, F1, half).values.mean() == pytest.approx(0.5, abs=0.05)
    loud = style.style_survival(louder(F0), louder(F1), louder(half)).values
    assert loud == pytest.approx(style.style_survival(F0, F1, half).values)


def test_a_style_that_pictures_share_is_told_from_changes_of_each_its_own() -> None:
    shared = Features(tuple(s + 1 for s in F0.styles), F0.places, F0.subject)
    assert style.style_effect(F0, shared).values == pytest.approx(np.ones(COUNT))
    own = interval.measure(style.style_effect(drawn(2, 200), drawn(3, 200)), None, 0.01)
    assert own.low < 0 < own.high  # type: ignore[operator]


@pytest.mark.parametrize(
    ("measure", "perfect", "other"), [(style.deep_distance, 0.0, 1.0), (style.subject_survival, 1.0, 0.0)]
)
def test_partners_are_equal_and_another_pictures_partner_is_as_far_as_it_gets(
    measure: Callable[..., style.Sample], perfect: float, other: float
) -> None:
    full = drawn(4, 100)
    assert measure("adapted", full, full).values == pytest.approx(np.full(100, perfect))
    turned = Features(full.styles, tuple(np.roll(p, 1, 0) for p in full.places), np.roll(full.subject, 1, 0))
    found = interval.measure(measure("adapted", turned, full), None, 0.01)
    assert found.low < other < found.high  # type: ignore[operator]


def test_distances_are_lengths_and_not_their_squares() -> None:
    full = Features(F1.styles, F1.places[:1], F1.subject)
    other = Features(F0.styles, F0.places[:1], F0.subject)
    squares = style._Distances.of(style._flat(other.places[0]), style._flat(full.places[0]))
    expected = pseudo_values(lambda rows: np.sqrt(squares.relative(rows)), COUNT)
    assert style.deep_distance("adapted", other, full).values == pytest.approx(expected)


def test_leaving_a_picture_out_is_the_distance_of_the_others() -> None:
    rows = np.array([0, 2, 3, 5])
    distances = style._Distances.of(F0.subject, F1.subject)
    here = style._Distances.of(F0.subject[rows], F1.subject[rows])
    assert distances.relative(rows) == pytest.approx(here.relative(np.arange(4)))
    pairs = [np.square(F1.subject[i] - F1.subject[j]).sum() for i in rows for j in rows if i != j]
    apart = np.square(F0.subject - F1.subject).sum(1)[rows].mean()
    assert distances.relative(rows) == pytest.approx(apart / np.mean(pairs))


def test_what_is_not_finite_or_does_nothing_is_no_number() -> None:
    broken = Features(tuple(s * np.nan for s in F1.styles), F1.places, F1.subject)
    assert np.isnan(style.style_survival(F0, F1, broken).values).all()
    assert np.isnan(style.style_survival(F0, F0, F1).values).all()


def test_arms_that_are_there_are_measured() -> None:
    found = [(s.name, s.arm) for s in style.samples(F0, F1, {"adapted": F1})]
    assert found == [
        (name, "adapted") for name in ("style_survival", "style_effect", "deep_distance", "subject_survival")
    ]
    assert len(style.samples(F0, F1, {"base": F0, "adapted": F1})) == 6
