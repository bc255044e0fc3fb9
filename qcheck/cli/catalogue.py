"""``qcheck targets`` and ``qcheck schemes``: what is known."""

import json
from collections.abc import Sequence
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qcheck.api.request import ALL
from qcheck.cli import options, terminal
from qcheck.spec import scheme, target
from qcheck.spec.target import Sourced, Target, number_format

_Json = Annotated[bool, typer.Option("--json", help="Print everything as JSON, with every source.")]


def targets(
    name: Annotated[
        str | None,
        typer.Argument(
            help="One device, by name or TOML file; without it, all.", autocompletion=options.named(target.FOLDER)
        ),
    ] = None,
    as_json: _Json = False,
) -> None:
    """Show the devices that are known, or one of them: numbers, where they come from, what it runs and what not.

    `qcheck targets jetson-agx-orin-64gb`
    """
    devices = [target.find(name)] if name else target.every_target()
    if as_json:
        typer.echo(json.dumps([device.model_dump() for device in devices], indent=1))
    elif name:
        _print_device(devices[0], terminal.console())
    else:
        _print_devices(devices, terminal.console())


def _table(*titles: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in titles:
        table.add_column(title, overflow="fold")
    return table


def _print_devices(devices: Sequence[Target], console: Console) -> None:
    table = _table("target", "SM", "memory", "bandwidth", "newest software", "quantizes to")
    table.columns[0].no_wrap = True
    for device in devices:
        table.add_row(
            device.name,
            device.capability.value,
            _number(device.memory_gb, "GB"),
            _number(device.bandwidth_gb_s, "GB/s"),
            device.releases[-1].name,
            " ".join(_formats(device)) or "nothing",
        )
    console.print(table)
    console.print("one of them, with sources, its schemes and what it refuses: qcheck targets NAME")


def _formats(device: Target) -> list[str]:
    """Short names of the weight formats of the device's quantizing schemes."""
    names = {rule.weights.format for quantizing in device.deployable() for rule in quantizing.rules}
    return sorted(number_format(name).title.partition(" ")[0] for name in names)


def _number(sourced: Sourced[float] | None, unit: str) -> str:
    return "per card" if sourced is None else f"{sourced.value:g} {unit}"


def _print_device(device: Target, console: Console) -> None:
    console.print(f"[bold]{escape(device.title)}[/] ({device.name})")
    table = _table("", "value", "source")
    table.add_row("compute capability", device.capability.value, device.capability.source)
    for title, known, unit in (
        ("memory", device.memory_gb, "GB"),
        ("bandwidth", device.bandwidth_gb_s, "GB/s"),
    ):
        table.add_row(title, _number(known, unit), known.source if known else "")
    titles = ", ".join(number_format(name).title for name in device.formats.value)
    table.add_row("number formats", titles, device.formats.source)
    if device.proxy is not None:
        table.add_row("compiled here for", f"SM {device.proxy.value}", device.proxy.source)
    for peak in device.peaks:
        table.add_row(f"peak {number_format(peak.format).title}", f"{peak.tera_ops:g} T/s dense", peak.source)
    for release in device.releases:
        versions = f"TensorRT {release.tensorrt}, CUDA {release.cuda}, ONNX opset {release.opset}"
        table.add_row(release.name, versions, release.source)
    console.print(table)
    table = _table("scheme", "here", "why not, or what to know")
    for candidate in scheme.every():
        refusal = device.refuses(candidate)
        table.add_row(candidate.name, "no" if refusal else "yes", refusal or "; ".join(device.warns(candidate)))
    console.print(table)
    for note in device.notes:
        console.print(f"- {escape(note)}")


def schemes(
    device: Annotated[
        str | None,
        typer.Option(
            "--target",
            "-t",
            help="Say which of them this device runs.",
            autocompletion=options.named(target.FOLDER),
        ),
    ] = None,
    as_json: _Json = False,
) -> None:
    """Show the schemes that are known: what each quantizes, what is left in which type, and what runs it.

    `qcheck schemes --target jetson-thor-t5000`
    """
    catalogue = scheme.every()
    if as_json:
        typer.echo(json.dumps([entry.model_dump() for entry in catalogue], indent=1))
        return
    target_device = target.find(device) if device else None
    table = _table("scheme", "what it is", "rest", "opset", "run by", *([target_device.name] if target_device else []))
    for entry in catalogue:
        here = [target_device.refuses(entry) or "yes"] if target_device else []
        table.add_row(entry.name, entry.title, entry.compute, str(entry.opset), ", ".join(entry.runs), *here)
    console = terminal.console()
    console.print(table)
    console.print(f"one is chosen by --scheme; a file of your own works too. `{ALL}` takes all a device runs.")
