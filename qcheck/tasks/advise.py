"""From a report to the cheapest cure of each case that does not pass, every one of them run and judged again."""

import functools
import math
import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open

from qcheck.core import cache
from qcheck.core.cache import Cache
from qcheck.core.digest import digest_of_value
from qcheck.core.errors import UserError
from qcheck.core.progress import Progress
from qcheck.core.values import names_in
from qcheck.diagnose import mixed
from qcheck.model import lora
from qcheck.qat.objective import Settings
from qcheck.quantize import plan
from qcheck.result import store as stored
from qcheck.result.advice import Advice, CaseAdvice, Tried
from qcheck.result.report import Case, Report
from qcheck.spec import limits, order, probe, recipe, scheme, target
from qcheck.spec.check import Argument, Job, Use
from qcheck.spec.recipe import Recipe
from qcheck.spec.scheme import Numbers, Scheme
from qcheck.tasks import check, inspect, qat, remedies
from qcheck.tasks.remedies import Ill, Remedy

_REPORT, _ADAPTER = "report.json", "calibrated.safetensors"
_CURABLE = ("NEEDS-QAT", "FAIL-RECIPE", "FAIL-ADAPTER", "INCONCLUSIVE")


def jobs(report: Report, kept: Path | None, threads: int) -> Iterator[tuple[Case, Job]]:
    """The cases that do not pass, each with the job that judged it, unless a file of someone else's was judged."""
    asked, whole = report.provenance.arguments, limits.find(report.provenance.limits)
    bounds = whole.at_most(_number(asked["max_probes"]))
    for case in report.cases:
        if case.verdict not in _CURABLE or case.quantized_layers is None:
            continue
        yield (
            case,
            Job(
                base=report.base.source,
                adapters=_uses(report, "adapted"),
                references=_uses(report, "reference"),
                common=_uses(report, "both"),
                allow_unmatched=bool(asked["allow_unmatched"]),
                schemes=(scheme.find(case.scheme),),
                artifacts=(),
                explicit=True,
                orders=(order.find(case.order),),
                target=target.find(report.target),
                probes=_probes(report, whole.looks[-1]),
                recipe=recipe.find(report.provenance.recipe),
                trigger=None if asked["trigger"] is None else str(asked["trigger"]),
                limits=bounds,
                out=Path(),
                cache=kept,
                threads=threads,
                batch=_number(asked["batch"]),
                build=bool(asked["build"]),
            ),
        )


def _number(given: Argument) -> int:
    return int(given) if isinstance(given, int | float) else 1


def _uses(report: Report, of: str) -> tuple[Use, ...]:
    found = [used for used in report.adapters if used.arms == of]
    for used in found:
        if lora.read(Use(used.source, used.weight or 0.0)).digest != used.digest:
            raise UserError(f"adapter {used.source!r} is not the one of the report", "Run qcheck check again.")
    return tuple(Use(used.source, used.weight or 0.0) for used in found)


def _probes(report: Report, count: int) -> probe.ProbeSet:
    """The report's probes; where they came from a file, those that it used, over again with other seeds."""
    asked = report.provenance.arguments
    own = {name: asked[name] for name in ("steps", "guidance", "seed", "width", "height")}
    known = names_in(probe.FOLDER)
    if report.probes.name in known:
        found = probe.find(report.probes.name).model_copy(update=own)
        found = probe.triggered(found, str(asked["trigger"]) if asked["trigger"] else None)
        if list(probe.repeated(found, len(report.probes.prompts)).prompts) == report.probes.prompts:
            return probe.repeated(found, count)
    given = own | {"name": report.probes.name, "prompts": tuple(report.probes.prompts)}
    return probe.repeated(probe.ProbeSet.model_validate(given), count)


def advise(
    report: Path,
    folder: Path,
    kept: Path | None,
    progress: Progress,
    threads: int = 1,
    run: bool = True,
    every: bool = False,
) -> Advice:
    """Try the remedies of every case that does not pass, until one passes (``every``: all of them), or only list them.

    Recipes and the calibrated adapter that a command needs are written to ``folder``. Results are found again by the
    digest of what they depend on.

    Raises:
        UserError: as ``stored.read``, or what the report was made from is no longer there.
    """
    cases = []
    for case, job in jobs(stored.read(report), kept or folder / "cache", threads):
        ill = Ill(job, case.verdict, _installed, functools.partial(choices_to_keep, case))
        tried: list[Tried] = []
        cure = None
        for found in remedies.remedies(ill):
            listed = _listed(found)
            if run and found.job is not None and (cure is None or every):
                listed = _run(found, found.job, listed, folder, progress)
                if listed.verdict == "PASS" and cure is None:
                    cure = len(tried)
            tried.append(listed)
        cases.append(CaseAdvice(scheme=case.scheme, order=case.order, verdict=case.verdict, tried=tried, cure=cure))
    advice = Advice(report=str(report), ran=run, cases=cases)
    (folder / "advice.json").write_text(advice.to_json(), "utf-8")
    return advice


