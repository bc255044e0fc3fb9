"""A report read back from its folder or file. Every version reads its own schema alone, and names the one to take."""

import re
from pathlib import Path

from pydantic import ValidationError

from qcheck.core import files
from qcheck.core.errors import UserError
from qcheck.core.values import fault
from qcheck.result import pictures
from qcheck.result.report import REPORT, SCHEMA, Report


def read(path: Path) -> Report:
    """The report in a folder that a check wrote, or in a file.

    Raises:
        UserError: there is none, or it is not of this qcheck's schema.
    """
    file = path / REPORT if path.is_dir() else path
    try:
        return Report.model_validate_json(files.read_bytes(file))
    except OSError as error:
        raise UserError(
            f"report {str(file)!r}: {error.strerror}", f"Give a folder that `qcheck check` wrote, or its {REPORT}."
        ) from error
    except ValidationError as error:
        _require_schema(file)
        raise UserError(
            f"report {str(file)!r} is not of {SCHEMA} as this qcheck writes it: {fault(error)}",
            "Give a report.json, made by this version: run the check again.",
        ) from error


def folder_of(path: Path) -> Path:
    """The folder of the report that ``read`` takes from a folder or a file."""
    return path if path.is_dir() else path.parent


_RELEASED = {"qcheck-report/1": "0.1"}  # schemas that are read no more, and the last release that reads each


def _require_schema(file: Path) -> None:
    """Refuse a report of another schema, and name the qcheck that reads it."""
    try:
        contents = files.read_object(file)
    except ValueError:
        return
    schema = contents.get("schema")
    if schema == pictures.SCHEMA:
        raise UserError(
            f"report {str(file)!r} is of pictures, and a report of a check is needed here",
            f"Give what `qcheck check` wrote; {REPORT} of pictures is read by `qcheck audit`.",
        )
    if isinstance(schema, str) and re.fullmatch(r"qcheck-report/\d{1,4}", schema) and schema != SCHEMA:
        reader = f"qcheck {_RELEASED[schema]}" if schema in _RELEASED else "a newer qcheck"
        raise UserError(
            f"report {str(file)!r} is of {schema}, and this qcheck reads {SCHEMA}",
            f"Read it with {reader}, or run the check again.",
        )
