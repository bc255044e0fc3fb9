"""The note that QAT writes into the metadata of an adapter that it calibrated."""

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
    """The settings that the adapter was calibrated for, the digest of its ``source`` file, and the result.

    ``steps`` is the number of training steps after which its factors were kept.
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
    """The note in the file's metadata, None where there is none.

    Raises:
        UserError: the note cannot be read.
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
    """Refuse a calibrated adapter without the file that it was calibrated from, or with another file.

    It compensates the error of quantization, so at full precision it cannot be the reference, not even its own.
    """
    for index, adapter in enumerate(adapters):
        origin = note(adapter)
        if origin is None:
            continue
        if not references:
            raise UserError(
                f"adapter {str(adapter.path)!r} was calibrated by QAT for {origin.scheme} {origin.order}, so it is no "
                "reference of its own",
                f"Give the file that it was calibrated from (digest {origin.source}): --reference-lora FILE.",
            )
        if references[index].digest != origin.source:
            raise UserError(
                f"adapter {str(adapter.path)!r} was calibrated from a file of digest {origin.source}; "
                f"{str(references[index].path)!r} is {references[index].digest}",
                "Give the file that it was calibrated from as --reference-lora.",
            )