def _installed(found: Scheme) -> bool:
    return all(find_spec(module) is not None for module in found.needs)


def _listed(found: Remedy) -> Tried:
    """The remedy with what weights alone say of it."""
    job = found.job
    return Tried(
        kind=found.kind,
        title=found.title,
        why=found.why,
        predicted_bytes=None if job is None else predicted_bytes(job.base, job.schemes[0], job.recipe),
        predicted_survival=None if job is None or found.train else _survival(job),
    )


def _survival(job: Job) -> float | None:
    """Of one plain LoRA, by ``qcheck inspect``'s forecast; None where it has none."""
    if len(job.adapters) != 1 or job.common or lora.is_dora(lora.read(job.adapters[0])):
        return None
    used = job.adapters[0]
    found = inspect.inspect(used.source, job.base, used.weight, [job.schemes[0]], job.recipe).forecasts
    return next((one.survival for one in found if one.order == job.orders[0]), None)


def predicted_bytes(base: str, chosen: Scheme, held: Recipe) -> int:
    """Of the denoiser's file, from the shapes of its tensors."""
    return sum(found.stored for found in tensors(base, chosen, held).values())


class Size(NamedTuple):
    """Bytes of a tensor as the scheme stores it and in the compute type, and whether it is quantized."""

    stored: int
    wide: int
    quantized: bool


def tensors(base: str, chosen: Scheme, held: Recipe) -> dict[str, Size]:
    """The size of every tensor of the denoiser, by its name."""
    found = {}
    compute = target.number_format(chosen.compute).bits
    for name, path in inspect.stored_layers(base)[1].items():
        with safe_open(path, "pt") as stream:
            weight = torch.empty(stream.get_slice(name).get_shape(), device="meta")
        wide = weight.numel() * compute // 8
        layered = name.endswith(".weight") and weight.dim() in (2, 4)
        quantized = layered and plan.quantizes(name.removesuffix(".weight"), weight, chosen, held)
        rule = chosen.rule("Linear" if weight.dim() == 2 else "Conv2d") if quantized else None
        found[name] = Size(wide if rule is None else _quantized(weight, rule.weights, compute), wide, quantized)
    return found


def _quantized(weight: torch.Tensor, numbers: Numbers, compute: int) -> int:
    steps = compute if numbers.scales is None else target.number_format(numbers.scales).bits
    return (weight.numel() * _bits(numbers, compute) + _steps(numbers, weight) * steps) // 8


def choices_to_keep(case: Case, job: Job) -> Iterator[tuple[str, ...]]:
    """Layers to keep in the compute type that leave the least of the gap: 8, 24 and any number, for some more bytes.

    By the integer program of ``mixed`` over the report's layers, and never beyond the target's memory.
    """
    sizes = tensors(job.base, job.schemes[0], job.recipe)
    options = {
        one.name: [mixed.Option("as it is", one.share, size.stored), mixed.Option(mixed.KEEP, 0.0, size.wide)]
        for one in case.layers
        if (size := sizes.get(f"{one.name}.weight")) is not None and math.isfinite(one.share)
    }
    now, before = sum(stored.bytes for stored, _ in options.values()), set[str]()
    for growth, most in _GROWTH if options else ():
        chosen = mixed.kept(mixed.choose(options, int(now + min(growth * now, _room(case))), most))
        if chosen and set(chosen) != before:
            yield tuple(chosen)
        before = set(chosen)


_GROWTH = ((0.05, 8), (0.15, 24), (0.4, None))  # of the quantized layers' bytes, with so many layers at most


def _room(case: Case) -> float:
    """Bytes that the target has left beside everything that runs; infinite where that is not known."""
    known = case.estimate
    if known is None or known.memory_gb is None:
        return math.inf
    return max(0.0, 1e9 * known.memory_gb - 1e6 * known.total_mb)


def _bits(numbers: Numbers, compute: int) -> int:
    return compute if numbers.granularity == "none" else target.number_format(numbers.format).bits


