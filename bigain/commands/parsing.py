"""The command layer: a command is a typed function; its signature and Google docstring are its arguments and help.

Parameters before `*` are positional, those after it are `--options` (a bool is a flag, a list takes several values),
and `*options: str` receives all options that the command does not know, for `predict` or for `create`. It returns an
`Outcome`; a row of `bigain.commands.main.COMMANDS` makes it a command: light to import, with heavy imports inside.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import sys
from argparse import ArgumentError, RawDescriptionHelpFormatter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser, Namespace

import bigain
from bigain.errors import InputError

T = TypeVar("T")

# jsonargparse reports every branch of a union; these lines say nothing about the user's value.
_NOISE = re.compile(
    r"Does not validate against any of the Union|Subtypes: |Errors:$|Expected a <class 'NoneType'>|Given value|"
    r"Expected a path but|Unable to load config \"|^$"
)
# The location of the value, with which a message begins.
_LOCATION = re.compile(r"""Parser key "[\w.]+":|Problem with given class_path '[\w.]+':""")
_REPLACEMENTS = (
    (r"a typing\.Literal\[(.*?)\]", lambda match: "one of " + match[1].replace("'", "")),
    (r"<class '(?:\w+\.)*(\w+)'>", r"\1"),
    (r"Expected a dot import path string: (\S+)", r"there is no class \1"),
    (r"Type collections\.abc\.Callable\[.*\] expects a function or a callable class: ", ""),
    (r"\. Got value: [^;]*", ""),
    (r"; Unexpected import path format: [^;,]*", ""),
    (r"; Expected ", ", or "),
    (r"^Expected ", "expected "),
    (r"\ba int\b", "an int"),
    (r"^expected (\S+ \w+); there is no class \S+", r"expected \1 or a class"),
    (r"\bSequence\b", "list"),
    (r"'\w+' object has no attribute 'keys'", "init_args has to be a mapping"),
)
# Package of the classes that a section of a configuration names.
_PACKAGES = {
    "compressor": "compressors",
    "model": "modules",
    "data": "data",
    "inner": "compressors",
    "backbone": "backbones",
    "metric": "metrics",
    "extractor": "metrics",
}


@dataclass(frozen=True)
class Outcome:
    """The text that a command prints to stdout, and whether nothing that was asked for is missing."""

    text: str = ""
    complete: bool = True


def run(function: Callable[..., Outcome], command: str, args: Sequence[str]) -> Outcome:
    """Call a typed, documented function with the command line after `bigain report`; `--help` returns its help instead.

    Raises:
        InputError: If the arguments are wrong, or the function refuses them.
    """
    parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    passes_options = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    hints = get_type_hints(function)
    max_values = {_flag(name): 0 if hints[name] is bool else sys.maxsize if _item(hints[name]) else 1 for name in names}
    known_arguments, other_options = _split_options(args, max_values)
    parser = _parser(function, command, hints)
    if {"-h", "--help"} & set(other_options):
        return Outcome(parser.format_help())
    with input_errors(command, max_values):
        values = parser.parse_args(known_arguments if passes_options else [*known_arguments, *other_options])
    values = {name: _expanded(value) for name, value in vars(values).items()}
    options = {name: values.pop(name) for name in names}
    return function(*values.values(), *(other_options if passes_options else ()), **options)


def _parser(function: Callable[..., Outcome], command: str, hints: Mapping[str, Any]) -> ArgumentParser:
    from docstring_parser import parse

    documentation = parse(function.__doc__ or "")
    texts = {p.arg_name.lstrip("*"): p.description or "" for p in documentation.params}
    options = {"description": documentation.description, "formatter_class": RawDescriptionHelpFormatter}
    parser = ArgumentParser(prog=command, exit_on_error=False, **options)
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            parser.add_argument_group("further options", texts[name])
            continue
        hint, item, default = hints[name], _item(hints[name]), parameter.default
        is_option = parameter.kind is parameter.KEYWORD_ONLY
        settings: dict[str, Any] = {"type": item, "nargs": "+"} if item else {"type": hint}
        if hint is bool:
            settings = {"action": "store_true"}
        if default is not parameter.empty:
            settings |= {"default": default} | ({} if is_option else {"nargs": "?"})
        elif is_option:
            settings["required"] = True
        choices = [str(c) for part in (hint, *get_args(hint)) if get_origin(part) is Literal for c in get_args(part)]
        if choices or not is_option:
            settings["metavar"] = f"{{{','.join(choices)}}}" if choices else name.upper()
        text = texts[name] if default in (parameter.empty, None, False) else f"{texts[name]} Default: {default}"
        parser.add_argument(_flag(name) if is_option else name, help=text.replace("%", "%%"), **settings)
    return parser


def _split_options(args: Sequence[str], max_values: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """Return positional values followed by the known options, and the other options with all values that follow each.

    `max_values` has how many values a known option takes; further ones are positional.
    """
    values, options = options_of(args)
    known: list[str] = []
    other_options: list[str] = []
    for option, *arguments in options:
        name, equals, value = option.partition("=")
        flag = name.replace("_", "-")
        if flag in max_values:
            count = 0 if equals else max_values[flag]
            known += [flag + equals + value, *arguments[:count]]
            values += arguments[count:]
        else:
            other_options += [option, *arguments]
    return [*values, *known], other_options


def options_of(args: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Return the values before any option, and each option with the values that follow it."""
    groups: list[list[str]] = [[]]
    for arg in args:
        if arg.startswith("--") or arg in ("-c", "-h"):
            groups.append([])
        groups[-1].append(arg)
    return groups[0], groups[1:]


