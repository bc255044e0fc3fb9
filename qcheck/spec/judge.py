"""A network of the user's own that looks at pictures: ``clip=FOLDER``, ``dinov2=FOLDER`` or ``lpips=FILE``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

from qcheck.core.errors import UserError
from qcheck.core.values import Value

Kind = Literal["clip", "dinov2", "lpips"]
_NEEDED: Mapping[Kind, str] = {"clip": "config.json", "dinov2": "config.json", "lpips": ""}  # the file below the path
_HELP = (
    "Give clip=FOLDER or dinov2=FOLDER, as transformers saves them, or lpips=FILE, the state dict of lpips.LPIPS; "
    "nothing is fetched."
)


class Judge(Value):
    """The kind of a network and its files: a folder as ``transformers`` saves it, or the one file of an LPIPS."""

    kind: Kind
    path: str

    def text(self) -> str:
        """As the option names it."""
        return f"{self.kind}={self.path}"


def find(text: str) -> Judge:
    """The judge of the option's text.

    Raises:
        UserError: another kind, or no such folder or file.
    """
    kind, _, path = text.partition("=")
    for known in get_args(Kind):
        if kind == known and (Path(path) / _NEEDED[known]).is_file():
            return Judge(kind=known, path=str(Path(path).absolute()))
    raise UserError(f"--judge {text!r} names no network of a known kind that is there", _HELP)


def find_all(texts: Sequence[str]) -> tuple[Judge, ...]:
    """The judges of several options.

    Raises:
        UserError: as ``find``, or two of one kind.
    """
    judges = tuple(map(find, texts))
    if len({one.kind for one in judges}) != len(judges):
        raise UserError(f"--judge is given twice for one kind: {', '.join(texts)}", "Give one of each kind.")
    return judges
