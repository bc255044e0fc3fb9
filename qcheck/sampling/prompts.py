"""What the text encoders read of prompts: where two prompts are one to them, and what they cut."""

from collections.abc import Iterator, Sequence

from qcheck.core.errors import UserError
from qcheck.model.family import Family
from qcheck.model.quiet import quiet

_SHOWN = 60  # characters of a prompt


def require_distinct(family: Family, prompts: Sequence[str]) -> None:
    """Refuse prompts that are different texts and the same tokens: no picture of one would differ from the other's.

    Upper case and white space may make no difference.

    Raises:
        UserError: two of ``prompts`` have the same tokens.
    """
    texts = list({" ".join(prompt.casefold().split()): prompt for prompt in prompts}.values())
    known: dict[tuple[bytes, ...], str] = {}
    for text, *tokens in zip(texts, *_tokens(family, texts), strict=True):
        other = known.setdefault(tuple(tokens), text)
        if other != text:
            raise UserError(
                f"the prompts {_short(other)!r} and {_short(text)!r} are the same tokens to every text encoder",
                "Shorten what they have in common, if it is longer than the encoders read; else the base's tokenizer "
                "lacks its vocabulary: copy or download the whole pipeline.",
            )


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}...{text[-_SHOWN // 2 :]}"


def _tokens(family: Family, texts: Sequence[str]) -> Iterator[list[bytes]]:
    """The tokens of every text, by text encoder."""
    for encoder in family.read_by():
        yield [row.numpy().tobytes() for row in family.tokens(encoder, texts)["input_ids"]]


def cut(family: Family, prompts: Sequence[str], trigger: str | None) -> list[str]:
    """A sentence on prompts of which no text encoder reads all tokens, and one where the trigger words are lost."""
    limits, texts = family.read_by(), list(dict.fromkeys(prompts))
    lost: dict[str, str] = {}
    for text in texts:
        with quiet():  # the tokenizers warn too
            rests = [family.cut(encoder, text) for encoder in limits]
        if all(rests):
            lost[text] = min(rests, key=len)
    if not lost:
        return []
    first, rest = next(iter(lost.items()))
    most = max(limits.values())
    warnings = [
        f"{len(lost)} of {len(texts)} prompts are longer than the {most} tokens that the text encoders read, so their "
        f"ends have no effect: of {first[:40]!r}... {rest[:60]!r} is cut. "
        "Shorten them, or judge on others by --prompts"
    ]
    if trigger and (without := [text for text, end in lost.items() if _only_in(trigger, text, end)]):
        warnings.append(
            f"the trigger {trigger!r} is in the part that is cut of {len(without)} prompts: they do not wake the LoRA"
        )
    return warnings


def _only_in(trigger: str, text: str, end: str) -> bool:
    """Whether all of a prompt's trigger words are in its end; tokenizers may change their case."""
    everywhere, in_end = (whole.casefold().count(trigger.casefold()) for whole in (text, end))
    return everywhere <= in_end
