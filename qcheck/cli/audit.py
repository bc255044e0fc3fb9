"""``qcheck audit``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from qcheck.api import auditing
from qcheck.report import audited


def audit(
    folder: Annotated[Path, typer.Argument(help="The --out folder of a check, or of a sweep.", metavar="FOLDER")],
    limits: Annotated[
        str | None,
        typer.Option(help="Limits of your own, a name or a .toml file, to judge the same evidence by.", metavar="NAME"),
    ] = None,
    verified: Annotated[
        Path | None,
        typer.Option(
            metavar="VERIFY.JSON", help="What a board says by now: another board, TensorRT or checkpoint is named."
        ),
    ] = None,
    engine: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="An engine that verify.pyz built, with its record FILE.json beside it."),
    ] = None,
    signature: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A signature of the folder's report.intoto.json.")
    ] = None,
    public_key: Annotated[
        Path | None, typer.Option(metavar="PEM", help="The public key of who has to have signed it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the audit as JSON, and nothing else.")] = False,
) -> None:
    """Compute every interval, p-value and verdict of a report again, and find every changed byte.

    Nothing is run: the numbers of the probes are in report.json. It exits 0 if all is sound, 1 if a verdict does not
    follow from them or from the limits given, or no longer holds, 2 if bytes are changed, missing or not signed.

    `qcheck audit qcheck-out/flat-20261124-080000 --limits ours.toml`
    """
    result = auditing.audit(
        folder, limits=limits, verified=verified, engine=engine, signature=signature, public_key=public_key
    )
    if as_json:
        typer.echo(result.to_json(), nl=False)
    else:
        audited.text(result, Console())
    raise typer.Exit(result.code)
