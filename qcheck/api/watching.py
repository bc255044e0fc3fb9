"""``qcheck watch`` from Python: the checkpoints of a training run as they come, and a callback for trainers."""

import os
import time
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, Unpack

from qcheck import __version__
from qcheck.api.functions import caching
from qcheck.api.inspection import Inspecting, question
from qcheck.api.keywords import Named
from qcheck.api.lazy import host
from qcheck.api.request import place, probes_of
from qcheck.core.errors import UserError
from qcheck.core.progress import Progress, Silent
from qcheck.demo import library
from qcheck.result import watching
from qcheck.result.measurement import NotMeasured
from qcheck.result.watching import Checkpoint, Watching
from qcheck.spec import probe
from qcheck.spec.growth import growth

FOLDER = "qcheck-watch"
_SETTLED = 60.0  # seconds since its last change after which a file that cannot be read is not one that is being written


class Watch:
    """The checkpoints of one training run: what is new at each ``look``, kept in watch.json and watch.html.

    Args:
        run: The folder that a training script writes checkpoints to.
        base: The base that is trained on: a pipeline folder, or ``demo``.
        out: Where watch.json and watch.html go; by default ``qcheck-watch`` in ``run``. An earlier watch is continued.
        progress: Receives every checkpoint.
        probes: On how many probes each checkpoint runs at full precision beside the base; 0 looks at weights alone.
        **asked: As for ``qcheck.inspect``, without ``details``.

    Raises:
        UserError: bad input, or an ``out`` with something else in it.
    """

    def __init__(
        self,
        run: Named,
        base: Named,
        *,
        out: Named | None = None,
        progress: Progress | None = None,
        probes: int = 0,
        **asked: Unpack[Inspecting],
    ) -> None:
        folder = Path(run)
        self._task, self._progress = host("qcheck.tasks.watch"), progress or Silent()
        source = str(library.PIPELINE if str(base) == library.NAME else base)
        named = bool(asked.get("scheme")), bool(asked.get("order"))
        host("qcheck.tasks.inspect").stored_layers(source)
        inquiry = question(**asked)
        shift = _shift(source, inquiry.weight, probes) if probes else None
        self._run, self._probes = self._task.Run(folder, source, inquiry, growth(), named, shift), probes
        self.out = folder / FOLDER if out is None else Path(out)
        self.watching = self._empty()
        self._known: dict[tuple[str, int], Checkpoint] = {}
        earlier = watching.read(self.out)
        self._earlier = self._judged(earlier)
        if earlier is not None and self._earlier:
            self.watching = earlier

    def look(self, settled: float = _SETTLED) -> list[Checkpoint]:
        """The checkpoints that were not there at the last look, in the order of training.

        A file that cannot be read is ``unread`` once nobody has written to it for ``settled`` seconds.

        Raises:
            UserError: the folder has checkpoints of several runs, or files cannot be written.
        """
        module = host("qcheck.tasks.run_folder")
        saved, norms = module.checkpoints(self._run.folder), module.norms(self._run.folder)
        keyed = {self._key(one, status): (one, status) for one in saved if (status := _status(one)) is not None}
        unjudged = [key for key in keyed if key not in self._known]
        for key in keyed.keys() & self._known.keys():  # a log may be written later than the checkpoint
            self._known[key] = self._task.logged(self._known[key], keyed[key][0], norms)
        new: list[Checkpoint] = []
        with self._progress.stage("checkpoints", len(unjudged)) as advance:
            for key in unjudged:
                judged = self._judge(*keyed[key], norms, settled)
                if judged is not None:
                    self._known[key] = judged
                    new.append(judged)
                advance(1)
        unit = saved[0].unit if saved else self.watching.unit
        there = [self._known[key] for key in keyed if key in self._known]
        rows = watching.in_order([*self._removed({file for file, _ in keyed}, unit), *there])
        if new or rows != self.watching.checkpoints:
            self._keep(rows, unit)
        return new

    def _removed(self, files: Set[str], unit: watching.Unit) -> list[Checkpoint]:
        """The checkpoints that were judged and whose file is none of ``files``: trainers remove the older ones."""
        before = self.watching.checkpoints if self.watching.unit == unit else []
        return [one.model_copy(update={"removed": True}) for one in before if one.file not in files]

    def _key(self, saved: Any, status: os.stat_result) -> tuple[str, int]:
        return self._run.place(saved), status.st_mtime_ns

    def callback(self, stop: bool = True) -> Any:
        """A ``transformers.TrainerCallback`` that looks whenever a checkpoint is saved, for PEFT's and TRL's trainers.

        With ``stop`` it ends the training at the first checkpoint that is overcooked or holds NaN.
        """
        return host("qcheck.training.callback").Callback(lambda: self.look(settled=0.0), stop)

    def _judge(
        self, saved: Any, status: os.stat_result, norms: Mapping[int, float], settled: float
    ) -> Checkpoint | None:
        """A checkpoint, taken from an earlier watch where its bytes are the same; None while it is being written.

        None too where the trainer has removed it meanwhile.
        """
        try:
            known = self._earlier.get((self._run.place(saved), self._task.digest(saved)))
            looked: Checkpoint = known or self._task.look(self._run, saved)
        except UserError as error:
            if time.time() - status.st_mtime < settled or _status(saved) is None:
                return None
            looked = self._task.unread(self._run, saved, error)
        renewed: Checkpoint = self._task.logged(looked, saved, norms)
        return renewed

    def _empty(self) -> Watching:
        asked = self._run.asked
        return Watching(
            qcheck=__version__,
            run=str(self._run.folder),
            base=self._run.base,
            weight=asked.weight,
            schemes=[one.name for one in asked.schemes],
            orders=[*asked.orders],
            recipe=asked.recipe.name,
            probes=self._probes,
            limits=growth(),
            unit="step",
            checkpoints=[],
            not_measured=[],
        )

    def _judged(self, earlier: Watching | None) -> dict[tuple[str, str], Checkpoint]:
        """The checkpoints of an earlier watch that asked the same."""
        open_fields = {"checkpoints", "not_measured", "unit"}
        if earlier is None or earlier.model_dump(exclude=open_fields) != self.watching.model_dump(exclude=open_fields):
            return {}
        return {(one.file, one.digest): one.model_copy(update={"removed": False}) for one in earlier.checkpoints}

    def _keep(self, checkpoints: list[Checkpoint], unit: watching.Unit) -> None:
        missing = []
        if all(one.gradient is None for one in checkpoints):
            reason = "no trainer_state.json, TensorBoard, CSV or JSON-lines file of the run has one at these steps"
            missing.append(NotMeasured(name="norm of the gradient", reason=reason))
        if all(one.intruders is None for one in checkpoints):
            missing.append(NotMeasured(name="intruder dimensions", reason="no layer that could be decomposed"))
        parts = {"checkpoints": checkpoints, "unit": unit, "not_measured": missing}
        self.watching = self.watching.model_copy(update=parts)
        host("qcheck.report.watch").write(self.watching, self.out)


def _shift(source: str, weight: float, probes: int) -> Any:
    """The divergence from the base on the first prompts of its probe set, at few steps.

    Raises:
        UserError: fewer probes than one, or a cache that cannot be written.
    """
    if probes < 0:
        raise UserError(f"{probes} probes are asked for", "Give 0 for weights alone, or some.")
    task = host("qcheck.tasks.shift")
    every = probes_of(None, None, place(source), {})
    asked = every.model_copy(update={"steps": min(every.steps, task.STEPS)})
    with caching(use_cache=True) as store:
        return task.Shift(source, weight, probe.repeated(asked, probes), store)


def _status(saved: Any) -> os.stat_result | None:
    """The status of a checkpoint's file; None where the trainer, which may keep the latest alone, has removed it."""
    try:
        status: os.stat_result = saved.path.stat()
    except FileNotFoundError:
        return None
    return status
