"""``--bundle`` of ``qcheck export`` and ``qcheck check``."""

from pathlib import Path

import typer
from rich.console import Console
from rich.text import Text

from qcheck.api import functions
from qcheck.api.keywords import Bundling
from qcheck.cli.groups import Output
from qcheck.cli.output import session
from qcheck.core.size import megabytes
from qcheck.report.text import COLOURS
from qcheck.spec.check import CheckSpec


def write(spec: CheckSpec, folder: Path, content: Bundling, output: Output, keeps: bool, says: bool = True) -> None:
    """Write the bundle of a request to ``folder``, and say what to do with it, unless ``says`` is false."""
    with session(keeps, output.silent, output.log) as progress:
        bundled = functions.bundle(
            spec, out=folder, overwrite=output.overwrite, cache=keeps, progress=progress, **content
        )
    if not says:
        return
    if output.as_json:
        typer.echo(bundled.to_json(), nl=False)
        return
    if output.quiet:
        typer.echo(folder)
        return
    console = Console()
    verdict = (bundled.verdict, COLOURS[bundled.verdict])
    title = f" on this machine: {bundled.scheme} {bundled.order} for {bundled.target}, {bundled.probes} probes"
    console.print(Text.assemble("\n", verdict, title))
    packed = f"{folder}.tar.zst" if content.get("pack") else None
    console.print(f"bundle   {folder}, {megabytes(bundled.bytes)}", highlight=False, soft_wrap=True)
    if packed:
        console.print(f"to send  {packed}: tar --zstd -xf it on the board", highlight=False, soft_wrap=True)
    console.print(f"there    python3 {folder.name}/verify.pyz {folder.name}", highlight=False, soft_wrap=True)
    console.print("back     qcheck report --merge verify.json REPORT", highlight=False, soft_wrap=True)