def _expanded(value: Any) -> Any:
    """Replace `~` in paths and names that may be paths; the shell does not after `=`."""
    if isinstance(value, list):
        return [_expanded(item) for item in value]
    return type(value)(os.path.expanduser(value)) if isinstance(value, (str, Path)) else value


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _item(hint: Any) -> Any:
    """Return the type of the values of `list[X]` or `list[X] | None`; None for other types."""
    return next((get_args(part)[0] for part in (hint, *get_args(hint)) if get_origin(part) is list), None)


def create(base: type[T], name: str, options: Sequence[str], command: str) -> T | None:
    """Create the object of a class or base that `--name CLASS --name.argument value` describes; None without these.

    Raises:
        InputError: If there is no such class, or it refuses its arguments.
    """
    parser = ArgumentParser(prog=command, exit_on_error=False)
    parser.add_subclass_arguments(base, name, required=False)
    with input_errors(command):
        config = parser.parse_args(list(options))
        refuse_nulls(config)
        return parser.instantiate(config).get(name)


def classes_of(path: str, config: Namespace) -> Iterator[tuple[str, Namespace]]:
    """Yield the classes of a configuration as `model.backbone` and its `class_path` and `init_args`."""
    for name, value in vars(config).items():
        if isinstance(value, Namespace) and "init_args" in value:
            yield f"{path}{name}", value
            yield from classes_of(f"{path}{name}.", value.init_args)


def refuse_nulls(config: Namespace) -> None:
    """Raise an InputError for null where a class takes none: the parser accepts it for every type."""
    from bigain.compressors.settings import constructor_parameters

    for path, section in classes_of("", config):
        parameters = constructor_parameters(resolve_name(section.class_path))
        for name, value in vars(section.init_args).items():
            expected = str(parameters[name].annotation) if name in parameters else "Any"
            if value is None and not re.search("None|Optional|Any|_empty", expected):
                raise InputError(f"{path}.{name} is null; expected {expected}")


@contextmanager
def input_errors(command: str, known: Collection[str] = ()) -> Iterator[None]:
    """Turn a parsing error of jsonargparse into one InputError, and let out an InputError that it wrapped.

    For an unknown option, the nearest `known` ones are proposed.
    """
    try:
        yield
    except (ArgumentError, ValueError) as error:
        cause = wrapped_input_error(error)
        if cause is not None:
            raise cause from error
        message = readable(str(error), known)
        hint = "" if re.search("; (see bigain|known:)", message) else f"; see {command} --help"
        raise InputError(message + hint) from error


