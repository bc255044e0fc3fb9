"""``qcheck card``."""

import errno
import os
from pathlib import Path
from typing import Annotated

import typer

from qcheck.api import functions
from qcheck.core import files
from qcheck.core.errors import UserError
from qcheck.report import card as cards


def card(
    folder: Annotated[
        Path, typer.Argument(help="The --out folder of a finished check, or its report.json.", metavar="FOLDER")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A new file, such as README.md. Default: standard output.")
    ] = None,
) -> None:
    """Write a finished check as a model card for the Hugging Face Hub: metadata with every case, and its tables.

    Nothing is run or measured. Example:

    `qcheck card qcheck-out/flat-20261124-080000 --out README.md`
    """
    text = cards.render(functions.load_report(folder))
    if out is None:
        typer.echo(text, nl=False)
        return
    try:
        if out.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        files.write(out, text)
    except OSError as error:
        raise UserError(f"--out {str(out)!r}: {error.strerror}", "Give the name of a new file in a folder.") from error
    typer.echo(out)
