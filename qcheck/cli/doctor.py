"""``qcheck doctor``."""

import json
from typing import Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from qcheck.cli import terminal
from qcheck.tasks import doctor as stage

_STYLE = {"ready": "green", "missing": "yellow", "never run": "magenta"}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Say what this machine can run, what is missing and how to add it, and what was never run anywhere.

    `qcheck doctor`
    """
    findings = stage.examine()
    if as_json:
        typer.echo(json.dumps([finding.model_dump() for finding in findings], indent=1))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("", "status", "detail"):
        table.add_column(title, overflow="fold")
    for finding in findings:
        detail = f"{finding.detail}\n{finding.fix}" if finding.fix else finding.detail
        table.add_row(finding.name, Text(finding.status, _STYLE[finding.status]), Text(detail))
    terminal.console().print(table)