def _steps(numbers: Numbers, weight: torch.Tensor) -> int:
    if numbers.granularity == "none":
        return 0
    block = numbers.block_of(weight.shape[1]) if numbers.granularity == "block" else numbers.block
    return {"tensor": 1, "channel": len(weight)}.get(numbers.granularity, weight.numel() // (block or 1))


def _run(found: Remedy, job: Job, listed: Tried, folder: Path, progress: Progress) -> Tried:
    """Run it, or find what an earlier run gave."""
    start = time.monotonic()
    store = Cache(job.cache or folder / "cache")

    def make(place: Path) -> None:
        inner = folder / f"trying {found.title}"
        inner.mkdir()
        try:
            report = _report(found, job, place, inner, progress)
        finally:
            shutil.rmtree(inner)
        (place / _REPORT).write_text(report.to_json(), "utf-8")

    entry = store.obtain("advice", _key(found, job), found.title, make)
    (case,) = stored.read(entry).cases
    deployed = case.artifact[0].bytes if case.artifact else None
    values = {m.name: m.value for m in case.measurements if m.arm == "adapted"}
    return listed.model_copy(
        update={
            "verdict": case.verdict,
            "bytes": deployed,
            "survival": values.get("effect_survival"),
            "excess_error": values.get("excess_error"),
            "seconds": round(time.monotonic() - start, 1),
            "command": _command(found, job, entry, folder),
        }
    )


def _report(found: Remedy, job: Job, place: Path, inner: Path, progress: Progress) -> Report:
    if not found.train:
        return check.check(job, inner, progress)
    new = place / _ADAPTER
    qat.learn(job, Settings(), new, inner, progress)
    again = replace(job, adapters=(Use(str(new), job.adapters[0].weight),), references=job.adapters)
    return check.check(again, inner, progress)


def _key(found: Remedy, job: Job) -> str:
    values = (*job.schemes, job.target, job.probes, job.recipe, job.limits)
    adapters = [lora.read(used).digest for used in (*job.adapters, *job.references, *job.common)]
    settings = digest_of_value(Settings()) if found.train else ""
    return cache.key(
        "advice", cache.code(__name__), repr(job.arguments()), *map(digest_of_value, values), *adapters, settings
    )


def _command(found: Remedy, job: Job, entry: Path, folder: Path) -> str:
    """The command that gives the same, with the files it needs beside it. Files are named as they are in ``folder``."""
    named = job.recipe.name
    if named not in names_in(recipe.FOLDER):
        named = f"{named}.toml"
        (folder / named).write_text(recipe.text(job.recipe), "utf-8")
    adapters, references = list(job.adapters), list(job.references)
    if found.train:
        new = f"{Path(job.adapters[0].source).stem}-{job.schemes[0].name}-{job.orders[0]}.safetensors"
        shutil.copyfile(entry / _ADAPTER, folder / new)
        adapters, references = [Use(new, job.adapters[0].weight)], list(job.adapters)
    words = ["qcheck", "check", _absolute(job.base)]
    for used in adapters:
        words += ["--lora", _absolute(used.source), "--weight", f"{used.weight:g}"]
    words += [word for used in references for word in ("--reference-lora", _absolute(used.source))]
    words += [word for used in job.common for word in ("--with-lora", f"{_absolute(used.source)}={used.weight:g}")]
    words += ["--scheme", job.schemes[0].name, "--order", job.orders[0], "--target", job.target.name]
    words += ["--recipe", named, "--limits", job.limits.name, "--max-probes", f"{job.limits.looks[-1]}"]
    words += _sampling(job, folder)
    words += ["--trigger", job.trigger] if job.trigger else []
    return shlex.join([*words, *(["--allow-unmatched"] if job.allow_unmatched else [])])


def _absolute(source: str) -> str:
    """A path that holds in any folder; a hub id, or a file beside the command, as it is."""
    return str(Path(source).absolute()) if Path(source).exists() else source


def _sampling(job: Job, folder: Path) -> Sequence[str]:
    asked = {name: getattr(job.probes, name) for name in ("steps", "guidance", "seed", "width", "height")}
    words = [word for name, value in asked.items() if value is not None for word in (f"--{name}", f"{value:g}")]
    name = job.probes.name
    if name in names_in(probe.FOLDER):
        return ["--probes", name, *words]
    (folder / f"{name}.txt").write_text("\n".join(dict.fromkeys(job.probes.prompts)) + "\n", "utf-8")
    return ["--prompts", f"{name}.txt", *words]
