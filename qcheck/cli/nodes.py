"""``qcheck nodes``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from qcheck.api import functions
from qcheck.api.lazy import host
from qcheck.core.errors import UserError


def nodes(
    folder: Annotated[Path, typer.Argument(help="The --out folder of a finished check.", metavar="FOLDER")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A new folder, for a file of each case.")],
) -> None:
    """Write each layer's share of the error as node data, which colours the exported graph in Model Explorer.

    Nothing is run or measured. Example:

    `qcheck nodes qcheck-out/flat-20261124-080000 --out nodes`
    """
    report = functions.load_report(folder)
    data = {
        f"{case.scheme}-{case.order}.json": host("qcheck.tasks.nodes").node_data(case, folder) for case in report.cases
    }
    try:
        out.mkdir(parents=True)
        for name, one in data.items():
            (out / name).write_text(json.dumps(one, indent=1) + "\n", "utf-8")
    except OSError as error:
        raise UserError(f"--out {str(out)!r}: {error.strerror}", "Give the name of a new folder.") from error
    for name, one in data.items():
        typer.echo(f"{out / name}  {len(one['results'])} layers")
