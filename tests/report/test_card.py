"""A model card, read back by the Hub's own library."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from qcheck.core.errors import UserError
from qcheck.report import card, markdown
from tests import reports
from tests.conftest import run
from tests.report.test_markdown import HOSTILE

FOLDER = Path(__file__).parent / "folder"


def test_the_hub_reads_every_case_with_its_verdict_and_measurements() -> None:
    lost = [reports.measurement("effect_survival", value=0.05, status="fail")]
    report = reports.report(reports.case(), reports.case("int4-g128", verdict="NEEDS-QAT", measurements=lost))
    read = ModelCard(card.render(report))
    values = {(one.dataset_name, one.metric_type): one.metric_value for one in read.data.eval_results}
    first, second = (f"emoji ({scheme} merge-quantize on {report.target})" for scheme in ("int8", "int4-g128"))
    assert (values[first, "qcheck-verdict"], values[second, "qcheck-verdict"]) == ("PASS", "NEEDS-QAT")
    assert values[second, "effect_survival"] == 0.05
    assert (first, "psnr") not in values  # it has no limit
    assert read.data.model_name == "flat"
    assert read.data.tags == ["lora", "quantized", "onnx", "qcheck", "int8", "int4-g128"]
    assert read.text.strip() == markdown.render(report).strip()


def test_what_was_not_measured_is_no_metric() -> None:
    unknown = [
        reports.measurement("effect_survival", value=None, status="not measured"),
        reports.measurement("endpoint_error", value=float("nan"), status="fail"),
    ]
    (result,) = card.metadata(reports.report(reports.case(measurements=unknown)))["model-index"][0]["results"]
    assert [one["type"] for one in result["metrics"]] == ["qcheck-verdict"]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_stay_values_of_the_metadata(text: str) -> None:
    report = reports.report(reports.case(text), target=text)
    read = ModelCard(card.render(report))
    assert set(read.data.to_dict()) == {"library_name", "pipeline_tag", "tags", "model-index"}
    assert read.data.tags[-1] == text


def test_a_card_is_printed_or_written_to_a_new_file(tmp_path: Path) -> None:
    printed = run("card", str(FOLDER))
    assert printed.exit_code == 0
    assert run("card", str(FOLDER), "--out", str(tmp_path / "README.md")).exit_code == 0
    assert (tmp_path / "README.md").read_text("utf-8") == printed.stdout
    again = run("card", str(FOLDER), "--out", str(tmp_path / "README.md"))
    assert isinstance(again.exception, UserError)
    assert "File exists" in again.exception.what
