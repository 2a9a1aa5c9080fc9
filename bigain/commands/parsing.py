"""The command layer: a command is a typed function; its signature and Google docstring are its arguments and help.

Parameters before `*` are positional, those after it are `--options` (a bool is a flag, a list takes several values),
and `*options: str` receives all options that the command does not know, for `predict` or for `create`. It returns an
`Outcome`; a row of `bigain.commands.main.COMMANDS` makes it a command: light to import, with heavy imports inside.
"""

from __future__ import annotations

import inspect
import re
import sys
from argparse import ArgumentError, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser

from bigain.errors import InputError

T = TypeVar("T")

# jsonargparse reports every branch of a union; these lines say nothing about the user's value.
_NOISE = re.compile(
    r"Does not validate against any of the Union|Subtypes: |Errors:$|Expected a <class 'NoneType'>|Given value|"
    r"Expected a path but|^$"
)
# Base class and package of the classes that a section of a configuration names.
_SECTIONS = {
    "compressor": ("Compressor", "bigain.compressors"),
    "model": ("LightningModule", "bigain.modules"),
    "data": ("EvalDataModule", "bigain.data"),
    "inner": ("Compressor", "bigain.compressors"),
    "backbone": ("Backbone", "bigain.backbones"),
}


@dataclass(frozen=True)
class Outcome:
    """What a command did.

    Attributes:
        text: Printed to stdout.
        complete: Whether nothing that was asked for is missing.
    """

    text: str = ""
    complete: bool = True


