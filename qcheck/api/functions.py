"""One function for each command. Arguments are its options in snake case; each takes a name, a path or the value.

Without ``out`` a call writes only to the cache, and with ``cache=False`` not even there. No global state changes: a
call restores the number of torch's threads when it ends.
"""

import datetime
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from qcheck.api.keywords import Files, Made, Named, Request
from qcheck.api.lazy import host
from qcheck.api.request import CORES, asked, made, many, ranged
from qcheck.core import cache as caches
from qcheck.core import files
from qcheck.core.cache import Cache
from qcheck.core.errors import UserError
from qcheck.core.folder import ours, replaced, staged
from qcheck.core.progress import Progress, Silent
from qcheck.judge import compare as comparing
from qcheck.judge.compare import Comparison
from qcheck.result import store
from qcheck.result.advice import Advice
from qcheck.result.exported import Exported, Size
from qcheck.result.report import Report
from qcheck.spec import probe
from qcheck.spec.check import CheckSpec
from qcheck.spec.probe import ProbeSet
from qcheck.spec.ranges import Ranges
from qcheck.spec.recipe import PromptSet

if TYPE_CHECKING:
    from qcheck.tasks.qat import Calibration
    from qcheck.training.objective import Settings


@contextmanager
def writing(out: Named | None, overwrite: bool = False, option: str = "--out") -> Iterator[Path]:
    """The folder to write into: ``out``, complete or absent, or without it a temporary one."""
    if out is None:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    else:
        with staged(Path(out), overwrite, option) as folder:
            yield folder


@contextmanager
def caching(use_cache: bool) -> Iterator[Cache]:
    """The user's cache, or a temporary one that is removed when the block ends.

    Raises:
        UserError: the user's cache is no folder, or cannot be made or written.
    """
    if use_cache:
        root = caches.location()
        try:
            root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=root):
                pass
        except OSError as error:
            raise UserError(
                f"cache {str(root)!r} cannot be written: {error.strerror}",
                f"Give another folder in ${caches.VARIABLE}, or --no-cache.",
            ) from error
        yield Cache(root)
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Cache(Path(folder))


