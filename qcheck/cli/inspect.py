"""``qcheck inspect``."""

from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from qcheck.api import functions
from qcheck.cli import options
from qcheck.cli.progress import Bars
from qcheck.core.progress import Silent
from qcheck.report.wording import folded
from qcheck.spec import recipe, scheme


def inspect(
    lora: Annotated[
        str,
        typer.Argument(
            help="The LoRA: a .safetensors file, or a name of the demo's.",
            metavar="L",
            autocompletion=options.adapters,
        ),
    ],
    base: Annotated[str | None, typer.Option(help="The base it is meant for: a pipeline folder, or `demo`.")] = None,
    weight: Annotated[float, typer.Option(help="How strongly the adapter is applied.")] = 1.0,
    schemes: Annotated[
        list[str] | None,
        typer.Option(
            "--scheme",
            "-s",
            help="Default: all that weights alone forecast.",
            autocompletion=options.named(scheme.FOLDER),
        ),
    ] = None,
    ranges: Annotated[
        str,
        typer.Option("--recipe", help="Whose kept layers are left out.", autocompletion=options.named(recipe.FOLDER)),
    ] = "general",
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Look at an adapter without running it: ranks, scale, and whether each scheme and order would lose it.

    `qcheck inspect faint --base demo`
    """
    bars = Silent() if as_json else Bars(Console(stderr=True))
    inspection = functions.inspect(lora, base, weight=weight, scheme=schemes, recipe=ranges, progress=bars)
    if as_json:
        typer.echo(inspection.model_dump_json(indent=1))
    else:
        _render(inspection, Console())


def _render(inspection: Any, console: Console) -> None:
    ranks = sorted({layer.rank for layer in inspection.layers})
    scales = sorted({round(layer.scale, 4) for layer in inspection.layers})
    console.print(
        f"{escape(inspection.adapter)}: {len(inspection.layers)} layers, rank {_span(ranks)}, "
        f"alpha / rank {_span(scales)}"
    )
    if inspection.triggers:
        words = ", ".join(
            f"{word} ({inspection.tags[word]})" if word in inspection.tags else word for word in inspection.triggers[:8]
        )
        console.print(f"trigger words in the file (how often): {escape(words)}; pass one to check by --trigger")
    if inspection.unmatched:
        console.print(
            f"[bold red]{len(inspection.unmatched)} layers are not in this base[/], first {inspection.unmatched[0]}"
        )
    measured = [layer for layer in inspection.layers if layer.relative is not None]
    if not measured:
        console.print("give --base to see what it does to the weights, and which order would lose it")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="largest changes", title_justify="left")
    table.add_column("layer", overflow="fold")
    for title in _NUMBERS:
        table.add_column(title, justify="right", no_wrap=True)
    room = console.width - sum(max(map(len, title.split("\n"))) + _GAP for title in _NUMBERS) - _EDGES
    for layer in sorted(measured, key=lambda change: -change.relative)[:8]:
        table.add_row(
            Text(folded(layer.name, max(room, _LEAST))),
            f"{layer.relative:.3f}",
            f"{layer.step_growth:.2f}",
            str(layer.hot_columns),
            "-" if layer.intruders is None else str(layer.intruders),
        )
    console.print(table)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="forecast from the weights alone", title_justify="left")
    for title in ("scheme", "order", "survival", _NOISE, "the order"):
        table.add_column(title, justify="right" if title in ("survival", _NOISE) else "left")
    for forecast in inspection.forecasts:
        note = "[bold red]loses it[/]" if forecast.survival < _LOST else ""
        table.add_row(forecast.scheme, forecast.order, f"{forecast.survival:.2f}", f"{forecast.snr:.1f}", note)
    console.print(table)
    console.print(
        "survival decides: the share of the adapter that arrives on average. Noise that merging adds is spread over "
        "all weights and mostly cancels in a layer's output; `qcheck check` measures what is left."
    )


_LOST = 0.9
_NUMBERS = ("|D| / |W|", "step\ngrowth dB", "hot\ncolumns", "intruders")
_LEAST, _GAP, _EDGES = 12, 3, 2  # least width of a name; what the table puts between two columns, and around them
_NOISE = "signal over\nits noise, dB"


def _span(values: list[float]) -> str:
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} .. {values[-1]:g}"
