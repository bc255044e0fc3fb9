"""Calibrate an adapter by QAT: judge the original, train it in the order of deployment, write and judge the new one."""

from dataclasses import dataclass
from pathlib import Path

from qcheck import __version__
from qcheck.core.cache import Cache
from qcheck.core.errors import UserError
from qcheck.core.progress import Progress
from qcheck.model import lora
from qcheck.model.lora import Adapter, trainable
from qcheck.model.lora.note import KEY, Gap, Note, note
from qcheck.quantize import artifact
from qcheck.result.report import Case, Report
from qcheck.spec.check import CheckSpec
from qcheck.spec.use import Use
from qcheck.tasks import check
from qcheck.tasks import session as sessions
from qcheck.tasks.session import Session
from qcheck.training.objective import HeldOut, QatObjective, Settings
from qcheck.training.trainer import Training, train


@dataclass(frozen=True)
class Calibration:
    """The check before training, the training, and the check of the new adapter against the old one's reference."""

    before: Report
    training: Training
    after: Report

    @property
    def cases(self) -> tuple[Case, Case]:
        """The case before training and the case after it."""
        return self.before.cases[0], self.after.cases[0]


def calibrate(
    spec: CheckSpec, settings: Settings, new: Path, folder: Path, cache: Cache, progress: Progress, force: bool = False
) -> Calibration:
    """Calibrate the one adapter of ``spec`` for its first scheme and order, and write it to ``new``.

    Reports go to ``before`` and ``after`` below ``folder``. The probes of both checks are never trained on.

    Raises:
        UserError: bad input, an adapter that is broken at full precision (unless ``force``), or training that diverges.
    """
    require_one(spec)
    require_own(new, spec)
    before = _run_check(spec, folder / "before", cache, progress)
    if before.cases[0].verdict == "FAIL-ADAPTER" and not force:
        raise UserError(
            f"the adapter is broken at full precision: {'; '.join(before.cases[0].reasons)}",
            "QAT teaches the quantized model to answer as this one does, faults included: retrain the adapter. "
            "--force does it all the same.",
        )
    training = learn(spec, settings, new, cache, progress)
    return Calibration(before, training, _run_check(calibrated(spec, new), folder / "after", cache, progress))


def calibrated(spec: CheckSpec, new: Path) -> CheckSpec:
    """The request that checks the calibrated adapter ``new`` against the original as its reference."""
    use = Use(source=str(new.absolute()), weight=spec.adapters[0].weight)
    return spec.changed(adapters=(use,), references=spec.adapters)


def _run_check(spec: CheckSpec, folder: Path, cache: Cache, progress: Progress) -> Report:
    folder.mkdir(parents=True)
    return check.check(spec, folder, cache, progress)


def learn(spec: CheckSpec, settings: Settings, new: Path, cache: Cache, progress: Progress) -> Training:
    """Train the adapter and write it to ``new``, without a check."""
    with sessions.opened(spec, cache, progress) as session:
        (adapter,), scheme = session.arms.adapters, spec.schemes[0]
        sources = session.sources(scheme)
        q0 = session.quantized(f"q0 {scheme.name}", "base", artifact.write_base(sources), scheme)
        objective = QatObjective(spec, sources, q0, session.watch, settings)
        factors, training = train(objective)
        note = _note(session, adapter, training, settings).model_dump_json()
        trainable.write(adapter, factors, {KEY: note}, new)
    return training


def require_own(new: Path, spec: CheckSpec) -> None:
    """Refuse to overwrite a file that is not an earlier calibration of the same adapter."""
    if new.exists() and not is_calibrated(new, spec):
        raise UserError(f"output {str(new)!r} exists and is no calibration of this adapter", "Give another --out.")


def is_calibrated(path: Path, spec: CheckSpec) -> bool:
    """Whether the file at ``path`` is a calibration of the one adapter of ``spec``."""
    calibration = note(lora.read(Use(source=str(path), weight=1.0)))
    return calibration is not None and calibration.source == lora.read(spec.adapters[0]).digest


def require_one(spec: CheckSpec) -> None:
    """Refuse requests that QAT does not train: several adapters at once, or one that is calibrated already."""
    if len(spec.adapters) != 1 or spec.references:
        raise UserError("QAT calibrates one adapter", "Give one --lora; adapters of both arms as --with-lora.")


def _note(session: Session, adapter: Adapter, training: Training, settings: Settings) -> Note:
    spec = session.spec
    return Note(
        qcheck=__version__,
        source=adapter.digest,
        weight=adapter.weight,
        base=session.arms.base.digest,
        scheme=spec.schemes[0].name,
        order=spec.orders[0],
        recipe=spec.recipe.name,
        steps=training.kept,
        seed=settings.seed,
        before=_gap(training.before),
        after=_gap(training.after),
    )


def _gap(measurement: HeldOut) -> Gap:
    return Gap(
        survival=measurement.survival,
        effect_to_error=measurement.effect_to_error,
        excess_error=measurement.excess_error,
    )
