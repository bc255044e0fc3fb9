"""TOML files to frozen values: where data lives, and how it is read strictly."""

import functools
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AllowInfNan, BaseModel, BeforeValidator, ConfigDict, ValidationError, WithJsonSchema

from qcheck.core import files
from qcheck.core.errors import UserError, unknown

PACKAGE = Path(__file__).parent.parent
DATA = PACKAGE / "spec" / "data"


class Value(BaseModel):
    """A frozen value whose file may not hold unknown keys, whose types are not coerced and whose floats are finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, ser_json_inf_nan="strings", allow_inf_nan=False)

    def to_json(self) -> str:
        """Indented JSON, as it is stored; non-finite numbers become the strings NaN, Infinity and -Infinity."""
        return self.model_dump_json(indent=1, by_alias=True) + "\n"


V = TypeVar("V", bound=Value)


def as_tuple(value: object) -> object:
    """TOML arrays and JSON arrays are lists; frozen values hold tuples."""
    return tuple(value) if isinstance(value, list) else value


def as_number(value: object) -> object:
    """JSON has no NaN or infinity; they are stored as the strings that pydantic writes."""
    return float(value) if value in ("NaN", "Infinity", "-Infinity") else value


Number = Annotated[
    float,
    AllowInfNan(),
    BeforeValidator(as_number),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}]}),
]
Names = Annotated[tuple[str, ...], BeforeValidator(as_tuple)]


@functools.cache
def data_folder(name: str) -> Path:
    """The folder ``targets`` or ``calibration``: in an installed wheel with the other data, else beside the package."""
    inside = DATA / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def names_in(folder: Path) -> list[str]:
    """The names that ``folder`` offers: its TOML files without the ending."""
    return sorted(path.stem for path in folder.glob("*.toml"))


def fault(error: ValidationError) -> str:
    """The first place that does not fit, and why."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the whole'}: {first['msg']}"


def read_toml(kind: type[V], path: Path) -> V:
    """Read one file; a value's ``name`` is the file's, so it cannot disagree.

    Raises:
        UserError: not readable, not TOML, or keys and types that ``kind`` does not have.
    """
    title = kind.__name__.lower()
    try:
        content = files.read_toml(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{title} file {path}: {error}", "Give a readable TOML file.") from error
    if "name" in content:
        raise UserError(f"{title} file {path}: name: it is the file's own", "Take the key out, or rename the file.")
    try:
        return kind.model_validate({"name": path.stem} | content, context={"folder": path.parent})
    except ValidationError as error:
        raise UserError(f"{title} file {path}: {fault(error)}", "Correct that key.") from error


def named(kind: type[V], folder: Path, name: str) -> V:
    """The value called ``name`` in ``folder``, or the file at that path when it ends in ``.toml``."""
    if name.endswith(".toml"):
        return read_toml(kind, Path(name))
    if name not in names_in(folder):
        raise unknown(kind.__name__.lower(), name, names_in(folder))
    return read_toml(kind, folder / f"{name}.toml")