def run(function: Callable[..., Outcome], command: str, args: Sequence[str]) -> Outcome:
    """Call a command's function with the arguments of its command line; `--help` returns its help instead.

    Args:
        function: Typed, with a docstring.
        command: `bigain report`.
        args: Command line after it.

    Raises:
        InputError: If the arguments are wrong, or the function refuses them.
    """
    parameters = inspect.signature(function).parameters.values()
    hints = get_type_hints(function)
    most = {_flag(p.name): _most(hints[p.name]) for p in parameters if p.kind is p.KEYWORD_ONLY}
    own, further = _separate(args, most)
    if {"-h", "--help"} & set(further):
        return Outcome(_parser(function, command, hints).format_help())
    passes_on = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    with input_errors(command):
        values = _parser(function, command, hints).parse_args(own if passes_on else [*own, *further])
    values = {name: _expanded(value) for name, value in vars(values).items()}
    positional = [values[p.name] for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    options = {p.name: values[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY}
    return function(*positional, *(further if passes_on else ()), **options)


def _parser(function: Callable[..., Outcome], command: str, hints: Mapping[str, Any]) -> ArgumentParser:
    from docstring_parser import parse

    documentation = parse(function.__doc__ or "")
    texts = {p.arg_name.lstrip("*"): p.description or "" for p in documentation.params}
    about = {"description": documentation.description, "formatter_class": RawDescriptionHelpFormatter}
    parser = ArgumentParser(prog=command, exit_on_error=False, **about)
    for name, parameter in inspect.signature(function).parameters.items():
        hint, item, default = hints[name], _item(hints[name]), parameter.default
        named = parameter.kind is parameter.KEYWORD_ONLY
        settings: dict[str, Any] = {"type": item, "nargs": "+"} if item else {"type": hint}
        if hint is bool:
            settings = {"action": "store_true"}
        if default is not parameter.empty:
            settings |= {"default": default} | ({} if named else {"nargs": "?"})
        elif named:
            settings |= {"required": True}
        choices = [
            str(value) for part in (hint, *get_args(hint)) if get_origin(part) is Literal for value in get_args(part)
        ]
        if choices or not named:
            settings |= {"metavar": f"{{{','.join(choices)}}}" if choices else name.upper()}
        if parameter.kind is parameter.VAR_POSITIONAL:
            parser.add_argument_group("further options", texts[name])
        else:
            text = texts[name] if default in (parameter.empty, None, False) else f"{texts[name]} Default: {default}"
            parser.add_argument(_flag(name) if named else name, help=text.replace("%", "%%"), **settings)
    return parser


def _separate(args: Sequence[str], most: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """Return positional values followed by the known options, and the other options with all values that follow each.

    `most` has the values that a known option takes; those behind them are positional.
    """
    values, options = options_of(args)
    known: list[str] = []
    further: list[str] = []
    for option, *following in options:
        name, equals, value = option.partition("=")
        flag = name.replace("_", "-")
        if flag in most:
            taken = 0 if equals else most[flag]
            known += [flag + equals + value, *following[:taken]]
            values += following[taken:]
        else:
            further += [option, *following]
    return [*values, *known], further


def options_of(args: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Return the values before any option, and each option with the values that follow it."""
    groups: list[list[str]] = [[]]
    for arg in args:
        if arg.startswith("--") or arg in ("-c", "-h"):
            groups.append([])
        groups[-1].append(arg)
    return groups[0], groups[1:]


def _expanded(value: Any) -> Any:
    """Replace `~` in paths; the shell does not behind `=`."""
    if isinstance(value, list):
        return [_expanded(item) for item in value]
    return value.expanduser() if isinstance(value, Path) else value


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _item(hint: Any) -> Any:
    """Return the type of the values of `list[X]` or `list[X] | None`; None for other types."""
    return next((get_args(part)[0] for part in (hint, *get_args(hint)) if get_origin(part) is list), None)


def _most(hint: Any) -> int:
    return 0 if hint is bool else sys.maxsize if _item(hint) else 1


def create(base: type[T], name: str, options: Sequence[str], command: str) -> T | None:
    """Create the object that `--name CLASS --name.argument value` describes; None without such options.

    Args:
        base: The class, or a base of it.
        name: Of the option.
        options: These and no others.
        command: `bigain flops`, for messages.

    Raises:
        InputError: If there is no such class, or it refuses its arguments.
    """
    parser = ArgumentParser(prog=command, exit_on_error=False)
    parser.add_subclass_arguments(base, name, required=False)
    with input_errors(command):
        return parser.instantiate(parser.parse_args(list(options))).get(name)


@contextmanager
def input_errors(command: str) -> Iterator[None]:
    """Turn a parsing error of jsonargparse into one InputError, and let out an InputError that it wrapped."""
    try:
        yield
    except (ArgumentError, ValueError) as error:
        cause = wrapped_input_error(error)
        if cause is not None:
            raise cause from error
        if isinstance(error, ArgumentError):
            message = readable(str(error))
            raise InputError(message if "; see bigain" in message else f"{message}; see {command} --help") from error
        raise


def wrapped_input_error(error: BaseException | None) -> InputError | None:
    """Return the InputError that an error was raised from, if there is one."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error


def readable(message: str) -> str:
    """Return a message of jsonargparse in one line, with the known class names where a class is unknown."""
    lines = [line.strip().lstrip("-").strip() for line in message.splitlines()]
    essence = " ".join(dict.fromkeys(line for line in lines if not _NOISE.search(line)))
    keys = re.findall(r'Parser key "([\w.]+)"', message)
    classes = re.findall(r"given class_path '([\w.]+)'", message)
    if classes and (refused := re.search(r"Option '([\w.]+)' is not accepted", message)):
        return str(unknown_argument(".".join(keys), classes[-1], refused[1]))
    unknown = "dot import path" in message or "Import error" in message or "not resolve" in message
    if keys and unknown and (section := keys[-1].rpartition(".")[2]) in _SECTIONS:
        essence += f"; known: {', '.join(shipped_classes(section))}, or the import path of a class"
    essence = re.sub(r"a typing\.Literal\[(.*?)\]", lambda match: "one of " + match[1].replace("'", ""), essence)
    essence = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", essence)
    if keys and "is abstract" in essence:
        essence = f"{keys[-1]}: name its class (class_path), and put its arguments under init_args"
    if "are required: predict." in essence:
        essence = "no --config, or one without " + " and ".join(re.findall(r"predict\.(\w+)", essence))
    return essence.rstrip(".")


def unknown_argument(section: str, class_path: str, name: str) -> InputError:
    """Return the error for an argument that a class does not have.

    Args:
        section: Where the class stands, such as `model.backbone`.
        class_path: Its import path.
        name: The argument.
    """
    from bigain.compressors.base import constructor_parameters

    kind = class_path.rpartition(".")[2]
    near = get_close_matches(name.partition(".")[0], constructor_parameters(import_class(class_path)), 1)
    guess = f"; did you mean {near[0]}" if near else ""
    return InputError(f"{kind} has no argument {name!r}{guess}; see bigain predict --{section}.help {kind}")


def import_class(path: str) -> type:
    """Return the class with an import path."""
    module, _, name = path.rpartition(".")
    kind: type = getattr(import_module(module), name)
    return kind


def shipped_classes(section: str) -> dict[str, type]:
    """Return the concrete classes for a section of a configuration, such as `data`, by name, sorted."""
    base, package = _SECTIONS[section]
    members = inspect.getmembers(import_module(package), inspect.isclass)
    return {name: kind for name, kind in members if base in {b.__name__ for b in kind.__mro__[1:]}}
