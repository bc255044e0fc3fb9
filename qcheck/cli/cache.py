"""``qcheck cache``: what earlier runs left behind to be reused."""

from collections import defaultdict
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from qcheck.cli import terminal
from qcheck.core import cache as store
from qcheck.core.cache import Cache, Item
from qcheck.core.size import megabytes

app = typer.Typer(
    help=f"Show or prune what runs keep: traces, ranges, artifacts, builds. ${store.VARIABLE} moves it. `qcheck cache`",
    invoke_without_command=True,
)


@app.callback()
def show(context: typer.Context) -> None:
    """Show what runs keep: traces, ranges, artifacts, builds.

    `qcheck cache`
    """
    if context.invoked_subcommand is not None:
        return
    folder = store.location()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("kind", "entries", "size"):
        table.add_column(title, justify="left" if title == "kind" else "right")
    items = Cache(folder).items()
    kinds: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        kinds[item.kind].append(item)
    for kind in sorted(kinds):
        table.add_row(kind, str(len(kinds[kind])), _size(kinds[kind]))
    table.add_row("all", str(len(items)), _size(items))
    console = terminal.console()
    console.print(str(folder), highlight=False, soft_wrap=True)
    console.print(table)
    console.print("remove some: qcheck cache prune --older-than 30    all: qcheck cache prune --older-than 0")


@app.command()
def prune(
    older: Annotated[float, typer.Option("--older-than", min=0, help="Remove what was not used for DAYS.")] = 30.0,
    size: Annotated[
        float, typer.Option("--max-gb", min=0, help="Then remove the oldest until this many GB are left.")
    ] = float("inf"),
) -> None:
    """Remove what has not been used for a while; anything removed is computed again when it is needed.

    `qcheck cache prune --older-than 7 --max-gb 20`
    """
    removed = Cache(store.location()).prune(older, size * 1e9)
    typer.echo(f"removed {len(removed)} entries, {_size(removed)}")


def _size(items: list[Item]) -> str:
    return megabytes(sum(item.bytes for item in items))
