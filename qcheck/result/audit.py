"""What an audit of a report folder says: JSON of ``qcheck audit --json``."""

from typing import Literal

from pydantic import Field

from qcheck.core.values import Value
from qcheck.result.verdict import Outcome

SCHEMA: Literal["qcheck-audit/1"] = "qcheck-audit/1"
Code = Literal[0, 1, 2]


class AuditedCase(Value):
    """One case: the ``stated`` verdict, what the ``evidence`` gives by the report's own limits, and by those ``given``.

    ``evidence`` is None where no numbers of probes were kept, ``given`` where no limits were given. ``reasons`` are
    those of the last of them. ``differences`` are stated values that do not follow from the numbers of the probes,
    ``lapsed`` what the verdict was about and is no longer there as it was; both in sentences.
    """

    scheme: str
    order: str
    stated: Outcome
    evidence: Outcome | None
    given: Outcome | None = None
    reasons: list[str] = Field(default_factory=list)
    differences: list[str] = Field(default_factory=list)
    lapsed: list[str] = Field(default_factory=list)

    @property
    def stands(self) -> bool:
        """Whether the stated verdict and numbers follow from the evidence by its own limits, and still hold."""
        return self.stated == self.evidence and not self.differences and not self.lapsed

    @property
    def follows(self) -> bool:
        """Whether it stands, and the limits given say the same."""
        return self.stands and self.given in (None, self.stated)


class FolderAudit(Value):
    """One report folder. ``changed``, ``missing`` and ``added`` name files; ``differences`` are of the whole report.

    ``unaudited`` are rows of a sweep without a page: forecasts and errors.
    ``signed`` says whether the signature that was given is one of its statement; None where none was given.
    """

    folder: str
    files: int
    changed: list[str]
    missing: list[str]
    added: list[str]
    signed: bool | None = None
    unaudited: int = 0
    differences: list[str]
    cases: list[AuditedCase]

    @property
    def code(self) -> Code:
        """0 sound, 1 something stated does not follow from the evidence, 2 bytes are changed, missing or not signed."""
        if self.differences or not all(case.follows for case in self.cases):
            return 1
        return 2 if self.changed or self.missing or self.signed is False else 0


class Audit(Value):
    """The whole answer. ``limits`` are those that were given; ``code`` is the worst exit code of the folders."""

    schema_: Literal["qcheck-audit/1"] = Field(default=SCHEMA, alias="schema")
    limits: str | None
    folders: list[FolderAudit]
    code: Code


def audit(limits: str | None, folders: list[FolderAudit]) -> Audit:
    """The answer on some folders: a verdict that does not follow is worse than bytes that changed."""
    codes = {folder.code for folder in folders}
    return Audit(limits=limits, folders=folders, code=1 if 1 in codes else 2 if 2 in codes else 0)
