"""The folder of a training run: its checkpoints, by the names that trainers give them, and the norms in its logs."""

import csv
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcheck.core import files
from qcheck.core.errors import UserError, listed
from qcheck.model import lora
from qcheck.result.watching import Unit

_FOLDER = re.compile(r"checkpoint-(\d+)")  # diffusers' scripts, transformers' and TRL's trainers
_FILES: tuple[tuple[Unit, re.Pattern[str]], ...] = (
    ("step", re.compile(r"(.+)-step(\d{8})")),  # kohya, by steps
    ("epoch", re.compile(r"(.+)-(\d{6})")),  # kohya, by epochs
    ("step", re.compile(r"(.+)_(\d{9})")),  # ai-toolkit
)
_NORMS = ("grad_norm", "train/grad_norm", "gradient_norm")
_STEPS = ("step", "global_step")


@dataclass(frozen=True)
class Saved:
    """A checkpoint's file; ``number`` is None for what training ended with."""

    path: Path
    number: int | None
    unit: Unit
    name: str = ""


def saved(folder: Path) -> list[Saved]:
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
    return [*numbered, *([Saved(last, None, numbered[0].unit)] if last.is_file() else [])]


def _folders(folder: Path) -> Iterator[Saved]:
    for inner in folder.iterdir():
        match = _FOLDER.fullmatch(inner.name)
        if match and inner.is_dir() and (path := lora.file_in(inner)) != inner:
            yield Saved(path, int(match[1]), "step")


def _files(folder: Path) -> Iterator[Saved]:
    for path in folder.glob("*.safetensors"):
        for unit, pattern in _FILES:
            if match := pattern.fullmatch(path.stem):
                yield Saved(path, int(match[2]), unit, match[1])
                break


def norms(folder: Path) -> dict[int, float]:
    """The norms of the gradient by step, from CSV and JSON lines in the folder and the trainer's own state.

    A log that cannot be read has none.
    """
    states = sorted(folder.glob("checkpoint-*/trainer_state.json"), key=lambda path: path.stat().st_mtime)
    found: dict[int, float] = {}
    for path in [*states[-1:], *sorted(folder.glob("*.csv")), *sorted(folder.glob("*.jsonl"))]:
        try:
            found |= dict(_pairs(_records(path)))
        except (OSError, ValueError, csv.Error):
            continue
    return found


def _records(path: Path) -> Iterable[Any]:
    text = files.read_text(path)
    if path.suffix == ".csv":
        return csv.DictReader(text.splitlines())
    if path.suffix == ".jsonl":
        return [files.parse_json(line) for line in text.splitlines() if line.strip()]
    content = files.parse_json(text)
    return content.get("log_history", []) if isinstance(content, dict) else []


def _pairs(records: Iterable[Any]) -> Iterator[tuple[int, float]]:
    for record in records:
        if isinstance(record, Mapping):
            step, norm = (next((record[k] for k in keys if record.get(k)), None) for keys in (_STEPS, _NORMS))
            if step is not None and norm is not None:
                yield int(float(step)), float(norm)
