"""``qcheck.toml``: what the checks of a project have in common.

Its table ``[check]`` holds options of ``qcheck check`` by their long names. They become the options' defaults, so that
the command line and the environment override them.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from qcheck.api.request import probes_of
from qcheck.cli import terminal
from qcheck.core import cache, files
from qcheck.core.errors import UserError, unknown
from qcheck.core.folder import beside
from qcheck.core.values import Value
from qcheck.spec.check import CheckSpec
from qcheck.spec.probe import SAMPLING
from qcheck.spec.sampling import Sampling

NAME, VARIABLE = "qcheck.toml", "QCHECK_CONFIG"
_TABLE = "check"
_OWN = ("config", "print-config", "help")
_FILE, _ASKED = "DEFAULT_MAP", ("COMMANDLINE", "ENVIRONMENT")  # click's names of where a value comes from
Argument = str | float | int | bool | list[str] | list[float] | None


class Setting(Value):
    """One option: its name, its value and where the value comes from."""

    name: str
    value: Argument
    source: str


def nearest(folder: Path) -> Path | None:
    """The file in ``folder`` or in the closest folder above it."""
    return next((parent / NAME for parent in (folder, *folder.parents) if (parent / NAME).is_file()), None)


def load(context: typer.Context, path: Path | None) -> Path | None:
    """Make the file's values the defaults of the command's options; the callback of ``--config``.

    Raises:
        UserError: the file is not readable, or holds a key or a value that no option has.
    """
    file = path or nearest(Path.cwd())
    if file is not None and not context.resilient_parsing:
        known = options(context)
        context.default_map = {known[key].name: value for key, value in _read(context, file).items()}
        context.obj = file
    return file


def unless_overridden(other: str) -> Callable[[typer.Context, typer.CallbackParam, Any], Any]:
    """The callback of an option that stands instead of ``other``: the file's is left out where ``other`` is asked for.

    Options that are asked for are processed before those that have defaults.
    """

    def callback(context: typer.Context, parameter: typer.CallbackParam, value: Any) -> Any:
        own, instead = (context.get_parameter_source(str(name)) for name in (parameter.name, other))
        if own is not None and own.name == _FILE and instead is not None and instead.name in _ASKED:
            context.set_parameter_source(str(parameter.name), type(own)["DEFAULT"])
            return None
        return value

    return callback


def base() -> str:
    """The base of the file that ``load`` takes by itself, for a command that takes nothing else of it.

    Raises:
        UserError: there is no file, none that is readable, or it has no base.
    """
    file = Path(named) if (named := os.environ.get(VARIABLE)) else nearest(Path.cwd())
    if file is None:
        raise UserError(
            "neither a base nor a plan is given", f"Give one, or write base = ... below [{_TABLE}] of {NAME}."
        )
    values = _parsed(file).get(_TABLE, {})
    source = values.get("base") if isinstance(values, dict) else None
    if not isinstance(source, str):
        raise UserError(f"{file} has no base", f"Give a base or a plan, or write base = ... below [{_TABLE}].")
    return str(beside(file.parent, source))


def options(context: typer.Context) -> Mapping[str, Any]:
    """The command's parameters by the long names of the options; of flags the positive name."""
    by_name = {_long(parameter): parameter for parameter in context.command.params}
    return {name: parameter for name, parameter in by_name.items() if name not in _OWN}


def _long(parameter: Any) -> str:
    long = next((name for name in parameter.opts if name.startswith("--")), parameter.name)
    return str(long).removeprefix("--")


def _read(context: typer.Context, file: Path) -> dict[str, Any]:
    content = _parsed(file)
    if odd := [table for table in content if table != _TABLE]:
        raise _unknown_key(file, "table or key", odd[0], [_TABLE])
    values, known = content.get(_TABLE, {}), options(context)
    if not isinstance(values, dict):
        raise UserError(f"{file}: {_TABLE} is no table", f"Write [{_TABLE}], and the options below it.")
    if odd := [key for key in values if key not in known]:
        raise _unknown_key(file, f"key of [{_TABLE}]", odd[0], known)
    return {key: _value(context, file, known[key], value) for key, value in values.items()}


