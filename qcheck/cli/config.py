"""``qcheck.toml``: what the checks of a project have in common.

Its table ``[check]`` holds options of ``qcheck check`` by their long names. They become the options' defaults, so that
what is typed and what the environment says come first.
"""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qcheck.core import cache
from qcheck.core.errors import UserError, unknown
from qcheck.core.values import Value
from qcheck.spec.check import CheckSpec
from qcheck.spec.probe import SAMPLING

NAME = "qcheck.toml"
_TABLE = "check"
_OWN = ("config", "print-config", "help")
Argument = str | float | int | bool | list[str] | list[float] | None


class Setting(Value):
    """One option: what it is and where that comes from."""

    name: str
    value: Argument
    source: str


def nearest(folder: Path) -> Path | None:
    """The file in ``folder`` or in the closest folder above it."""
    return next((found / NAME for found in (folder, *folder.parents) if (found / NAME).is_file()), None)


def load(context: typer.Context, given: Path | None) -> Path | None:
    """Make the file's values the defaults of the command's options; the callback of ``--config``.

    Raises:
        UserError: the file is not readable, or holds a key or a value that no option has.
    """
    file = given or nearest(Path.cwd())
    if file is not None and not context.resilient_parsing:
        known = options(context)
        context.default_map = {known[key].name: value for key, value in _read(context, file).items()}
        context.obj = file
    return file


def options(context: typer.Context) -> Mapping[str, Any]:
    """The command's parameters by the long names of the options; of flags the positive name."""
    found = {_long(parameter): parameter for parameter in context.command.params}
    return {name: parameter for name, parameter in found.items() if name not in _OWN}


def _long(parameter: Any) -> str:
    long = next((name for name in parameter.opts if name.startswith("--")), parameter.name)
    return str(long).removeprefix("--")


def _read(context: typer.Context, file: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{file}: {error}", "Give a readable TOML file.") from error
    if odd := [table for table in content if table != _TABLE]:
        raise _odd(file, "table or key", odd[0], [_TABLE])
    values, known = content.get(_TABLE, {}), options(context)
    if not isinstance(values, dict):
        raise UserError(f"{file}: {_TABLE} is no table", f"Write [{_TABLE}], and the options below it.")
    if odd := [key for key in values if key not in known]:
        raise _odd(file, f"key of [{_TABLE}]", odd[0], known)
    return {key: _value(context, file, known[key], value) for key, value in values.items()}


def _odd(file: Path, kind: str, seen: str, known: Any) -> UserError:
    error = unknown(kind, seen, known)
    return UserError(f"{file}: {error.what}", error.fix)


def _value(context: typer.Context, file: Path, parameter: Any, value: Any) -> Any:
    """``value`` as the option takes it; a single one may stand for a list of one."""
    many = getattr(parameter, "multiple", False)
    given = value if isinstance(value, list) and many else [value]
    flag = getattr(parameter, "is_flag", False)
    for one in given:
        if isinstance(one, bool) != flag or not isinstance(one, bool | str | int | float):
            wanted = "true or false" if flag else "one value, or a list" if many else "one value"
            raise UserError(f"{file}: {_long(parameter)} = {value!r}", f"Give {wanted}.")
    placed = [_placed(file.parent, one) for one in given]
    found = placed if many else placed[0]
    try:
        parameter.process_value(context, found)
    except typer.BadParameter as error:
        raise UserError(f"{file}: {_long(parameter)}: {error.message}", "Correct that value.") from error
    return found


def _placed(folder: Path, value: Any) -> Any:
    """A path with a slash or an ending, with ``=WEIGHT`` or not, that exists beside the file; else ``value``."""
    path = str(value).partition("=")[0]
    local = ("/" in path or "." in path) and folder != Path.cwd() and (folder / path).exists()
    return str(folder / str(value)) if local else value


def settings(context: typer.Context, spec: CheckSpec, no_cache: bool) -> list[Setting]:
    """Every option as the request has it resolved, and its source."""
    resolved = _resolved(spec)
    found = []
    for name, parameter in options(context).items():
        value = resolved.get(name, _plain(context.params.get(parameter.name)))
        source = _source(context, parameter)
        if source == "default" and name in SAMPLING and value is not None:
            source = "probe set"
        if name == "probes" and context.params["prompts"] is not None:
            source = "prompts"
        found.append(Setting(name=name, value=value, source=source))
    moved = f"environment, {cache.VARIABLE}" if cache.moved() else "default"
    where = None if no_cache else str(cache.location())
    return [*found, Setting(name="cache", value=where, source=moved if where else "no-cache")]


def _resolved(spec: CheckSpec) -> dict[str, Argument]:
    """What was asked for, by the long names of the options."""
    return {
        "base": spec.base,
        "lora": [used.source for used in spec.adapters],
        "weight": [used.weight for used in spec.adapters],
        "reference-lora": [used.source for used in spec.references],
        "with-lora": [f"{used.source}={used.weight:g}" for used in spec.common],
        "allow-unmatched": spec.allow_unmatched,
        "scheme": [named.name for named in spec.schemes],
        "artifact": [*spec.artifacts],
        "order": [*spec.orders],
        "require": spec.require,
        "target": spec.target.name,
        "probes": spec.probes.name,
        "trigger": spec.trigger,
        "recipe": spec.recipe.name,
        "ranges": spec.ranges,
        "limits": spec.limits.name,
        "max-probes": spec.bounds.looks[-1],
        **spec.execution.model_dump(),
        **{name: getattr(spec.probes, name) for name in SAMPLING},
    }


def _plain(value: Any) -> Argument:
    """What JSON can hold."""
    if isinstance(value, list | tuple):
        return [str(one) for one in value]
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _source(context: typer.Context, parameter: Any) -> str:
    known = context.get_parameter_source(parameter.name)
    names = {
        "COMMANDLINE": "command line",
        "ENVIRONMENT": f"environment, {parameter.envvar}",
        "DEFAULT_MAP": str(context.obj),
    }
    return names.get(known.name, "default") if known is not None else "default"


def show(found: list[Setting], as_json: bool) -> None:
    """Print them."""
    if as_json:
        typer.echo(json.dumps([setting.model_dump() for setting in found], indent=1))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("option", "value", "from"):
        table.add_column(title, overflow="fold")
    for setting in found:
        value = "-" if setting.value is None else json.dumps(setting.value, ensure_ascii=False)
        style = "" if setting.source == "default" else "bold"
        table.add_row(Text(setting.name), Text(value, style), Text(setting.source))
    Console().print(table)
