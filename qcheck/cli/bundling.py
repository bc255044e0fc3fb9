"""``--bundle`` of ``qcheck export`` and ``qcheck check``."""

from pathlib import Path

import typer
from rich.console import Console
from rich.text import Text

from qcheck.api import board
from qcheck.api.keywords import Bundling
from qcheck.cli import terminal
from qcheck.cli.groups import Output
from qcheck.cli.output import session
from qcheck.core.size import megabytes
from qcheck.report.text import COLOURS
from qcheck.result.bundled import Bundled
from qcheck.spec.check import CheckSpec


def written(spec: CheckSpec, folder: Path, content: Bundling, output: Output, keeps: bool) -> Bundled:
    """Write the bundle of a request to ``folder``."""
    with session(keeps, output.silent, output.log) as progress:
        return board.bundle(spec, out=folder, overwrite=output.overwrite, cache=keeps, progress=progress, **content)


def write(spec: CheckSpec, folder: Path, content: Bundling, output: Output, keeps: bool) -> None:
    """Write the bundle of a request to ``folder``, and say what to do with it."""
    bundled = written(spec, folder, content, output, keeps)
    if output.as_json:
        typer.echo(bundled.to_json(), nl=False)
    elif output.quiet:
        typer.echo(folder)
    else:
        console = terminal.console()
        verdict = (bundled.verdict, COLOURS[bundled.verdict])
        title = f" on this machine: {bundled.scheme} {bundled.order} for {bundled.target}, {bundled.probes} probes"
        console.print(Text.assemble("\n", verdict, title))
        tell(bundled, folder, content.get("pack", False), console)


def tell(bundled: Bundled, folder: Path, packed: bool, console: Console, report: str = "REPORT") -> None:
    """Say where a bundle is, what to do with it on the board, and how the result comes back."""
    lines = [f"bundle   {folder}, {megabytes(bundled.bytes)}"]
    lines += [f"to send  {folder}.tar.zst: tar --zstd -xf it on the board"] if packed else []
    lines += [f"there    python3 {folder.name}/verify.pyz {folder.name}"]
    lines += [f"back     qcheck report --merge verify.json {report}"]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
