"""Settings as a TOML file and as flags, both from dataclasses; the same file in three packages.

The settings of a command are a dataclass with a dataclass in every field: the tables of the file,
whose keys are the inner fields. What a field means is the docstring under it.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import inspect
import json
import sys
import textwrap
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import SettingsError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_Settings = TypeVar("_Settings", bound="DataclassInstance")
_KINDS = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false"}


def add_flags(
    parser: argparse.ArgumentParser,
    base: DataclassInstance,
    flags: Mapping[str, str],
    *,
    required: tuple[argparse.Action, ...] | None = (),
) -> None:
    """Add `--config`, `--write-config` and a flag for each of the commonest settings.

    Args:
        parser: The command's parser.
        base: The settings whose values are the defaults.
        flags: Where each flag's value belongs, as `table.key`.
        required: What the command cannot do without, but `--write-config` can; None leaves
            `--write-config` out.
    """
    group = parser.add_argument_group("settings")
    add = group.add_argument
    add("--config", type=Path, metavar="FILE", help="TOML file of settings; flags win over it")
    if required is not None:
        add("--write-config", type=Path, metavar="FILE", action=_Sufficient,
            enough_without=required,
            help="write all settings, explained, to a new TOML file and stop")  # fmt: skip
    for flag, place in flags.items():
        table, key = place.split(".")
        part = getattr(base, table)
        value = getattr(part, key)
        values = value if isinstance(value, tuple) else [value]
        shown = "none" if value is None else " ".join(map(str, values))
        text = f"{field_docs(type(part))[key].removesuffix('.')} (default: {shown})"
        add(flag, dest=place, default=argparse.SUPPRESS, help=text.replace("%", "%%"),
            **_parsing(get_type_hints(type(part))[key]))  # fmt: skip


def settings_of(options: argparse.Namespace, base: _Settings) -> _Settings:
    """Return the settings that parsed flags, above the file they name, above `base` stand for.

    Raises:
        SettingsError: The file or a flag is wrong.
    """
    given: dict[str, dict[str, Any]] = {}
    for place, value in vars(options).items():
        table, dot, key = place.partition(".")
        if dot:
            given.setdefault(table, {})[key] = value
    read = base if options.config is None else read_settings(options.config, base)
    return _merged(read, given, "command line")


def read_settings(path: Path, base: _Settings) -> _Settings:
    """Return `base` with what a TOML file says instead.

    Raises:
        SettingsError: The file cannot be read, or something in it is unknown or wrong.
    """
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read {path} ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{path} is no TOML file: {error}") from None
    return _merged(base, tables, str(path))


def write_settings(path: Path, settings: DataclassInstance) -> None:
    """Write settings to a new TOML file, with their meanings, types and defaults as comments.

    Raises:
        SettingsError: The file exists already, or a value cannot be written.
        OSError: It cannot be written.
    """
    lines = []
    for table in dataclasses.fields(settings):
        part = getattr(settings, table.name)
        hints, docs = get_type_hints(type(part)), field_docs(type(part))
        meaning = str(inspect.getdoc(type(part))).partition("\n")[0]
        lines += [f"[{table.name}]", f"# {meaning}", "#"]
        for field in dataclasses.fields(part):
            value, default = getattr(part, field.name), getattr(type(part)(), field.name)
            shown = "none" if default is None else _toml(default)
            comment = f"{docs[field.name]} ({_described(hints[field.name])}; default: {shown})"
            lines += [f"# {line}" for line in textwrap.wrap(comment, 98, break_on_hyphens=False)]
            # TOML has no value that stands for none.
            text = f"#{field.name} =" if value is None else f"{field.name} = {_toml(value)}"
            lines += [text]
        lines += [""]
    text = "\n".join(lines)
    try:
        with path.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except FileExistsError:
        raise SettingsError(f"{path} exists already; name a new file") from None


def field_docs(settings: type) -> dict[str, str]:
    """Return the docstring under each field of a dataclass, as one line."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(settings))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in zip(definition.body, definition.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        if isinstance(text.value.value, str)
    }


class _Sufficient(argparse.Action):
    """Store a value, and let the command do without what it needs otherwise."""

    def __init__(self, *, enough_without: tuple[argparse.Action, ...], **settings: Any) -> None:
        super().__init__(**settings)
        self._enough_without = enough_without

    def __call__(
        self, parser: object, options: object, values: object, option: object = None
    ) -> None:
        setattr(options, self.dest, values)
        for action in self._enough_without:
            action.required = False


def _merged(base: _Settings, tables: Mapping[str, Any], where: str) -> _Settings:
    changed = {}
    for table, values in tables.items():
        part = getattr(base, _known(table, base, f"{where}: table"))
        if not isinstance(values, dict):
            raise SettingsError(f"{where}: {table} must be a table, got {values!r}")
        hints = get_type_hints(type(part))
        checked = {}
        for key, value in values.items():
            hint = hints[_known(key, part, f"{where}: [{table}] key")]
            try:
                checked[key] = _converted(value, hint)
            except TypeError:
                raise SettingsError(
                    f"{where}: [{table}] {key} must be {_described(hint)}, got {value!r}"
                ) from None
        try:
            changed[table] = dataclasses.replace(part, **checked)
        except ValueError as error:
            raise SettingsError(f"{where}: [{table}] {error}") from None
    return dataclasses.replace(base, **changed)


def _known(name: str, among: DataclassInstance, what: str) -> str:
    names = [field.name for field in dataclasses.fields(among)]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0)
        raise SettingsError(f"{what} {name!r} is unknown; the nearest is {near[0]!r}")
    return name


def _converted(value: Any, hint: Any) -> Any:
    """Return a value as a field of this type holds it; raise `TypeError` if it is of another."""
    kind, arguments = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        for argument in arguments:
            with suppress(TypeError):
                return _converted(value, argument)
    elif kind is tuple and isinstance(value, list | tuple):
        each = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(each) == len(value):
            return tuple(map(_converted, value, each))
    elif kind is Literal and value in arguments:
        return value
    elif hint is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    elif (hint is not float and type(value) is hint) or (kind is Mapping and type(value) is dict):
        return value
    raise TypeError


def _described(hint: Any) -> str:
    kind, arguments = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return " or ".join(_described(each) for each in arguments if each is not NoneType)
    if kind is tuple:
        number = "" if arguments[-1] is Ellipsis else f"{len(arguments)} "
        return f"a list of {number}({_described(arguments[0])})"
    if kind is Literal:
        return " or ".join(f'"{argument}"' for argument in arguments)
    return "a table" if kind is Mapping else _KINDS[hint]


def _parsing(hint: Any) -> dict[str, Any]:
    """Return what makes argparse read values of this type."""
    kind, arguments = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return _parsing(next(each for each in arguments if each is not NoneType))
    if kind is tuple:
        many = {"action": "append"} if arguments[-1] is Ellipsis else {"nargs": len(arguments)}
        return _parsing(arguments[0]) | many
    if kind is Literal:
        return {"choices": arguments}
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    return {"type": hint, "metavar": {int: "N", float: "NUMBER", str: "TEXT"}[hint]}


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        # JSON's escapes are TOML's too, but for this character, which JSON leaves as it is.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, Mapping):
        pairs = (f"{_toml(name)} = {_toml(item)}" for name, item in value.items())
        return f"{{{', '.join(pairs)}}}"
    raise SettingsError(f"a TOML file cannot hold {value!r}; leave it out")
