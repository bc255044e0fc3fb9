"""Remedies for the cases of a report that do not pass: each is run and judged again, the cheapest first."""

import functools
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

from qcheck.core import cache as caches
from qcheck.core.cache import Cache
from qcheck.core.digest import digest_of_value
from qcheck.core.progress import Progress
from qcheck.diagnose import mixed
from qcheck.model import lora, tensor_file
from qcheck.quantize import plan
from qcheck.result import store
from qcheck.result.advice import Advice, CaseAdvice, Tried
from qcheck.result.report import REPORT, Case, Report
from qcheck.result.verdict import CURABLE
from qcheck.spec import command, order, target
from qcheck.spec.check import CheckSpec
from qcheck.spec.recipe import Recipe
from qcheck.spec.scheme import Numbers, Scheme
from qcheck.spec.use import Use
from qcheck.tasks import check, inspect, qat, remedies, whereabouts
from qcheck.tasks.remedies import FailingCase, Remedy
from qcheck.tasks.whereabouts import Given
from qcheck.training.objective import Settings

_AS_NAMED = Given()
_ADAPTER = "calibrated.safetensors"


def requests(report: Report) -> Iterator[tuple[Case, CheckSpec]]:
    """The cases that do not pass, each with the request that judged it; files from elsewhere are left out."""
    known = {scheme.name: scheme for scheme in report.spec.schemes}
    for case in report.cases:
        if case.verdict in CURABLE and case.quantized_layers is not None:
            yield case, report.spec.of_case(known[case.scheme], order.find(case.order))


def advise(
    report: Report,
    name: str,
    folder: Path,
    cache: Cache,
    progress: Progress,
    running: Mapping[str, object] | None = None,
    run: bool = True,
    every: bool = False,
    given: Given = _AS_NAMED,
) -> Advice:
    """Try the remedies of every case that does not pass, until one passes (``every``: all of them), or only list them.

    ``name`` is what the report is called in the advice; ``running`` are values of ``Execution`` to change. Files
    that a command needs are written to ``folder``. Results are cached under the digest of their inputs. ``given`` says
    where the report's files are on this machine.

    Raises:
        UserError: the base, an adapter or the ranges of the report are not here, or have changed since.
    """
    cases = []
    for case, request in requests(whereabouts.here(report, given, cache.file_digest)):
        spec = request.changed(execution=request.execution.model_copy(update=running or {}))
        failing = FailingCase(spec, case.verdict, _installed, functools.partial(choices_to_keep, case))
        attempts: list[Tried] = []
        cure = None
        for remedy in remedies.remedies(failing):
            attempt = _prediction(remedy)
            if run and remedy.spec is not None and (cure is None or every):
                attempt = _run(remedy, remedy.spec, attempt, folder, cache, progress)
                if attempt.verdict == "PASS" and cure is None:
                    cure = len(attempts)
            attempts.append(attempt)
        cases.append(CaseAdvice(scheme=case.scheme, order=case.order, verdict=case.verdict, tried=attempts, cure=cure))
    advice = Advice(report=name, ran=run, cases=cases)
    (folder / "advice.json").write_text(advice.to_json(), "utf-8")
    return advice


def _installed(scheme: Scheme) -> bool:
    return all(find_spec(module) is not None for module in scheme.needs)


def _prediction(remedy: Remedy) -> Tried:
    """The remedy, not run: its predicted bytes and survival, which are computed from the weights alone."""
    spec = remedy.spec
    return Tried(
        kind=remedy.kind,
        title=remedy.title,
        why=remedy.why,
        predicted_bytes=None if spec is None else predicted_bytes(spec.base, spec.schemes[0], spec.recipe),
        predicted_survival=None if spec is None or remedy.train else _survival(spec),
    )


def _survival(spec: CheckSpec) -> float | None:
    """The survival that ``qcheck inspect`` forecasts for one plain LoRA; None where it has no forecast."""
    if len(spec.adapters) != 1 or spec.common or lora.is_dora(lora.read(spec.adapters[0])):
        return None
    use = spec.adapters[0]
    asked = inspect.Question(use.weight, [spec.schemes[0]], [spec.orders[0]], spec.recipe)
    return inspect.inspect(use.source, spec.base, asked).forecasts[0].survival


def predicted_bytes(base: str, scheme: Scheme, recipe: Recipe) -> int:
    """The size of the denoiser's file, from the shapes of its tensors."""
    return sum(size.stored for size in tensors(base, scheme, recipe).values())


class Size(NamedTuple):
    """Bytes of a tensor as the scheme stores it and in the compute type, and whether it is quantized."""

    stored: int
    wide: int
    quantized: bool


def tensors(base: str, scheme: Scheme, recipe: Recipe) -> dict[str, Size]:
    """The size of every tensor of the denoiser, by its name."""
    sizes = {}
    compute_bits = target.number_format(scheme.compute).bits
    for name, path in inspect.stored_layers(base)[1].items():
        with tensor_file.opened(path) as stream:
            weight = torch.empty(stream.get_slice(name).get_shape(), device="meta")
        compute_bytes = weight.numel() * compute_bits // 8
        is_layer = name.endswith(".weight") and weight.dim() in (2, 4)
        quantized = is_layer and plan.quantizes(name.removesuffix(".weight"), weight, scheme, recipe)
        rule = scheme.rule("Linear" if weight.dim() == 2 else "Conv2d") if quantized else None
        sizes[name] = Size(
            compute_bytes if rule is None else _quantized_bytes(weight, rule.weights, compute_bits),
            compute_bytes,
            quantized,
        )
    return sizes


