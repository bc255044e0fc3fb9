"""A sweep: many adapters, each judged as by ``qcheck check``, with the work that they share done once.

The cases of one adapter on one base are a job. A worker keeps the base it loaded and swaps adapters in place; graphs,
quantized bases and free runs of the base come from the cache. Rows are stored as they are decided.
"""

import shutil
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qcheck.core import cache as caches
from qcheck.core.cache import Cache
from qcheck.core.digest import digest_of, digest_of_folder, digest_of_value
from qcheck.core.errors import UserError, of_machine
from qcheck.core.progress import Silent
from qcheck.judge.next_step import next_step
from qcheck.measure.doubt import doubt
from qcheck.model import bases, lora
from qcheck.report import html, seal
from qcheck.result.fleet import PAGES, Row, Store
from qcheck.result.inspection import Forecast
from qcheck.result.report import REPORT, Case, Report
from qcheck.spec.check import CheckSpec
from qcheck.spec.order import Order, merge
from qcheck.tasks import check, inspect
from qcheck.tasks.session import Warm

_NAME = 60  # letters of an adapter's name in that of a folder: a name has 255 bytes
_KEPT = (html.NAME, REPORT)  # of a check's folder: the page holds its pictures, artifacts are exported again
Key = tuple[str, Order]


@dataclass(frozen=True)
class Job:
    """One adapter on one base for one target: a request, and the digest of each of its cases.

    The digests are of the request, the files it names and the code that computes: a changed one is another case.
    """

    spec: CheckSpec
    cases: Mapping[Key, str]

    @property
    def name(self) -> str:
        """The name of its page's folder."""
        return f"{Path(self.spec.adapters[0].source).stem[:_NAME]}-{digest_of(*self.cases.values())[:8]}"

    def error(self, what: str, fix: str) -> list[Row]:
        """The rows of a job that ended in an error."""
        return [self._row(key, error=what, fix=fix) for key in self.cases]

    def rows(self, report: Report, seconds: float, page: str) -> list[Row]:
        """The rows of a report; ``seconds`` are those of the whole job, of which each case has its share."""
        shared = max(0.0, seconds - sum(case.seconds for case in report.cases)) / len(report.cases)
        cases = {(case.scheme, case.order): case for case in report.cases}
        return [self._judged(key, cases[key], shared, page) for key in self.cases]

    def forecast(self, one: Forecast, seconds: float) -> Row:
        """The row of a case that a forecast decides."""
        step = next_step("NEEDS-QAT", one.order, None, [])
        values = {"stage": "forecast", "survival": one.survival, "reasons": [one.reason], "next": step}
        return self._row((one.scheme, one.order), verdict="NEEDS-QAT", seconds=seconds, **values)

    def _judged(self, key: Key, case: Case, shared: float, page: str) -> Row:
        limits = self.spec.bounds
        worst = case.layers[0] if case.layers else None
        survival = [m.value for m in case.measurements if (m.name, m.arm) == ("effect_survival", "adapted")]
        return self._row(
            key,
            verdict=case.verdict,
            deciding=case.decided,
            survival=survival[0] if survival else None,
            doubt=doubt(case.measurements, case.probes_used, limits.alpha, len(limits.looks)),
            reasons=case.reasons,
            next=case.next,
            probes=case.probes_used,
            worst_layer=None if worst is None else worst.name,
            worst_share=None if worst is None else worst.share,
            bytes=case.artifact[0].bytes if case.artifact else None,
            build=case.builds[0].status if case.builds else None,
            page=page,
            seconds=round(case.seconds + shared, 2),
        )

    def _row(self, key: Key, **values: object) -> Row:
        spec = self.spec
        named = {"adapter": " + ".join(use.source for use in spec.adapters), "weight": spec.adapters[0].weight}
        place = {"base": spec.base, "scheme": key[0], "order": key[1], "target": spec.target.name}
        return Row.model_validate({"case": self.cases[key], **named, **place, **values})


class Digests:
    """The digests of cases; those of bases and adapters' files are computed once."""

    def __init__(self, cache: Cache) -> None:
        self._cache, self._known, self._code = cache, dict[str, str](), caches.code(check.__name__)

    def job(self, spec: CheckSpec) -> Job:
        """The job of a request."""
        every = (*spec.adapters, *spec.common, *spec.references, *spec.bound_with)
        files = [self._of_base(spec.base), *(self._of_file(use.source) for use in every)]
        kept = spec.execution.model_dump(include={"device", "precision", "build"})
        plain = spec.changed(execution=kept)
        return Job(
            spec,
            {
                (scheme.name, order): digest_of(self._code, digest_of_value(plain.of_case(scheme, order)), *files)
                for scheme in spec.schemes
                for order in spec.orders
            },
        )

    def _of_base(self, base: str) -> str:
        if base not in self._known:
            self._known[base] = digest_of_folder(bases.locate(base), self._cache.file_digest)
        return self._known[base]

    def _of_file(self, source: str) -> str:
        if source not in self._known:
            try:
                path = Path(source)
                self._known[source] = digest_of_folder(path) if path.is_dir() else digest_of(path)
            except OSError as error:
                self._known[source] = f"{source}: {error.strerror}"
        return self._known[source]


