"""From a report to the cheapest cure of each case that does not pass, every one of them run and judged again."""

import functools
import math
import shutil
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open

from qcheck.core import cache as caches
from qcheck.core.cache import Cache
from qcheck.core.digest import digest_of, digest_of_folder, digest_of_value
from qcheck.core.errors import UserError
from qcheck.core.progress import Progress
from qcheck.diagnose import mixed
from qcheck.model import load, lora
from qcheck.quantize import plan
from qcheck.result import store
from qcheck.result.advice import Advice, CaseAdvice, Tried
from qcheck.result.report import REPORT, Case, Report
from qcheck.result.verdict import CURABLE
from qcheck.spec import command, order, target
from qcheck.spec.check import CheckSpec, Use
from qcheck.spec.recipe import Recipe
from qcheck.spec.scheme import Numbers, Scheme
from qcheck.tasks import check, inspect, qat, remedies
from qcheck.tasks.remedies import FailingCase, Remedy
from qcheck.training.objective import Settings

_ADAPTER = "calibrated.safetensors"


def requests(report: Report) -> Iterator[tuple[Case, CheckSpec]]:
    """The cases that do not pass, each with the request that judged it, unless a file of someone else's was judged.

    Raises:
        UserError: what the report was made from has changed since.
    """
    require_unchanged(report)
    known = {scheme.name: scheme for scheme in report.spec.schemes}
    for case in report.cases:
        if case.verdict in CURABLE and case.quantized_layers is not None:
            yield case, report.spec.of_case(known[case.scheme], order.find(case.order))


def require_unchanged(report: Report) -> None:
    """Refuse a report whose base, adapters or ranges are other files by now.

    Raises:
        UserError: one is gone, or has another digest.
    """
    if digest_of_folder(load.locate(report.spec.base)) != report.base.digest:
        raise UserError(f"base {report.spec.base!r} is not the one of the report", "Run qcheck check again.")
    uses = (*report.spec.adapters, *report.spec.references, *report.spec.common)
    for used, told in zip(uses, report.adapters, strict=True):
        if lora.read(used).digest != told.digest:
            raise UserError(f"adapter {used.source!r} is not the one of the report", "Run qcheck check again.")
    if report.ranges is not None:
        path = Path(report.ranges.source)
        if not path.is_file() or digest_of(path) != report.ranges.digest:
            raise UserError(f"ranges {str(path)!r} are not those of the report", "Run qcheck check again.")


def advise(
    report: Report,
    name: str,
    folder: Path,
    cache: Cache,
    progress: Progress,
    threads: int = 1,
    run: bool = True,
    every: bool = False,
) -> Advice:
    """Try the remedies of every case that does not pass, until one passes (``every``: all of them), or only list them.

    ``name`` is what the report is called in the advice. What a command needs is written to ``folder``. Results are
    found again by the digest of what they depend on.

    Raises:
        UserError: what the report was made from is no longer there.
    """
    cases = []
    for case, asked in requests(report):
        spec = asked.changed(execution=asked.execution.model_copy(update={"threads": threads}))
        ill = FailingCase(spec, case.verdict, _installed, functools.partial(choices_to_keep, case))
        tried: list[Tried] = []
        cure = None
        for found in remedies.remedies(ill):
            listed = _listed(found)
            if run and found.spec is not None and (cure is None or every):
                listed = _run(found, found.spec, listed, folder, cache, progress)
                if listed.verdict == "PASS" and cure is None:
                    cure = len(tried)
            tried.append(listed)
        cases.append(CaseAdvice(scheme=case.scheme, order=case.order, verdict=case.verdict, tried=tried, cure=cure))
    advice = Advice(report=name, ran=run, cases=cases)
    (folder / "advice.json").write_text(advice.to_json(), "utf-8")
    return advice


def _installed(found: Scheme) -> bool:
    return all(find_spec(module) is not None for module in found.needs)


def _listed(found: Remedy) -> Tried:
    """The remedy with what weights alone say of it."""
    spec = found.spec
    return Tried(
        kind=found.kind,
        title=found.title,
        why=found.why,
        predicted_bytes=None if spec is None else predicted_bytes(spec.base, spec.schemes[0], spec.recipe),
        predicted_survival=None if spec is None or found.train else _survival(spec),
    )


def _survival(spec: CheckSpec) -> float | None:
    """Of one plain LoRA, by ``qcheck inspect``'s forecast; None where it has none."""
    if len(spec.adapters) != 1 or spec.common or lora.is_dora(lora.read(spec.adapters[0])):
        return None
    used = spec.adapters[0]
    found = inspect.inspect(used.source, spec.base, used.weight, [spec.schemes[0]], spec.recipe).forecasts
    return next((one.survival for one in found if one.order == spec.orders[0]), None)


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


def choices_to_keep(case: Case, spec: CheckSpec) -> Iterator[tuple[str, ...]]:
    """Layers to keep in the compute type that leave the least of the gap: 8, 24 and any number, for some more bytes.

    By the integer program of ``mixed`` over the report's layers, and never beyond the target's memory.
    """
    sizes = tensors(spec.base, spec.schemes[0], spec.recipe)
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


def _run(found: Remedy, spec: CheckSpec, listed: Tried, folder: Path, cache: Cache, progress: Progress) -> Tried:
    """Run it, or find what an earlier run gave."""
    start = time.monotonic()

    def make(place: Path) -> None:
        inner = folder / f"trying {found.title}"
        inner.mkdir()
        try:
            report = _report(found, spec, place, inner, cache, progress)
        finally:
            shutil.rmtree(inner)
        (place / REPORT).write_text(report.to_json(), "utf-8")

    entry = cache.obtain("advice", _key(found, spec), found.title, make)
    (case,) = store.read(entry).cases
    values = {m.name: m.value for m in case.measurements if m.arm == "adapted"}
    return listed.model_copy(
        update={
            "verdict": case.verdict,
            "bytes": case.artifact[0].bytes if case.artifact else None,
            "survival": values.get("effect_survival"),
            "excess_error": values.get("excess_error"),
            "seconds": round(time.monotonic() - start, 1),
            **_commands(found, spec, entry, folder),
        }
    )


def _report(found: Remedy, spec: CheckSpec, place: Path, inner: Path, cache: Cache, progress: Progress) -> Report:
    if not found.train:
        return check.check(spec, inner, cache, progress)
    qat.learn(spec, Settings(), place / _ADAPTER, cache, progress)
    return check.check(qat.calibrated(spec, place / _ADAPTER), inner, cache, progress)


def _key(found: Remedy, spec: CheckSpec) -> str:
    adapters = [lora.read(used).digest for used in (*spec.adapters, *spec.references, *spec.common)]
    settings = digest_of_value(Settings()) if found.train else ""
    return caches.key(__name__, "advice", digest_of_value(spec), *adapters, settings)


def _commands(found: Remedy, spec: CheckSpec, entry: Path, folder: Path) -> dict[str, str]:
    """Commands that check and export the same; the files they need are written to ``folder``, named as seen there."""
    if found.train:
        new = folder / f"{Path(spec.adapters[0].source).stem}-{spec.schemes[0].name}-{spec.orders[0]}.safetensors"
        shutil.copyfile(entry / _ADAPTER, new)
        spec = qat.calibrated(spec, new).changed(adapters=(Use(source=new.name, weight=spec.adapters[0].weight),))
    command.save(spec, folder)
    export = [*command.export_words(spec), "--out", "board"] if spec.schemes[0].exported else []
    return {"command": command.line(command.words(spec)), "export": command.line(export) if export else ""}
