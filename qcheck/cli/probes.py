"""``qcheck probes``."""

import csv
import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from qcheck.cli import options
from qcheck.core.errors import UserError
from qcheck.core.values import names_in
from qcheck.report import comfyui
from qcheck.spec import probe as sets


def probes(
    name: Annotated[
        str,
        typer.Argument(
            help=f"A probe set, by name or TOML file: {', '.join(names_in(sets.FOLDER))}.",
            metavar="NAME",
            autocompletion=options.named(sets.FOLDER),
        ),
    ],
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="A text file of prompts instead of its own, one a line.")
    ] = None,
    trigger: Annotated[str | None, typer.Option(help="Words that wake the adapter, put before every prompt.")] = None,
    count: Annotated[int | None, typer.Option("--max-probes", min=1, help="Only so many of them.")] = None,
    form: Annotated[
        Literal["csv", "comfyui"], typer.Option("--format", help="csv, or comfyui: a line of JSON for each probe.")
    ] = "csv",
    checkpoint: Annotated[
        str | None, typer.Option(help="With comfyui: the base, as ComfyUI's list of checkpoints names it.")
    ] = None,
    lora: Annotated[
        str | None, typer.Option("--lora", help="With comfyui: a LoRA, as its list of LoRAs names it.")
    ] = None,
    weight: Annotated[float, typer.Option(help="With comfyui: how strongly it is applied.")] = 1.0,
) -> None:
    """Print prompts and seeds of a probe set, to draw the same pictures somewhere else.

    A line of comfyui is the body that ComfyUI's server takes at /prompt. Example:

    `qcheck probes general --format comfyui --checkpoint sd15.safetensors --lora style.safetensors`
    """
    chosen = sets.find(name)
    chosen = sets.triggered(chosen if prompts is None else sets.from_text(prompts, chosen), trigger)
    every = sets.probes(chosen if count is None else sets.repeated(chosen, count), ())
    if form == "csv":
        rows = csv.writer(sys.stdout, lineterminator="\n")
        rows.writerow(("prompt", "negative", "seed", "steps", "guidance", "width", "height"))
        rows.writerows((p.prompt, p.negative, p.seed, p.steps, p.guidance, p.width, p.height) for p in every)
        return
    if checkpoint is None:
        raise UserError("--format comfyui needs --checkpoint", "Name the base as ComfyUI's list of checkpoints does.")
    for one in every:
        typer.echo(json.dumps(comfyui.body(one, checkpoint, lora, weight)))