def wrapped_input_error(error: BaseException | None) -> InputError | None:
    """Return the InputError that an error was raised from, if there is one."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error


def readable(message: str, known: Collection[str] = ()) -> str:
    """Return a message of jsonargparse in one line, with near or known names where one is unknown."""
    keys = list(dict.fromkeys(re.findall(r'Parser key "([\w.]+)"', message)))
    section, classes = ".".join(keys), re.findall(r"given class_path '([\w.]+)'", message)
    refused = re.search(r"(?:[Oo]ption '|unrecognized arguments: --)([\w.-]+)", message)
    if requirement := re.search(r"given class_path '([\w.]+)':\s*(Requirement '.*)", message):
        return f"{requirement[1].rpartition('.')[2]}: {requirement[2]}"
    if re.search("Subclass types expect|is abstract", message) or (refused and refused[1] == "class_path"):
        example = ", as in data/pets.yaml" if section == "data" else ""
        return f"{section}: name its class (class_path), and put its arguments under init_args{example}"
    if refused and classes:
        return str(unknown_argument(section, classes[-1], refused[1]))
    if refused:
        near = get_close_matches(f"--{refused[1]}", [name for name in known if f"{name}." not in f"--{refused[1]}"], 1)
        hint = "; see bigain predict --trainer.help" if refused[1].startswith("trainer.") else ""
        return f"there is no option {refused[1]}{guess(near)}{hint}"
    if "are required: predict." in message:
        return "no --config, or one without " + " and ".join(re.findall(r"predict\.(\w+)", message))
    lines = (_LOCATION.sub("", line).strip().lstrip("-").strip().rstrip(".") for line in message.splitlines())
    summary = "; ".join(dict.fromkeys(line for line in lines if not _NOISE.search(line)))
    for pattern, text in _REPLACEMENTS:
        summary = re.sub(pattern, text, summary)
    if summary.startswith("expected") and (value := re.search(r"(?:Got|Given) value: (?!NestedArg)(.*)", message)):
        # A namespace is a class that was refused; what other types expect does not matter.
        is_class = value[1].startswith("Namespace(")
        summary = summary.partition("; ")[2] or summary if is_class else f"{summary}, not {value[1]}"
    kind, missing = section.rpartition(".")[2], re.search(r"there is no class (\w+)", summary)
    if missing and kind in _PACKAGES:
        shipped = shipped_classes(kind)
        if missing[1] in shipped:
            summary = f"{missing[1]} does not fit here"
        else:
            similar = guess(get_close_matches(missing[1], shipped, 1))
            summary += f"{similar}; known: {', '.join(shipped)}, or the import path of a class"
    elif "no class" in summary and section.endswith(".score"):
        summary += (
            "; expected the import path of a function, such as bigain.tokens.scores.laplacian_l1 (bigain list scores)"
        )
    elif classes:
        summary += _help_hint(".".join(keys[: len(classes)]), classes[-1])
    return f"{section}: {summary}" if section else summary


def guess(near: Sequence[str]) -> str:
    """Return a proposal of near names, empty without any."""
    return f"; did you mean {' or '.join(near)}" if near else ""


def unknown_argument(section: str, class_path: str, name: str) -> InputError:
    """Return the error for an argument that a class, in a section such as `model.backbone`, does not have."""
    from bigain.compressors.settings import constructor_parameters

    kind = class_path.rpartition(".")[2]
    parameters = constructor_parameters(resolve_name(class_path))
    near = [] if (first := name.partition(".")[0]) in parameters else get_close_matches(first, parameters, 1)
    return InputError(f"{kind} has no argument {name!r}{guess(near)}{_help_hint(section, class_path)}")


def _help_hint(section: str, class_path: str) -> str:
    """Return where the arguments of a class are listed; empty for metrics, of which `bigain predict` has no section."""
    if section == "metric":
        return ""
    name = class_path.rpartition(".")[2] if class_path.startswith("bigain.") else class_path
    return f"; see bigain predict --{section}.help {name}"


def shipped_classes(section: str) -> dict[str, str]:
    """Return the concrete classes for a section of a configuration, such as `data`, with one line about each.

    They are found in the source: importing them takes seconds.
    """
    classes: dict[str, ast.ClassDef] = {}
    for node in _source(f"bigain.{_PACKAGES[section]}.__init__"):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("bigain."):
            names = {alias.name for alias in node.names}
            classes |= {k.name: k for k in _source(str(node.module)) if isinstance(k, ast.ClassDef) and k.name in names}
    bases = {name: {*map(ast.unparse, kind.bases)} for name, kind in classes.items()}
    concrete = [name for name in sorted(bases) if bases[name] and not {"ABC", "TypedDict"} & bases[name]]
    # Metrics and extractors lie in one package.
    extractors = [name for name in concrete if any("Extractor" in base for base in bases[name])]
    return {name: _first_line(classes[name]) for name in concrete if (name in extractors) == (section == "extractor")}


def shipped_functions(module: str) -> dict[str, str]:
    """Return the public functions of a module, found in its source, with one line about each."""
    functions = [node for node in _source(module) if isinstance(node, ast.FunctionDef) and node.name[0] != "_"]
    return {node.name: _first_line(node) for node in sorted(functions, key=lambda node: node.name)}


def _source(module: str) -> list[ast.stmt]:
    file = Path(bigain.__file__).parents[1] / f"{module.replace('.', '/')}.py"
    return ast.parse(file.read_text(encoding="utf-8")).body


def _first_line(node: ast.ClassDef | ast.FunctionDef) -> str:
    return (ast.get_docstring(node) or "").partition("\n")[0]