def default_out(name: str) -> Path:
    """``qcheck-out/<name>-<time>``: where a command writes by default."""
    return (
        Path("qcheck-out") / f"{Path(name).name.removesuffix('.safetensors')}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    )


def run(
    spec: CheckSpec,
    *,
    out: Named | None = None,
    overwrite: bool = False,
    cache: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Carry out a request."""
    with writing(out, overwrite) as folder, caching(cache) as entries:
        report: Report = host("qcheck.tasks.check").check(spec, folder, entries, progress or Silent())
    return report


def check(
    base: Named | CheckSpec,
    lora: Files = None,
    *,
    out: Named | None = None,
    overwrite: bool = False,
    cache: bool = True,
    progress: Progress | None = None,
    **request: Unpack[Request],
) -> Report:
    """Check one LoRA, or a stack of them, on one base for a device.

    Args:
        base: A diffusers pipeline folder, a hub id, "demo", or a whole request such as ``report.spec``.
        lora: A .safetensors file, or a list of them that are judged together; on "demo" also a shipped adapter's name.
        out: A folder for artifacts, report.json, its page and pictures.
        overwrite: Replace an earlier result in ``out``.
        cache: Use and keep results of earlier runs.
        progress: Receives every stage; silent by default.
        **request: The options of ``qcheck check``, see ``qcheck.api.keywords.Request``.

    Raises:
        UserError: bad input, or an adapter whose effect is too small to judge.
    """
    spec = asked(base, lora, **request)
    return run(spec, out=out, overwrite=overwrite, cache=cache, progress=progress)


def load_report(path: Named) -> Report:
    """The report in a folder that a check wrote, or in a report.json.

    Raises:
        UserError: there is none, or it is of another version.
    """
    return store.read(Path(path))


def export(
    base: Named | CheckSpec,
    lora: Files = None,
    *,
    out: Named,
    size: Sequence[Size] = (),
    overwrite: bool = False,
    cache: bool = True,
    progress: Progress | None = None,
    **request: Unpack[Made],
) -> Exported:
    """Write base + LoRA for a device, without judging it: a request's first scheme in its first order.

    Args:
        base: As for ``check``; ``report.spec`` of a check that passed exports what passed.
        lora: As for ``check``.
        out: The folder for ONNX files, engines, a build script and a manifest.
        size: (width, height) pairs in pixels that the engines take, tuned for the first; by default the probes' size.
        overwrite: Replace an earlier export in ``out``.
        cache: Use and keep results of earlier runs.
        progress: Receives every stage.
        **request: The options of ``qcheck export``, see ``qcheck.api.keywords.Made``.

    Raises:
        UserError: bad input, or a scheme that has no file.
    """
    if size:
        request = {"width": size[0][0], "height": size[0][1]} | request
    spec = asked(base, lora, **made(base, request))
    with writing(out, overwrite) as folder, caching(cache) as entries:
        exported: Exported = host("qcheck.tasks.export").export(spec, size, folder, entries, progress or Silent())
    return exported


def calibrate(
    base: Named | CheckSpec,
    lora: Files = None,
    *,
    method: str | None = None,
    merge: str | None = None,
    prompts: Named | Sequence[str] | None = None,
    own_prompts: bool = False,
    pictures: Named | None = None,
    out: Named | None = None,
    overwrite: bool = False,
    cache: bool = True,
    progress: Progress | None = None,
    **request: Unpack[Made],
) -> Ranges:
    """Find where the inputs of every layer are cut, by every method from one pass.

    Args:
        base: As for ``check``; the request's first scheme is calibrated.
        lora: As for ``check``.
        method: What cuts a range; by default the recipe's.
        merge: How the timesteps' ranges become one; by default the recipe's.
        prompts: Prompts to calibrate on instead of the recipe's: a text file, or a list.
        own_prompts: Calibrate on the trigger words and tags in the adapters' metadata.
        pictures: A folder of pictures to calibrate on: their latents under noise.
        out: The file to write, for ``ranges=`` of a check or an export.
        overwrite: Replace the file that an earlier calibration wrote to ``out``.
        cache: Use and keep results of earlier runs.
        progress: Receives every stage.
        **request: The options of ``qcheck calibrate``, see ``qcheck.api.keywords.Made``.

    Raises:
        UserError: bad input, a scheme without ranges, or a file that is there already.
    """
    spec = asked(base, lora, **made(base, request))
    prompt_sources = {f"--prompts {prompts}": prompts, "--own-prompts": own_prompts, f"--pictures {pictures}": pictures}
    if len(sources := [name for name, value in prompt_sources.items() if value]) > 1:
        raise UserError(f"{' and '.join(sources)} are given", "Give one of them.")
    probe_set: ProbeSet | None = None
    if isinstance(prompts, str | Path):
        probe_set = probe.from_text(Path(prompts), spec.probes)
    elif prompts is not None:
        probe_set = probe.from_prompts(prompts, spec.probes)
    prompt_set = None if probe_set is None else PromptSet(name=probe_set.name, prompts=probe_set.prompts)
    spec = spec.changed(recipe=ranged(spec.recipe, method, merge))
    picture_folder = None if pictures is None else Path(pictures)
    with replaced(out, overwrite, ours), caching(cache) as entries:
        ranges: Ranges = host("qcheck.tasks.calibrate").calibrate(
            spec, entries, progress or Silent(), prompt_set, own_prompts, picture_folder
        )
        if out is not None:
            files.write(Path(out), ranges.to_json())
    return ranges


def advise(
    report: Report | Named,
    *,
    base: Named | None = None,
    lora: Files = None,
    ranges: Named | None = None,
    style_pictures: Named | None = None,
    judge: str | Sequence[str] | None = None,
    out: Named | None = None,
    dry_run: bool = False,
    every: bool = False,
    overwrite: bool = False,
    cache: bool = True,
    device: str = "auto",
    precision: str = "float32",
    threads: int | None = None,
    progress: Progress | None = None,
) -> Advice:
    """Find the cheapest cure of every case that does not pass: each is run and judged again, until one passes.

    Args:
        report: A report, or the folder of one.
        base: Where the report's base is here, if not where the report says: every file is known by its digest.
        lora: The same of its adapters, in any order.
        ranges: The same of its ranges.
        style_pictures: The same of its folder of pictures.
        judge: The same of its networks, each as "clip=FOLDER".
        out: A folder for advice.json and what its commands need.
        dry_run: List what would be tried, and run nothing.
        every: Try everything, also after one has passed.
        overwrite: Replace earlier advice in ``out``.
        cache: Use and keep results of earlier runs.
        device: The device that computes: "cpu", "cuda" or "cuda:1"; by default the first CUDA device, if there is one.
        precision: "float32", or "tf32" for faster products on a GPU.
        threads: Processor threads; by default all.
        progress: Receives every stage.

    Raises:
        UserError: no report, or what it was made from is not here or has changed since.
    """
    report_value, name = (report, "") if isinstance(report, Report) else (load_report(report), str(report))
    given = host("qcheck.tasks.whereabouts").Given(
        base=None if base is None else str(base),
        lora=tuple(map(str, many(lora))),
        ranges=None if ranges is None else str(ranges),
        style_pictures=None if style_pictures is None else str(style_pictures),
        judge=tuple(many(judge)),
        folder=store.folder_of(Path(name)) if name else None,
    )
    with writing(out, overwrite) as folder, caching(cache) as entries:
        running = {"device": device, "precision": precision, "threads": threads or CORES}
        advice: Advice = host("qcheck.tasks.advise").advise(
            report_value, name, folder, entries, progress or Silent(), running, not dry_run, every, given
        )
    return advice


def qat(
    base: Named | CheckSpec,
    lora: Files = None,
    *,
    out: Named,
    settings: "Settings | None" = None,
    force: bool = False,
    report: Named | None = None,
    overwrite: bool = False,
    cache: bool = True,
    progress: Progress | None = None,
    **request: Unpack[Request],
) -> "Calibration":
    """Calibrate a LoRA for the scheme and order that it ships in, through the rounding of the artifact.

    Args:
        base: As for ``check``; the request's first scheme and order count.
        lora: One adapter.
        out: The calibrated LoRA to write, a .safetensors file.
        settings: Length, rate and other settings of the training; the defaults of ``qcheck qat`` without them.
        force: Train also where the adapter is broken at full precision.
        report: A folder for the reports before and after.
        overwrite: Replace earlier reports in ``report``, and an earlier calibration of this adapter in ``out``.
        cache: Use and keep results of earlier runs.
        progress: Receives every stage.
        **request: The options of ``qcheck check``, see ``qcheck.api.keywords.Request``.

    Raises:
        UserError: bad input, an adapter that is broken at full precision, or training that diverges.
    """
    spec = asked(base, lora, **request)
    path = Path(out)
    if path.suffix != ".safetensors" or not path.absolute().parent.is_dir():
        raise UserError(f"--out {str(out)!r} is no .safetensors file in a folder that exists", "Give another --out.")
    training_settings = settings or host("qcheck.training.objective").Settings()
    stage = host("qcheck.tasks.qat")
    with (
        replaced(path, overwrite, lambda file: bool(stage.is_calibrated(file, spec))),
        writing(report, overwrite) as folder,
        caching(cache) as entries,
    ):
        calibration: Calibration = stage.calibrate(
            spec, training_settings, path, folder, entries, progress or Silent(), force
        )
    return calibration


def compare(baseline: Report | Named, new: Report | Named) -> Comparison:
    """What changed from one report to another; ``.regressed`` says whether anything got worse.

    Raises:
        UserError: one of them is no report.
    """
    pairs = [("", item) if isinstance(item, Report) else (str(item), load_report(item)) for item in (baseline, new)]
    return comparing.against(pairs[0], pairs[1])
