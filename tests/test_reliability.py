"""The page of promises is made of data, and of tests that are there."""

import pytest

from benchmarks import reliability
from benchmarks.reliability import Promise, Record

RECORD = reliability.read()
NAMES = {name for one in RECORD.promises for name in one.tests}


def test_the_page_is_the_generated_one(request: pytest.FixtureRequest) -> None:
    """Where the whole suite is collected: then the cases of every test are known."""
    cases = reliability.functions(item.nodeid for item in request.session.items)
    if missing := NAMES - set(cases):
        pytest.skip(f"{len(missing)} of the tests that it names are not in this run")
    text = reliability.PAGE.read_text("utf-8")
    assert text == reliability.page(text, reliability.tables(RECORD, cases)), "python -m benchmarks.reliability --write"


@pytest.mark.parametrize("tests", [[], ["tests/audit/test_folder.py::test_that_is_not_there"]])
def test_a_promise_that_no_test_holds_is_an_error(tests: list[str]) -> None:
    promise = Promise(about="files", title="a file", promise="is refused", tests=tests)
    with pytest.raises(ValueError, match="'a file' is held by no test"):
        reliability.tables(Record(promises=[promise], trials=[], mutants=[]), {})


def test_a_page_without_a_place_for_a_table_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 places for the table 'files'"):
        reliability.page("# A page", {"files": ""})


def test_parameters_are_cases_of_one_test() -> None:
    assert reliability.functions(["a.py::test_x[1]", "a.py::test_x[b::c]", "a.py::test_y"]) == {
        "a.py::test_x": 2,
        "a.py::test_y": 1,
    }
