"""``qcheck report``."""

from pathlib import Path
from typing import Annotated

import typer

from qcheck.api.lazy import host
from qcheck.result.report import REPORT


def report(
    folder: Annotated[
        Path, typer.Argument(help="The --out folder of a finished check, or its report.json.", metavar="FOLDER")
    ],
) -> None:
    """Render report.html of a finished check again, from report.json and what is stored beside it.

    Nothing is run or measured. Example:

    `qcheck report qcheck-out/flat-20261124-080000`
    """
    typer.echo(host("qcheck.report.html").write(folder.parent if folder.name == REPORT else folder))
