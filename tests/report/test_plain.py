"""One visible line of any text."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcheck.report.wording import line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\r\n\tb", "a b"),
        (os.fsdecode(b"caf\xe9.safetensors"), "caf\ufffd.safetensors"),
        ("\x1b[31mred", "\ufffd[31mred"),
        ("x\u202egnp.exe", "x\ufffdgnp.exe"),
        ("שלום 👩\u200d🚀", "שלום 👩\u200d🚀"),
        ("y" * 300, "y" * 199 + "…"),
    ],
)
def test_what_cannot_be_seen_is_replaced_and_letters_stay(text: str, shown: str) -> None:
    assert line(text) == shown


@given(st.text(st.characters(categories=["L", "N", "P", "Z", "C"]), max_size=300))
def test_it_is_one_line_that_can_be_encoded_and_stays_itself(text: str) -> None:
    shown = line(text)
    assert len(shown) <= 200
    assert len(shown.splitlines()) <= 1
    assert shown.encode().decode() == shown
    assert line(shown) == shown