def _parsed(file: Path) -> dict[str, Any]:
    try:
        return files.read_toml(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: {error}", "Give a readable TOML file.") from error


def _unknown_key(file: Path, kind: str, name: str, known: Any) -> UserError:
    error = unknown(kind, name, known)
    return UserError(f"{file}: {error.what}", error.fix)


def _value(context: typer.Context, file: Path, parameter: Any, value: Any) -> Any:
    """``value`` as the option takes it; a single value may stand for a list of one."""
    many = getattr(parameter, "multiple", False)
    items = value if isinstance(value, list) and many else [value]
    flag = getattr(parameter, "is_flag", False)
    for item in items:
        if isinstance(item, bool) != flag or not isinstance(item, bool | str | int | float):
            expected = "true or false" if flag else "one value, or a list" if many else "one value"
            raise UserError(f"{file}: {_long(parameter)} = {value!r}", f"Give {expected}.")
    paths = [beside(file.parent, item) for item in items]
    option = paths if many else paths[0]
    try:
        parameter.process_value(context, option)
    except typer.BadParameter as error:
        raise UserError(f"{file}: {_long(parameter)}: {error.message}", "Correct that value.") from error
    return option


def settings(context: typer.Context, spec: CheckSpec, no_cache: bool) -> list[Setting]:
    """Every option with its value in the request and the source of that value."""
    resolved, of_base = _resolved(spec), _by_base(context, spec)
    rows = []
    for name, parameter in options(context).items():
        value = resolved.get(name, _plain(context.params.get(parameter.name)))
        source = _source(context, parameter)
        if source == "default" and name in SAMPLING and value is not None:
            source = "base" if name in of_base else "probe set"
        if name == "probes" and context.params["prompts"] is not None:
            source = "prompts"
        rows.append(Setting(name=name, value=value, source=source))
    cache_source = f"environment, {cache.VARIABLE}" if cache.moved() else "default"
    cache_folder = None if no_cache else str(cache.location())
    return [*rows, Setting(name="cache", value=cache_folder, source=cache_source if cache_folder else "no-cache")]


def _by_base(context: typer.Context, spec: CheckSpec) -> frozenset[str]:
    """The names of the sampling options that the base has a say in before the probe set."""
    usual = probes_of(context.params["probes"], context.params["prompts"], spec.base, {})
    return frozenset(Sampling.model_fields if usual.of_base else ())


def _resolved(spec: CheckSpec) -> dict[str, Argument]:
    """The values of the request by the long names of the options."""
    return {
        "base": spec.base,
        "lora": [adapter.source for adapter in spec.adapters],
        "weight": [adapter.weight for adapter in spec.adapters],
        "reference-lora": [adapter.source for adapter in spec.references],
        "with-lora": [f"{adapter.source}={adapter.weight:g}" for adapter in spec.common],
        "allow-unmatched": spec.allow_unmatched,
        "scheme": [scheme.name for scheme in spec.schemes],
        "artifact": [*spec.artifacts],
        "order": [*spec.orders],
        "max-rank": spec.max_rank,
        "bound-with": [f"{adapter.source}={adapter.weight:g}" for adapter in spec.bound_with],
        "require": spec.require,
        "target": spec.target.name,
        "probes": spec.probes.name,
        "trigger": spec.trigger,
        "recipe": spec.recipe.name,
        "ranges": spec.ranges,
        "limits": spec.limits.name,
        "style-pictures": spec.style_pictures,
        "judge": [one.text() for one in spec.judges],
        "max-probes": spec.bounds.looks[-1],
        **spec.execution.model_dump(),
        **{name: getattr(spec.probes, name) for name in SAMPLING},
        "seed": spec.probes.seed_option,
    }


def _plain(value: Any) -> Argument:
    """``value`` in a type that JSON can hold."""
    if isinstance(value, list | tuple):
        return [str(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _source(context: typer.Context, parameter: Any) -> str:
    origin = context.get_parameter_source(parameter.name)
    names = {
        "COMMANDLINE": "command line",
        "ENVIRONMENT": f"environment, {parameter.envvar}",
        _FILE: str(context.obj),
    }
    return names.get(origin.name, "default") if origin is not None else "default"


def show(rows: Sequence[Setting], as_json: bool) -> None:
    """Print the settings as a table, or as JSON."""
    if as_json:
        typer.echo(json.dumps([setting.model_dump() for setting in rows], indent=1))
        return
    terminal.console().print(table(rows))


def table(rows: Sequence[Setting]) -> Table:
    """The settings as a table; what is no default is bold."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("option", "value", "from"):
        shown.add_column(title, overflow="fold")
    for setting in rows:
        value = "-" if setting.value is None else json.dumps(setting.value, ensure_ascii=False)
        style = "" if setting.source == "default" else "bold"
        shown.add_row(Text(setting.name), Text(value, style), Text(setting.source))
    return shown