@dataclass
class Worker:
    """Runs jobs, one at a time, on the base that it loaded last.

    Unless it is to be ``full``, a case that the weights alone decide is not run: the forecast is that the adapter does
    nothing (docs/zoo.md: every case of the zoo of which that was forecast is damaged).
    """

    store: Store
    cache: Cache
    full: bool = False
    warm: Warm = field(default_factory=Warm)

    def run(self, job: Job) -> list[Row] | None:
        """Judge a job and store its rows; None where another sweep on the same store is at it."""
        with self.store.files.claim(job.name) as ours:
            return self._rows(job) if ours else None

    def _rows(self, job: Job) -> list[Row]:
        if all(map(self.store.has, job.cases.values())):
            return list(self.store.rows([*job.cases.values()]))
        start = time.monotonic()
        try:
            rows = self._decided(job, start)
        except UserError as error:
            rows = job.error(error.what, error.fix)
        except Exception as error:  # a bug is a row with its traceback: the other adapters go on
            if (refused := of_machine(error)) is not None:  # a full disk is no property of this adapter
                raise refused from error
            rows = job.error(f"{type(error).__name__}: {error}", f"A bug of qcheck:\n{traceback.format_exc()}")
            self.warm = Warm()
        for row in rows:
            self.store.write(row)
        return list(self.store.rows([*job.cases.values()]))

    def _decided(self, job: Job, start: float) -> list[Row]:
        rows = [] if self.full else forecast(job)
        decided = {(row.scheme, row.order) for row in rows}
        for part in parts(job, [key for key in job.cases if key not in decided]):
            rows += self._judged(part, time.monotonic() if rows else start)
        return rows

    def _judged(self, job: Job, start: float) -> list[Row]:
        name = f"{PAGES}/{job.name}"
        with self.store.files.work() as work:
            folder = work / job.name
            folder.mkdir()
            report = check.check(job.spec, folder, self.cache, Silent(), self.warm)
            for path in folder.iterdir():
                if path.name not in _KEPT:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            seal.write(report, folder)
            self.store.files.move(folder, name)
        return job.rows(report, time.monotonic() - start, f"{name}/{html.NAME}")


def forecast(job: Job) -> list[Row]:
    """The rows of cases that do nothing by the weights alone, in orders that round the adapter's change by itself.

    Raises:
        UserError: the adapter cannot be read, or no layer of it is in the base.
    """
    spec = job.spec
    orders = [order for order in spec.orders if merge(order).rounds_change_alone]
    schemes = [scheme for scheme in spec.schemes if scheme.exported and scheme.smoothing is None]
    if not orders or not schemes or len(spec.adapters) > 1 or spec.references:
        return []
    (use,) = spec.adapters
    question = inspect.Question(use.weight, schemes, orders, spec.recipe, False)
    start, inspection = time.monotonic(), inspect.inspect(use.source, spec.base, question, Silent())
    hopeless = [one for one in inspection.forecasts if one.fate == "does nothing"]
    seconds = round((time.monotonic() - start) / max(1, len(hopeless)), 2)
    return [job.forecast(one, seconds) for one in hopeless]


def parts(job: Job, keys: Sequence[Key]) -> list[Job]:
    """``keys`` of a job as jobs, each of all its schemes in all its orders."""
    of_scheme: dict[str, tuple[Order, ...]] = {}
    for scheme, order in keys:
        of_scheme[scheme] = (*of_scheme.get(scheme, ()), order)
    together: dict[tuple[Order, ...], list[str]] = {}
    for scheme, orders in of_scheme.items():
        together.setdefault(orders, []).append(scheme)
    return [
        Job(
            job.spec.changed(schemes=tuple(s for s in job.spec.schemes if s.name in names), orders=orders),
            {key: job.cases[key] for key in keys if key[0] in names},
        )
        for orders, names in together.items()
    ]


def pending(jobs: Sequence[Job], store: Store) -> list[Job]:
    """The jobs of which a case is missing, those of one base together."""
    missing = [job for job in jobs if not all(map(store.has, job.cases.values()))]
    return sorted(missing, key=lambda job: (job.spec.base, repr(job.spec.common)))


def unreadable(job: Job) -> str | None:
    """What is wrong with the file of one of a job's adapters, None where all can be read."""
    try:
        for use in (*job.spec.adapters, *job.spec.common):
            lora.read(use)
    except UserError as error:
        return error.what
    return None


def shard(jobs: Sequence[Job], index: int, count: int) -> list[Job]:
    """The jobs of the ``index``-th of ``count`` shards, from 1: by their digests, so that all see the same shards."""
    return [job for job in jobs if int(digest_of(*job.cases.values()), 16) % count == index - 1]
