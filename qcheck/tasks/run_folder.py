"""The folder of a training run: its checkpoints, by the names that trainers give them, and the norms in its logs."""

import csv
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcheck.core import files
from qcheck.core.errors import UserError, listed
from qcheck.model import lora
from qcheck.result.watching import Unit
from qcheck.tasks import event_file

_FOLDER = re.compile(r"checkpoint-(\d+)")  # diffusers' scripts, transformers' and TRL's trainers
_FILES: tuple[tuple[Unit, re.Pattern[str]], ...] = (
    ("step", re.compile(r"(.+)-step(\d{8})")),  # kohya, by steps
    ("epoch", re.compile(r"(.+)-(\d{6})")),  # kohya, by epochs
    ("step", re.compile(r"(.+)_(\d{9})")),  # ai-toolkit
)
_NORMS = ("grad_norm", "train/grad_norm", "gradient_norm", "norm/grad_norm", "norm/avg_grad_norm")
_STEPS = ("step", "global_step")


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint's file; ``number`` is None for what training ended with."""

    path: Path
    number: int | None
    unit: Unit
    name: str = ""


def checkpoints(folder: Path) -> list[CheckpointFile]:
    """The checkpoints of a run, in the order of training.

    Raises:
        UserError: no folder, or checkpoints of several runs.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {str(folder)!r}", "Give the folder that a training script writes checkpoints to.")
    numbered = sorted([*_folders(folder), *_files(folder)], key=lambda one: one.number or 0)
    runs = sorted({f"{one.name or 'checkpoint'}, by {one.unit}" for one in numbered})
    if len(runs) > 1:
        raise UserError(f"{str(folder)!r} has checkpoints of several runs: {listed(runs)}", "Give each its own folder.")
    if not numbered:
        return []
    last = lora.file_in(folder) if not numbered[0].name else folder / f"{numbered[0].name}.safetensors"
    return [*numbered, *([CheckpointFile(last, None, numbered[0].unit)] if last.is_file() else [])]


def _folders(folder: Path) -> Iterator[CheckpointFile]:
    for inner in folder.iterdir():
        match = _FOLDER.fullmatch(inner.name)
        if match and inner.is_dir() and (path := lora.file_in(inner)) != inner:
            yield CheckpointFile(path, int(match[1]), "step")


def _files(folder: Path) -> Iterator[CheckpointFile]:
    for path in folder.glob("*.safetensors"):
        for unit, pattern in _FILES:
            if match := pattern.fullmatch(path.stem):
                yield CheckpointFile(path, int(match[2]), unit, match[1])
                break


def norms(folder: Path) -> dict[int, float]:
    """The norms of the gradient by step, from the trainer's own state, TensorBoard's event files, CSV and JSON lines.

    Event files may lie in folders of the folder. A log that cannot be read has none.
    """
    by_step: dict[int, float] = {}
    events = sorted(folder.rglob("events.out.tfevents.*"), key=lambda path: path.name)  # names begin with the time
    for path in [*_states(folder)[-1:], *events, *sorted(folder.glob("*.csv")), *sorted(folder.glob("*.jsonl"))]:
        try:
            by_step |= dict(_pairs(_records(path)))
        except (OSError, ValueError, csv.Error):
            continue
    return by_step


def _states(folder: Path) -> list[Path]:
    """The trainer's own states, the latest last."""
    by_step = {int(match[1]): inner for inner in folder.iterdir() if (match := _FOLDER.fullmatch(inner.name))}
    paths = [by_step[step] / "trainer_state.json" for step in sorted(by_step)]
    return [path for path in paths if path.is_file()]


def _records(path: Path) -> Iterable[Any]:
    if ".tfevents." in path.name:
        return [{"step": step, tag: value} for tag, step, value in event_file.scalars(path)]
    text = files.read_text(path)
    if path.suffix == ".csv":
        return csv.DictReader(text.splitlines())
    if path.suffix == ".jsonl":
        return [record for line in text.splitlines() for record in _parsed(line)]
    content = files.parse_json(text)
    return content.get("log_history", []) if isinstance(content, dict) else []


def _parsed(line: str) -> list[Any]:
    """The value in a line of JSON; none in one that is still being written, or is no JSON."""
    try:
        return [files.parse_json(line)]
    except ValueError:
        return []


def _pairs(records: Iterable[Any]) -> Iterator[tuple[int, float]]:
    for record in records:
        if isinstance(record, Mapping):
            step, norm = (_number(record, keys) for keys in (_STEPS, _NORMS))
            if step is not None and norm is not None and math.isfinite(step):
                yield int(step), norm


def _number(record: Mapping[Any, Any], keys: Iterable[str]) -> float | None:
    """The first number under one of ``keys``; None where there is none."""
    for value in (record.get(key) for key in keys):
        with suppress(TypeError, ValueError):
            return float(value)  # type: ignore[arg-type]
    return None
