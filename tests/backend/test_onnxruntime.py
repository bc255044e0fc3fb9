"""Threads share rows; the numbers are those of one session."""

from pathlib import Path

import numpy as np
import pytest

from qcheck.runtime.ort_runner import OnnxRunner, session
from tests.conftest import Prepared


@pytest.mark.parametrize(("rows", "threads"), [(1, 2), (2, 2), (3, 2), (4, 3)])
def test_parts_of_a_batch_on_a_thread_each_give_what_one_session_gives(
    prepared: Prepared, rows: int, threads: int
) -> None:
    path: Path = prepared.exporter.full("adapted", "float32")
    given = {name: value[:rows] for name, value in prepared.inputs.items()}
    found = OnnxRunner(path, threads)(given)
    expected = session(path, 1).run(None, given)[0]
    assert found.dtype == np.float32
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-6)
