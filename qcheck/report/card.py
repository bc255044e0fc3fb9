"""A report as a model card of the Hugging Face Hub: metadata in front, and what a reader of the page needs.

The metadata are those of https://github.com/huggingface/hub-docs/blob/main/modelcard.md: ``model-index`` has a result
for each case. Each key is a line of JSON, which is YAML too.
"""

import json
import math
from pathlib import Path
from typing import Any

from qcheck.report import markdown
from qcheck.report.numbers import ARMS
from qcheck.result.report import Case, Report

_TASK = {"type": "text-to-image", "name": "Text-to-Image"}


def render(report: Report) -> str:
    """The card: metadata, the verdicts and measurements, how they were made."""
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in metadata(report).items()]
    return "\n".join(["---", *lines, "---", "", markdown.render(report)])


def metadata(report: Report) -> dict[str, Any]:
    """The card's metadata; measurements that are not finite, or were not measured, have no place in it."""
    name = "+".join(Path(adapter.source).stem for adapter in report.adapters)
    return {
        "library_name": "diffusers",
        "pipeline_tag": _TASK["type"],
        "tags": ["lora", "quantized", "onnx", "qcheck", *dict.fromkeys(case.scheme for case in report.cases)],
        "model-index": [{"name": name, "results": [_result(report, case) for case in report.cases]}],
    }


def _result(report: Report, case: Case) -> dict[str, Any]:
    probes = report.probes
    sampling = {"steps": probes.steps, "guidance": probes.guidance, "seed": probes.seed, "probes": case.probes_used}
    return {
        "task": _TASK,
        "dataset": {
            "type": f"qcheck-probes-{probes.digest}",
            "name": f"{probes.name} ({case.scheme} {case.order} on {report.target})",
            "args": sampling,
        },
        "metrics": [
            {"type": "qcheck-verdict", "name": "verdict", "value": case.outcome},
            *(
                {"type": one.name, "name": f"{one.name} ({ARMS[one.arm]})", "value": one.value}
                for one in case.measurements
                if one.limit is not None and one.value is not None and math.isfinite(one.value)
            ),
        ],
    }
