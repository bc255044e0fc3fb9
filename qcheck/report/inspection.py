"""What ``qcheck inspect`` says of an adapter, or of many, in a terminal."""

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from qcheck.report.wording import folded, line
from qcheck.result.inspection import Details, Forecast, Inspection, LayerReport, Refusal
from qcheck.spec.fate import fates

_NUMBERS = ("|D| / |W|", "step\ngrowth dB", "hot\ncolumns", "intruders")
_LEAST, _GAP, _EDGES = 12, 3, 2  # least width of a name; what the table puts between two columns, and around them
_COLOURS = {"arrives": "green", "partly": "yellow"}


def one(inspection: Inspection, console: Console) -> None:
    """Contents, fates and, where they were asked for, the layers that change most."""
    ranks = sorted({layer.rank for layer in inspection.layers})
    scales = sorted({round(layer.scale, 4) for layer in inspection.layers})
    others = f", and {len(inspection.shifted)} biases and parameters of norms" if inspection.shifted else ""
    console.print(
        f"{escape(inspection.adapter)}: {len(inspection.layers)} layers, rank {_span(ranks)}, "
        f"alpha / rank {_span(scales)}{others}"
    )
    if inspection.triggers:
        words = ", ".join(
            f"{line(word, 80)} ({inspection.tags[word]})" if word in inspection.tags else line(word, 80)
            for word in inspection.triggers[:8]
        )
        console.print(f"trigger words in the file (how often): {escape(words)}; pass one to check by --trigger")
    if inspection.silent is not None:
        console.print(f"[bold red]does nothing[/]: {escape(inspection.silent)}")
        return
    if idle := sum(layer.idle for layer in inspection.layers):
        console.print(f"{idle} of its layers are zero")
    if not inspection.forecasts:
        console.print("give --base to see whether it does anything there, and which order would lose it")
        return
    _layers(inspection.layers, console)
    table = _table(())
    for forecast in inspection.forecasts:
        table.add_row(forecast.scheme, forecast.order, *_cells(forecast))
    console.print(table)
    console.print(f"limits: {fates().grounds}; [bold]qcheck check[/] measures what is left in pictures")


def several(results: Sequence[Inspection | Refusal], console: Console) -> None:
    """A row for each adapter, scheme and order, and for each that cannot be inspected."""
    unique = len({Path(result.adapter).name for result in results}) == len(results)
    keys = dict.fromkeys((f.scheme, f.order) for one in results if isinstance(one, Inspection) for f in one.forecasts)
    shared = next(iter(keys)) if len(keys) == 1 else ()
    empty = () if shared else ("", "")
    table = _table(shared, "file")
    for result in results:
        name = escape(Path(result.adapter).name if unique else result.adapter)
        if isinstance(result, Refusal):
            table.add_row(name, *empty, "[bold red]error[/]", "", escape(f"{result.error}. {result.fix}"))
        elif result.silent is not None:
            table.add_row(name, *empty, _coloured("does nothing"), "", escape(result.silent))
        elif not result.forecasts:
            table.add_row(name, *empty, "", "", f"{len(result.layers)} layers; no base was given")
        for forecast in result.forecasts if isinstance(result, Inspection) and result.silent is None else ():
            table.add_row(name, *(() if shared else (forecast.scheme, forecast.order)), *_cells(forecast))
    console.print(table)


def _table(shared: Sequence[str], *first: str) -> Table:
    """The columns; the scheme and the order, where all rows have the same, are in the title."""
    title = ", ".join(("what arrives", "forecast from the weights alone", *shared))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for name in first:
        table.add_column(name, overflow="fold")
    for name in (*(() if shared else ("scheme", "order")), "forecast\nfate"):
        table.add_column(name, no_wrap=True)
    table.add_column("forecast\nsurvival", justify="right", no_wrap=True)
    table.add_column("why")
    return table


def _cells(forecast: Forecast) -> tuple[str, ...]:
    error = f" ± {forecast.error:.2f}" if forecast.error >= 0.005 else ""
    return _coloured(forecast.fate), f"{forecast.survival:.2f}{error}", escape(forecast.reason)


def _coloured(fate: str) -> str:
    return f"[{_COLOURS.get(fate, 'bold red')}]{fate}[/]"


def _layers(layers: Sequence[LayerReport], console: Console) -> None:
    """The eight largest changes, where details were asked for."""
    known = [(layer, layer.details) for layer in layers if layer.details is not None]
    if not known:
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="largest changes", title_justify="left")
    table.add_column("layer", overflow="fold")
    for title in _NUMBERS:
        table.add_column(title, justify="right", no_wrap=True)
    room = console.width - sum(max(map(len, title.split("\n"))) + _GAP for title in _NUMBERS) - _EDGES
    for layer, details in sorted(known, key=lambda pair: -(pair[0].relative or 0))[:8]:
        table.add_row(Text(folded(layer.name, max(room, _LEAST))), f"{layer.relative:.3f}", *_detailed(details))
    console.print(table)


def _detailed(details: Details) -> tuple[str, ...]:
    intruders = "-" if details.intruders is None else str(details.intruders)
    return f"{details.step_growth:.2f}", str(details.hot_columns), intruders


def _span(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} .. {values[-1]:g}"
