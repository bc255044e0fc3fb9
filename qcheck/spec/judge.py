"""A network of the user's own that looks at pictures: ``clip=FOLDER`` or ``dinov2=FOLDER``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from qcheck.core.errors import UserError
from qcheck.core.values import Value

Kind = Literal["clip", "dinov2"]


class Judge(Value):
    """The kind of a network and the folder of its files, as ``transformers`` saves them."""

    kind: Kind
    folder: str

    @property
    def measurement(self) -> str:
        """The name of what it measures."""
        return f"{self.kind}_survival"

    def text(self) -> str:
        """As the option names it."""
        return f"{self.kind}={self.folder}"


def find(text: str) -> Judge:
    """The judge of the option's text.

    Raises:
        UserError: another kind, or no such folder.
    """
    kind, _, folder = text.partition("=")
    for known in get_args(Kind):
        if kind == known and (Path(folder) / "config.json").is_file():
            return Judge(kind=known, folder=str(Path(folder).absolute()))
    kinds = " or ".join(f"{known}=FOLDER" for known in get_args(Kind))
    what = "names no folder with a config.json" if kind in get_args(Kind) else "is none"
    raise UserError(f"--judge {text!r} {what}", f"Give {kinds}, a folder that transformers saved; nothing is fetched.")


def find_all(texts: Sequence[str]) -> tuple[Judge, ...]:
    """The judges of several options.

    Raises:
        UserError: as ``find``, or two of one kind.
    """
    judges = tuple(map(find, texts))
    if len({one.kind for one in judges}) != len(judges):
        raise UserError(f"--judge is given twice for one kind: {', '.join(texts)}", "Give one folder a kind.")
    return judges