def _quantized_bytes(weight: torch.Tensor, numbers: Numbers, compute_bits: int) -> int:
    step_bits = compute_bits if numbers.scales is None else target.number_format(numbers.scales).bits
    return (weight.numel() * _weight_bits(numbers, compute_bits) + _step_count(numbers, weight) * step_bits) // 8


def choices_to_keep(case: Case, spec: CheckSpec) -> Iterator[tuple[str, ...]]:
    """Layers to keep in the compute type so that the least error is left: at most 8, at most 24, then any number.

    Each choice may add some bytes (``_GROWTH``), within the target's memory. The integer program of ``mixed`` chooses
    among the report's layers.
    """
    sizes = tensors(spec.base, spec.schemes[0], spec.recipe)
    options = {
        layer.name: [mixed.Option("as it is", layer.share, size.stored), mixed.Option(mixed.KEEP, 0.0, size.wide)]
        for layer in case.layers
        if (size := sizes.get(f"{layer.name}.weight")) is not None and math.isfinite(layer.share)
    }
    quantized_bytes, previous = sum(quantized.bytes for quantized, _ in options.values()), set[str]()
    for growth, most in _GROWTH if options else ():
        layers = mixed.kept(
            mixed.choose(options, int(quantized_bytes + min(growth * quantized_bytes, _room(case))), most)
        )
        if layers and set(layers) != previous:
            yield tuple(layers)
        previous = set(layers)


_GROWTH = ((0.05, 8), (0.15, 24), (0.4, None))  # bytes added, as a share of the quantized layers' bytes; most layers


def _room(case: Case) -> float:
    """Bytes of the target's memory that are free when the pipeline runs; infinite where that is not known."""
    estimate = case.estimate
    if estimate is None or estimate.memory_gb is None:
        return math.inf
    return max(0.0, 1e9 * estimate.memory_gb - 1e6 * estimate.total_mb)


def _weight_bits(numbers: Numbers, compute_bits: int) -> int:
    return compute_bits if numbers.granularity == "none" else target.number_format(numbers.format).bits


def _step_count(numbers: Numbers, weight: torch.Tensor) -> int:
    if numbers.granularity == "none":
        return 0
    block = numbers.block_of(weight.shape[1]) if numbers.granularity == "block" else numbers.block
    return {"tensor": 1, "channel": len(weight)}.get(numbers.granularity, weight.numel() // (block or 1))


def _run(remedy: Remedy, spec: CheckSpec, attempt: Tried, folder: Path, cache: Cache, progress: Progress) -> Tried:
    """Run and judge the remedy, or read the result of an earlier run from the cache."""
    start = time.monotonic()

    def make(place: Path) -> None:
        workspace = folder / f"trying {remedy.title}"
        workspace.mkdir()
        try:
            report = _report(remedy, spec, place, workspace, cache, progress)
        finally:
            shutil.rmtree(workspace)
        (place / REPORT).write_text(report.to_json(), "utf-8")

    entry = cache.obtain("advice", _key(remedy, spec), remedy.title, make)
    (case,) = store.read(entry).cases
    values = {m.name: m.value for m in case.measurements if m.arm == "adapted"}
    return attempt.model_copy(
        update={
            "verdict": case.verdict,
            "bytes": case.artifact[0].bytes if case.artifact else None,
            "survival": values.get("effect_survival"),
            "excess_error": values.get("excess_error"),
            "seconds": round(time.monotonic() - start, 1),
            **_commands(remedy, spec, entry, folder),
        }
    )


def _report(remedy: Remedy, spec: CheckSpec, place: Path, workspace: Path, cache: Cache, progress: Progress) -> Report:
    if not remedy.train:
        return check.check(spec, workspace, cache, progress)
    qat.learn(spec, Settings(), place / _ADAPTER, cache, progress)
    return check.check(qat.calibrated(spec, place / _ADAPTER), workspace, cache, progress)


def _key(remedy: Remedy, spec: CheckSpec) -> str:
    adapters = [lora.read(use).digest for use in (*spec.adapters, *spec.references, *spec.common)]
    settings = digest_of_value(Settings()) if remedy.train else ""
    return caches.key(__name__, "advice", digest_of_value(spec), *adapters, settings)


def _commands(remedy: Remedy, spec: CheckSpec, entry: Path, folder: Path) -> dict[str, object]:
    """Commands that check and export this request in ``folder``, to which their files are written, and its settings."""
    if remedy.train:
        adapter = folder / f"{Path(spec.adapters[0].source).stem}-{spec.schemes[0].name}-{spec.orders[0]}.safetensors"
        shutil.copyfile(entry / _ADAPTER, adapter)
        spec = qat.calibrated(spec, adapter).changed(
            adapters=(Use(source=adapter.name, weight=spec.adapters[0].weight),)
        )
    command.save(spec, folder)
    export = [*command.export_words(spec), "--out", "board"] if spec.schemes[0].exported else []
    return {
        "command": command.line(command.words(spec)),
        "export": command.line(export) if export else "",
        "settings": command.settings(spec),
    }
