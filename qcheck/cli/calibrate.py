"""``qcheck calibrate``."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from qcheck.cli import options, output, resolve
from qcheck.cli.lazy import host
from qcheck.cli.progress import Bars
from qcheck.core import cache
from qcheck.core.errors import UserError, unknown
from qcheck.demo import library
from qcheck.spec import limits, probe, recipe, scheme, target
from qcheck.spec.check import Job
from qcheck.spec.recipe import MERGES, METHODS, PromptSet

_NAMES, _MERGES = ", ".join(METHODS), ", ".join(MERGES)


def calibrate(
    base: Annotated[str, typer.Argument(help="A diffusers pipeline folder, a hub id, or `demo`.", metavar="BASE")],
    lora: options.Loras,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")],
    overwrite: options.Overwrite = False,
    chosen: Annotated[str, typer.Option("--scheme", "-s", help="A scheme by name or TOML file.")] = library.SCHEME,
    method: Annotated[
        str | None, typer.Option(help=f"What cuts a range: {_NAMES}. Default: the recipe's. The file holds them all.")
    ] = None,
    merge: Annotated[
        str | None,
        typer.Option(help=f"How the timesteps' ranges become one: {_MERGES}. Default: the recipe's."),
    ] = None,
    weight: options.Weights = None,
    with_lora: options.Common = None,
    allow_unmatched: options.Unmatched = False,
    order: Annotated[str | None, typer.Option(help="`refit` adds the ranges that adapters share.")] = None,
    ranges: options.Ranges = None,
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
    trigger: options.Trigger = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    width: options.Width = None,
    height: options.Height = None,
    no_cache: options.NoCache = False,
    threads: options.Threads = options.CORES,
    batch: options.Batch = 8,
) -> None:
    """Find where the inputs of every layer are cut, as a file for `check --ranges` and `export --ranges`.

    One pass at full precision serves every method. Example:

    `qcheck calibrate ./my-pipeline --lora style.safetensors --scheme int8 --method mse -o ranges.json`
    """
    sampling = {"steps": steps, "guidance": guidance, "width": width, "height": height}
    judged = resolve.judged(None, None, base == library.NAME, sampling, trigger)
    how, left_out = resolve.ranges(ranges, base == library.NAME), dict[str, str]()
    if method is not None:
        how = how.model_copy(update={"method": _known("range method", method, METHODS)})
    if merge is not None:
        how = how.model_copy(update={"merge": _known("merge of ranges", merge, MERGES)})
    given = _given(lora, base, prompts, own, pictures)
    shown: Sequence[Any] = ()
    if pictures is not None:
        shown, left_out = host("qcheck.calibrate.screen").screened(host("qcheck.calibrate.pictures").find(pictures))
        given = PromptSet(name=pictures.name, prompts=tuple(one.caption for one in shown))
    if given is not None:
        if own or shown:
            given, more = recipe.screened(given, judged)
            shown = [one for one in shown if one.caption not in more]
            left_out = left_out | more
        how = how.model_copy(update={"samples": min(how.samples, len(given.prompts))})
    recipe.calibration(how, judged, trigger, given)
    job = Job(
        base=resolve.base(base),
        adapters=resolve.adapters(base, lora, weight or []),
        common=resolve.common(base, with_lora or []),
        references=(),
        allow_unmatched=allow_unmatched,
        schemes=(scheme.find(chosen),),
        artifacts=(),
        explicit=True,
        orders=resolve.orders([order] if order else None),
        target=target.find(options.TARGET),
        probes=judged,
        recipe=how,
        trigger=trigger,
        limits=limits.find("default"),
        out=out,
        cache=None if no_cache else cache.location(),
        threads=threads,
        batch=batch,
        build=False,
        calibrating=given,
        pictures=tuple(one.path for one in shown),
    )
    console = Console(stderr=True)
    with (
        output.interruptible(job.cache is not None),
        output.replaced(out, overwrite, output.ours),
        tempfile.TemporaryDirectory() as folder,
    ):
        work = host("qcheck.tasks.work").prepare(job, Path(folder), Bars(console))
        found = host("qcheck.calibrate.inputs").ranges_file(work, job.schemes[0], left_out)
        out.write_text(found.to_json(), "utf-8")
    for prompt, why in left_out.items():
        console.print(f"left out {prompt!r}: {why}", markup=False)
    what = "pictures" if shown else "prompts"
    typer.echo(f"{out}: {len(found.formats)} layers, {found.method}, {len(found.prompts)} {what}")


def _known(what: str, name: str, known: Sequence[str]) -> str:
    if name not in known:
        raise unknown(what, name, known)
    return name


def _given(lora: list[str], base: str, prompts: Path | None, own: bool, pictures: Path | None) -> PromptSet | None:
    """Prompts of the user's or of the adapters' own; None: the recipe's, or those of the pictures."""
    many = {f"--prompts {prompts}": prompts, "--own-prompts": own, f"--pictures {pictures}": pictures}
    if len(asked := [name for name, value in many.items() if value]) > 1:
        raise UserError(f"{' and '.join(asked)} are given", "Give one of them.")
    if prompts is not None:
        read = probe.from_text(prompts, probe.find("general"))
        return PromptSet(name=read.name, prompts=read.prompts)
    if not own:
        return None
    sources = [library.resolve(base, source)[1] for source in lora]
    words: list[str] = [word for source in sources for word in host("qcheck.calibrate.inputs").own_prompts(source)]
    if not words:
        raise UserError(
            f"{', '.join(lora)}: no trigger words or tags in the metadata to calibrate on",
            "Give --prompts FILE, or leave --own-prompts out.",
        )
    return PromptSet(name=Path(lora[0]).stem, prompts=tuple(dict.fromkeys(words)))
