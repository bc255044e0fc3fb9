"""``qcheck nodes``."""

from pathlib import Path
from typing import Annotated

import typer

from qcheck.api import functions
from qcheck.api.lazy import host
from qcheck.result.report import REPORT


def nodes(
    folder: Annotated[
        Path, typer.Argument(help="The --out folder of a finished check, or its report.json.", metavar="FOLDER")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="A new or empty folder, for a file of each case.")],
) -> None:
    """Write each layer's share of the error as node data, which colours the exported graph in Model Explorer.

    Nothing is run or measured. Example:

    `qcheck nodes qcheck-out/flat-20261124-080000 --out nodes`
    """
    place = folder.parent if folder.name == REPORT else folder
    report = functions.load_report(place)
    for name, layers in host("qcheck.tasks.nodes").write(report, place, out).items():
        typer.echo(f"{out / name}  {layers} layers")
