"""``qcheck report``."""

from pathlib import Path
from typing import Annotated

import typer

from qcheck.api import board
from qcheck.api.lazy import host
from qcheck.cli import terminal
from qcheck.report import text
from qcheck.result.report import REPORT, exit_code


def report(
    folder: Annotated[
        Path, typer.Argument(help="The --out folder of a finished check, or its report.json.", metavar="FOLDER")
    ],
    merge: Annotated[
        Path | None,
        typer.Option(
            "--merge",
            metavar="VERIFY.JSON",
            help="Add what a board said of its own engine to report.json first; the exit code is that of both: 0 pass, "
            "1 not, 3 open.",
        ),
    ] = None,
) -> None:
    """Render report.html of a finished check again, from report.json and what is stored beside it.

    Nothing is run or measured. Examples:

    `qcheck report qcheck-out/flat-20261124-080000`

    `qcheck report --merge verify.json qcheck-out/flat-20261124-080000` (docs/board.md)
    """
    place = folder.parent if folder.name == REPORT else folder
    if merge is None:
        typer.echo(host("qcheck.report.write").page(place))
        return
    merged = board.merge(merge, place)
    text.boards(merged, terminal.console())
    typer.echo(place / "report.html")
    raise typer.Exit(exit_code(merged))
