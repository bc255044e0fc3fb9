import json

from qcheck.tasks import doctor
from tests.conftest import run


def test_what_is_installed_missing_and_never_run_is_said() -> None:
    found = {f.name: f for f in doctor.examine()}
    assert found["torch"].status == "ready"
    assert found["engines on a device"].status == "never run"
    assert all(f.fix for f in found.values() if f.status == "missing" and f.name in doctor._PARTS)
    assert "SM86" in found["TensorRT-RTX compiles for"].detail


def test_the_command_prints_a_table_and_json() -> None:
    assert "never run" in run("doctor").stdout
    assert {f["name"] for f in json.loads(run("doctor", "--json").stdout)} >= {"qcheck", "torch", "tensorrt"}
