"""``qcheck compare``."""

from pathlib import Path
from typing import Annotated

import typer

from qcheck.cli import terminal
from qcheck.core.errors import UserError
from qcheck.judge import compare as stage
from qcheck.judge.compare import Comparison, Matrix
from qcheck.report import comparison
from qcheck.result import store


def compare(
    reports: Annotated[
        list[Path],
        typer.Argument(help="Folders that checks wrote, or their report.json.", metavar="BASELINE NEW | REPORT..."),
    ],
    as_matrix: Annotated[
        bool, typer.Option("--matrix", help="Show two reports as a matrix alone, as several always are.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON, and nothing else.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print it as Markdown, and nothing else.")] = False,
) -> None:
    """Hold a report against a baseline, or put several beside each other.

    It says which to ship: the smallest file that passes, of files as small the one with the most room to its limits. Of
    two reports that is a case of the new one that did not get worse, and the command is a regression check too: it
    exits 1 if a verdict, a build or a gated measurement got worse, and if something is no longer checked. A measurement
    got worse where the two 95 % intervals do not touch and more than a quarter of the room to its limit is gone, or its
    status changed.

    `qcheck compare baseline qcheck-out/style-20261124-080000` (for a CI job), `qcheck compare qcheck-out/*` (overview)
    """
    if as_json and as_markdown:
        raise UserError("both --json and --markdown are given", "Give one of them.")
    pairs = [(str(path), store.read(path)) for path in reports]
    regression = len(pairs) == 2 and not as_matrix
    result = stage.against(*pairs) if regression else stage.matrix(pairs)
    if as_json:
        typer.echo(result.model_dump_json(indent=1))
    elif as_markdown:
        typer.echo(_markdown(result), nl=False)
    elif isinstance(result, Comparison):
        comparison.changes_text(result, terminal.console())
    else:
        comparison.matrix_text(result, terminal.console())
    if isinstance(result, Comparison) and result.regressed:
        raise typer.Exit(1)


def _markdown(result: Comparison | Matrix) -> str:
    if isinstance(result, Comparison):
        return comparison.changes_markdown(result)
    return comparison.matrix_markdown(result)
