"""The JSON Schema of report.json, made from the values it is written from.

``python -m qcheck.result.schema > docs/report.schema.json`` writes the file again after a change of those values.
"""

import json
import sys
from typing import Any

from qcheck.result.report import SCHEMA, Report


def schema() -> dict[str, Any]:
    """JSON Schema, draft 2020-12."""
    contents = Report.model_json_schema(by_alias=True, mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": SCHEMA} | {
        key: value for key, value in contents.items() if key != "title"
    }


def text() -> str:
    """The file's content."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
