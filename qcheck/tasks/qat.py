"""A calibrated adapter: judged as it came, trained in the order it is deployed in, written, and judged again."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from qcheck import __version__
from qcheck.core.errors import UserError
from qcheck.core.progress import Progress
from qcheck.model import lora
from qcheck.model.lora import Adapter, trainable
from qcheck.model.lora.note import KEY, Gap, Note, note
from qcheck.qat.objective import Lessons, Seen, Settings
from qcheck.qat.trainer import Course, train
from qcheck.result.report import Case, Report
from qcheck.spec.check import Job, Use
from qcheck.tasks import check
from qcheck.tasks.work import Work, prepare


@dataclass(frozen=True)
class Calibration:
    """The check before, how training went, and the check of the new adapter against the old one's reference."""

    before: Report
    course: Course
    after: Report

    @property
    def cases(self) -> tuple[Case, Case]:
        """Before and after."""
        return self.before.cases[0], self.after.cases[0]


def calibrate(job: Job, settings: Settings, new: Path, folder: Path, progress: Progress, force: bool) -> Calibration:
    """Calibrate the one adapter of ``job`` for its first scheme and order, and write it to ``new``.

    Reports go to ``before`` and ``after`` below ``folder``. The probes of both checks are never trained on.

    Raises:
        UserError: bad input, an adapter that is broken at full precision (unless ``force``), or training that diverges.
    """
    require_one(job)
    require_own(new, job)
    job = replace(job, cache=job.cache or folder / "cache")
    before = _checked(job, folder / "before", progress)
    if before.cases[0].verdict == "FAIL-ADAPTER" and not force:
        raise UserError(
            f"the adapter is broken at full precision: {'; '.join(before.cases[0].reasons)}",
            "QAT teaches the quantized model to answer as this one does, faults included: retrain the adapter. "
            "--force does it all the same.",
        )
    course = learn(job, settings, new, folder, progress)
    again = replace(job, adapters=(Use(str(new), job.adapters[0].weight),), references=job.adapters)
    return Calibration(before, course, _checked(again, folder / "after", progress))


def _checked(job: Job, folder: Path, progress: Progress) -> Report:
    folder.mkdir(parents=True)
    return check.check(job, folder, progress)


def learn(job: Job, settings: Settings, new: Path, folder: Path, progress: Progress) -> Course:
    """Train and write, without a check."""
    torch.set_num_threads(job.threads)
    work = prepare(job, folder, progress)
    (adapter,) = work.arms.adapters
    lessons = Lessons(work, job.schemes[0], job.orders[0], settings)
    kept, course = train(lessons)
    trainable.write(adapter, kept, {KEY: _note(work, adapter, course, settings).model_dump_json()}, new)
    return course


def require_own(new: Path, job: Job) -> None:
    """Refuse to write over anything but an earlier calibration of the same adapter."""
    if new.exists() and not calibrated(new, job):
        raise UserError(f"output {str(new)!r} exists and is no calibration of this adapter", "Give another --out.")


def calibrated(path: Path, job: Job) -> bool:
    """Whether the file at ``path`` is a calibration of the job's one adapter."""
    found = note(lora.read(Use(str(path), 1.0)))
    return found is not None and found.source == lora.read(job.adapters[0]).digest


def require_one(job: Job) -> None:
    """Refuse what QAT does not train: several adapters at once, or one that it has trained before."""
    if len(job.adapters) != 1 or job.references:
        raise UserError("QAT calibrates one adapter", "Give one --lora; adapters of both arms as --with-lora.")


def _note(work: Work, adapter: Adapter, course: Course, settings: Settings) -> Note:
    job = work.job
    return Note(
        qcheck=__version__,
        source=adapter.digest,
        weight=adapter.weight,
        base=work.arms.base.digest,
        scheme=job.schemes[0].name,
        order=job.orders[0],
        recipe=job.recipe.name,
        steps=course.kept,
        seed=settings.seed,
        before=_gap(course.before),
        after=_gap(course.after),
    )


def _gap(seen: Seen) -> Gap:
    return Gap(survival=seen.survival, effect_to_error=seen.effect_to_error, excess_error=seen.excess_error)
