"""``qcheck verify``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from qcheck.api import board
from qcheck.core.errors import unknown
from qcheck.device import page
from qcheck.device.options import RUNNERS, exit_code


def verify(
    bundle: Annotated[Path, typer.Argument(help="The folder of a bundle.", metavar="BUNDLE")],
    runner: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(RUNNERS)}. Default: the first that works here.", metavar="NAME"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="verify.json. Default: in --work; verify.txt lies beside it.")
    ] = None,
    work: Annotated[
        Path | None, typer.Option(help="Engines and results, for the next run. Default: BUNDLE-verify.")
    ] = None,
    free_run: Annotated[bool, typer.Option("--free-run/--no-free-run", help="Also the probes' own runs.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print verify.json, and nothing else there.")] = False,
) -> None:
    """Verify a bundle on this machine, as verify.pyz does on the board.

    On a workstation ONNX Runtime runs it: the numbers of the files, not of the board's engines. Example:

    `qcheck verify style-int8 --runner onnxruntime`
    """
    if runner is not None and runner not in RUNNERS:
        raise unknown("runner", runner, RUNNERS)
    verified = board.verify(bundle, runner=runner, out=out, work=work, free_run=free_run)
    text = verified.to_json()
    typer.echo(text if as_json else page.text(json.loads(text)), nl=False)
    raise typer.Exit(exit_code(one.verdict for one in verified.every))
