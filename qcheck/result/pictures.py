"""The result of judging folders of pictures: their report.json is exactly this value."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from qcheck.core import files
from qcheck.core.errors import UserError
from qcheck.core.values import Number, Value, fault
from qcheck.result.basis import Values
from qcheck.result.evidence import Pictures
from qcheck.result.measurement import Judged, NotMeasured
from qcheck.result.report import REPORT
from qcheck.result.verdict import Deciding, Outcome
from qcheck.spec.picture_limits import PictureLimits

SCHEMA: Literal["qcheck-pictures/1"] = "qcheck-pictures/1"
Match = Literal["name", "metadata"]
Role = Literal["f0", "f1", "q0", "q1"]


class Folder(Value):
    """A folder of one arm's pictures: ``digest`` is that of the paired ones, ``unmatched`` names those left out."""

    role: Role
    path: str
    digest: str
    unmatched: list[str]


class Pair(Value):
    """One picture of every arm: its name, prompt and seed where they are known, and what its style keeps by itself."""

    name: str
    prompt: str | None
    seed: int | None
    survival: Number


class Origin(Value):
    """The version, machine and time that made this file."""

    qcheck: str
    commit: str | None
    created: str
    versions: dict[str, str]
    machine: str
    seconds: float


class PicturesReport(Value):
    """The verdict on folders of pictures, and everything it rests on.

    ``samples`` are the numbers of each pair from which the measurements follow. ``shown`` are the stored pictures of
    ``shown_pairs``, indices of pairs, those that keep least first; differences are ``amplify`` times enlarged.
    """

    schema_: Literal["qcheck-pictures/1"] = Field(default=SCHEMA, alias="schema")
    folders: list[Folder]
    match: Match
    width: int
    height: int
    pairs: Annotated[list[Pair], Field(min_length=3)]
    verdict: Outcome
    deciding: Deciding | None
    reasons: list[str]
    next: str
    warnings: list[str]
    measurements: list[Judged]
    samples: list[Values]
    amplify: int
    shown_pairs: list[int]
    shown: list[Pictures]
    limits: PictureLimits
    not_measured: list[NotMeasured]
    origin: Origin

    @property
    def decided(self) -> Judged | None:
        """The measurement that the verdict rests on; None where something else decided."""
        key = None if self.deciding is None else (self.deciding.name, self.deciding.arm)
        return next((judged for judged in self.measurements if (judged.name, judged.arm) == key), None)

    def folder(self, role: Role) -> Folder | None:
        """The folder of an arm; None where it was not given."""
        return next((folder for folder in self.folders if folder.role == role), None)


def exit_code(report: PicturesReport) -> int:
    """0 if the style is kept, 1 if it is lost, 3 if that is open or the pictures say nothing."""
    return {"PASS": 0, "INCONCLUSIVE": 3, "INVALID": 3}.get(report.verdict, 1)


def read(path: Path) -> PicturesReport | None:
    """The report of pictures in a folder; None where a folder holds none of this schema.

    Raises:
        UserError: it is of this schema, and not as this qcheck writes it.
    """
    try:
        content = files.read_object(path / REPORT)
    except (OSError, ValueError):
        return None
    if content.get("schema") != SCHEMA:
        return None
    try:
        return PicturesReport.model_validate_json(files.read_bytes(path / REPORT))
    except ValidationError as error:
        raise UserError(
            f"report {str(path / REPORT)!r} is not of {SCHEMA} as this qcheck writes it: {fault(error)}",
            "Take the folder from where it was written.",
        ) from error
