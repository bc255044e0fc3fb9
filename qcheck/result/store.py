"""A report read back from its folder or file."""

from pathlib import Path

from pydantic import ValidationError

from qcheck.core import files
from qcheck.core.errors import UserError
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
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise UserError(
            f"report {str(file)!r} is not of {SCHEMA} as this qcheck writes it: {where}: {first['msg']}",
            "Give a report.json, made by this version: run the check again.",
        ) from error
