"""``qcheck calibrate``."""

from pathlib import Path
from typing import Annotated

import typer

from qcheck.api import functions
from qcheck.cli import options, terminal
from qcheck.cli.groups import Adapters, Artifact, Machine, Runs, grouped
from qcheck.cli.output import session
from qcheck.spec.recipe import MERGES, METHODS

_NAMES, _MERGES = ", ".join(METHODS), ", ".join(MERGES)


@grouped
def calibrate(
    base: options.Base,
    adapters: Adapters,
    artifact: Artifact,
    runs: Runs,
    machine: Machine,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")],
    overwrite: options.Overwrite = False,
    method: Annotated[
        str | None, typer.Option(help=f"What cuts a range: {_NAMES}. Default: the recipe's. The file holds them all.")
    ] = None,
    merge: Annotated[
        str | None,
        typer.Option(help=f"How the timesteps' ranges become one: {_MERGES}. Default: the recipe's."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="A text file of prompts to calibrate on, one a line, instead of the recipe's.")
    ] = None,
    own: Annotated[
        bool, typer.Option("--own-prompts", help="Calibrate on the trigger words and tags in the LoRA's own metadata.")
    ] = False,
    pictures: Annotated[
        Path | None,
        typer.Option(
            help="Meet these pictures' latents under noise: a folder, captions in .txt files of the same names."
        ),
    ] = None,
) -> None:
    """Find where the inputs of every layer are cut, as a file for `check --ranges` and `export --ranges`.

    One pass at full precision serves every method; with `--order refit` the file also has the ranges that adapters
    share. Example:

    `qcheck calibrate ./my-pipeline --lora style.safetensors --scheme int8 --method mse -o ranges.json`
    """
    with session(not machine.no_cache, silent=False) as progress:
        ranges = functions.calibrate(
            base,
            [*adapters.lora],
            method=method,
            merge=merge,
            prompts=prompts,
            own_prompts=own,
            pictures=pictures,
            out=out,
            overwrite=overwrite,
            cache=not machine.no_cache,
            progress=progress,
            **adapters.keywords(),
            **artifact.keywords(),
            **runs.sampling(),
            **machine.keywords(),
        )
    for prompt, why in ranges.left_out.items():
        terminal.console(stderr=True).print(f"left out {prompt!r}: {why}", markup=False)
    what = "pictures" if ranges.pictures else "prompts"
    typer.echo(f"{out}: {len(ranges.formats)} layers, {ranges.method}, {len(ranges.prompts)} {what}")
