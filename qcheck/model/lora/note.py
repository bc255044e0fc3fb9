"""What an adapter that QAT calibrated says of itself in its file."""

from collections.abc import Sequence

from pydantic import ValidationError

from qcheck.core.errors import UserError
from qcheck.core.values import Number, Value
from qcheck.model.lora import Adapter

KEY = "qcheck.qat"


class Gap(Value):
    """Means over held-out probes: effect_survival, effect_to_error and excess_error."""

    survival: Number
    effect_to_error: Number
    excess_error: Number


class Note(Value):
    """What the adapter was calibrated for, from which file (``source`` its digest), and what it reached.

    ``steps`` are those after which its factors were kept.
    """

    qcheck: str
    source: str
    weight: float
    base: str
    scheme: str
    order: str
    recipe: str
    steps: int
    seed: int
    before: Gap
    after: Gap


def note(adapter: Adapter) -> Note | None:
    """The note in the file's metadata, None where QAT did not make it.

    Raises:
        UserError: there is one that cannot be read.
    """
    if KEY not in adapter.metadata:
        return None
    try:
        return Note.model_validate_json(adapter.metadata[KEY])
    except ValidationError as error:
        raise UserError(
            f"adapter {str(adapter.path)!r}: its note {KEY} cannot be read", "Calibrate it again: qcheck qat."
        ) from error


def require_references(adapters: Sequence[Adapter], references: Sequence[Adapter]) -> None:
    """Refuse a calibrated adapter without the file that it came from, or with another one.

    It is made to lose what rounding adds: at full precision it is no reference, not even its own.
    """
    for place, adapter in enumerate(adapters):
        found = note(adapter)
        if found is None:
            continue
        if not references:
            raise UserError(
                f"adapter {str(adapter.path)!r} was calibrated by QAT for {found.scheme} {found.order}, so it is no "
                "reference of its own",
                f"Give the file that it was calibrated from (digest {found.source}): --reference-lora FILE.",
            )
        if references[place].digest != found.source:
            raise UserError(
                f"adapter {str(adapter.path)!r} was calibrated from a file of digest {found.source}; "
                f"{str(references[place].path)!r} is {references[place].digest}",
                "Give the file that it was calibrated from as --reference-lora.",
            )
