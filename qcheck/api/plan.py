"""The plan of a sweep: a TOML file, or keywords, with bases, adapters, weights and targets -> requests."""

import functools
import glob
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from qcheck.api.keywords import Files, Named, Request
from qcheck.api.request import check_spec, many
from qcheck.core import files
from qcheck.core.errors import UserError, unknown
from qcheck.core.folder import beside
from qcheck.demo import library
from qcheck.spec.check import CheckSpec

_EACH = ("base", "weight", "target")  # of several, every combination is a request
_OWN = "lora"


def requests(keywords: Mapping[str, Any]) -> list[CheckSpec]:
    """The requests of a plan: of ``check_spec``'s keywords, ``base``, ``lora``, ``weight`` and ``target`` may be lists.

    ``lora`` names files, folders, globs, and JSONL files whose lines are keywords of one adapter each.

    Raises:
        UserError: nothing is named, or a request is none.
    """
    lines = [*_adapters(many(keywords.get(_OWN)), "demo" in map(str, many(keywords.get("base"))))]
    if not lines or not all({**keywords, **line}.get("base") for line in lines):
        lacking = "no base" if lines else "no adapter"
        raise UserError(f"the plan names {lacking}", "Give a base, and adapters: files, a folder, a glob.")
    specs = [spec for line in lines for spec in _of_line({**keywords, **line})]
    if any(spec.artifacts for spec in specs):
        raise UserError("the plan names ONNX files of others", "A sweep judges schemes: give those to `qcheck check`.")
    return [*{(spec.model_dump_json()): spec for spec in specs}.values()]


def read(path: Path) -> dict[str, Any]:
    """The keywords of a plan's file: the long options of ``check``; paths are relative to the file.

    Raises:
        UserError: not readable, no TOML, or another key.
    """
    try:
        content = files.read_toml(path)
    except (OSError, ValueError) as error:
        raise UserError(f"plan {str(path)!r}: {error}", "Give a readable TOML file.") from error
    keywords = {name.replace("-", "_"): value for name, value in content.items()}
    known = _known()
    for name in keywords:
        if name not in known:
            raise unknown("key of a plan", name, _as_written(known))
    return {name: _placed(path.parent, value) for name, value in keywords.items()}


def _placed(folder: Path, value: Any) -> Any:
    """``value`` with the paths in it that are beside the file."""
    return [beside(folder, item) for item in value] if isinstance(value, list) else beside(folder, value)


def _as_written(known: Iterable[str]) -> list[str]:
    return [name.replace("_", "-") for name in known]


def _known() -> list[str]:
    names = check_spec.__kwdefaults__ or {}
    return ["base", _OWN, *names]


def _adapters(sources: Sequence[Named], demo: bool) -> Iterator[dict[str, Any]]:
    """The keywords of each adapter.

    Raises:
        UserError: a folder or a glob without adapters, or a line that is no JSON object.
    """
    for source in map(str, sources):
        path = _path(source)
        if path.suffix == ".jsonl":
            yield from _lines(path)
        elif path.is_dir() and not (path / "adapter_config.json").exists():
            yield from _all_of(source, sorted(path.rglob("*.safetensors")))
        elif glob.has_magic(source) and not path.exists():
            yield from _all_of(source, sorted(Path(name) for name in glob.glob(source, recursive=True)))  # noqa: PTH207
        else:
            yield {_OWN: source if demo and source in library.adapters() else str(path)}


def _path(source: str) -> Path:
    """The path of a source.

    Raises:
        UserError: it has no name, or one that no disk takes.
    """
    if not source:
        raise UserError("the plan names an adapter ''", "Give the path of a file, a folder or a glob.")
    path = Path(source)
    try:
        path.exists()
    except OSError as error:
        raise UserError(f"the plan names what cannot be opened: {error}", "Correct that path.") from error
    return path


def _all_of(source: str, paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    if not paths:
        raise UserError(f"{source!r} holds no adapter", "Give a folder or a glob of .safetensors files.")
    return ({_OWN: str(path)} for path in paths)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = files.read_text(path).splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}", "Give a readable JSONL file.") from error
    known = _known()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            keywords = files.parse_json(line)
        except ValueError as error:
            raise UserError(f"{path}:{number}: {error}", "Give one JSON object a line.") from error
        if not isinstance(keywords, dict) or _OWN not in keywords:
            raise UserError(
                f"{path}:{number}: no object with {_OWN!r}", 'Give lines such as {"lora": "a.safetensors"}.'
            )
        renamed = {name.replace("-", "_"): value for name, value in keywords.items()}
        for name in renamed:
            if name not in known:
                raise unknown(f"key of {path}:{number}", name, _as_written(known))
        yield {name: _placed(path.parent, value) for name, value in renamed.items()}


def _of_line(keywords: Mapping[str, Any]) -> Iterator[CheckSpec]:
    """A request for every combination of base, weight and target."""
    lists = [many(keywords.get(name)) or [None] for name in _EACH]
    for values in itertools.product(*lists):
        chosen = {name: value for name, value in zip(_EACH, values, strict=True) if value is not None}
        rest = {name: value for name, value in keywords.items() if name not in _EACH}
        _require_types({**rest, **chosen})
        try:
            yield check_spec(**{**rest, **chosen})
        except OSError as error:  # such as a name that is too long for a path
            raise UserError(f"the plan names what cannot be opened: {error}", "Correct that path.") from error


@functools.cache
def _types() -> Mapping[str, TypeAdapter[Any]]:
    hints = {"base": Named, _OWN: Files, **get_type_hints(Request)}
    return {name: TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)) for name, hint in hints.items()}


def _require_types(keywords: Mapping[str, Any]) -> None:
    """Refuse a value of another type than its option takes.

    Raises:
        UserError: there is one.
    """
    for name in keywords.keys() & _types().keys():
        try:
            _types()[name].validate_python(keywords[name])
        except ValidationError as error:
            said = error.errors()[0]["msg"]
            raise UserError(
                f"the plan's {name.replace('_', '-')} is {keywords[name]!r}: {said}", "Give what that option takes."
            ) from error
