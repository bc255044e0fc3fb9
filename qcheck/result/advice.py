"""The cures that were tried for the cases of a report that do not pass: advice.json."""

from typing import Literal

from pydantic import Field

from qcheck.core.values import Number, Value
from qcheck.result.verdict import Outcome
from qcheck.spec.command import Setting

SCHEMA: Literal["qcheck-advice/1"] = "qcheck-advice/1"


class Tried(Value):
    """One cure: its forecast from the weights alone, and what running it measured (None: not run).

    Sizes are bytes of the denoiser's file; survival and excess error (dB) are effect_survival and excess_error.
    ``command`` checks the cure again, ``export`` writes it for the device; both run in the folder of the advice.
    ``settings`` ask for the same as the table ``[check]`` of a qcheck.toml in that folder.
    """

    kind: str
    title: str
    why: str
    predicted_bytes: int | None
    predicted_survival: Number | None
    verdict: Outcome | None = None
    bytes: int | None = None
    survival: Number | None = None
    excess_error: Number | None = None
    seconds: float | None = None
    command: str = ""
    export: str = ""
    settings: dict[str, Setting | list[Setting]] = Field(default_factory=dict)


class CaseAdvice(Value):
    """A case, the cures that were tried for it in order of cost, and the index of the first that passed."""

    scheme: str
    order: str
    verdict: Outcome
    tried: list[Tried]
    cure: int | None


class Advice(Value):
    """The whole result: advice.json."""

    schema_: Literal["qcheck-advice/1"] = Field(default=SCHEMA, alias="schema")
    report: str
    ran: bool
    cases: list[CaseAdvice]

    @property
    def cured(self) -> bool:
        """Whether every case that did not pass has a cure that did."""
        return all(case.cure is not None for case in self.cases)
