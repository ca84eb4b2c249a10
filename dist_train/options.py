"""`[RECIPE] [--section.field value ...]` to a Config, and where each value came from.

argparse reads the flags; they are made from the dataclasses in config.py, whose docstrings are the
help. (Libraries that build a whole parser from dataclasses print their own boxes on an error; here
an error is one line, and flags that were not given leave no trace, which tells where a value came
from.)
"""

import argparse
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from dist_train.checks import as_typed
from dist_train.config import Config, flatten, from_values
from dist_train.errors import UserError
from dist_train.recipes import RECIPES

WORDS = {"true": True, "on": True, "yes": True, "1": True} | {
    "false": False, "off": False, "no": False, "0": False,
}  # fmt: skip
NOTHING = ("auto", "none")


@dataclass(frozen=True, slots=True)
class Option:
    """A field of the config as a flag."""

    path: str
    """Dotted name, for example train.epochs."""
    type: Any
    help: str


class Parser(argparse.ArgumentParser):
    """argparse, with errors as exceptions."""

    def error(self, message: str) -> NoReturn:
        """Raises UserError instead of printing the usage and leaving."""
        raise UserError(message)


def parse(arguments: Sequence[str], prog: str, own: str = "") -> tuple[Config, dict[str, str]]:
    """The config that a command line asks for, and the source of each field that is no default.

    Args:
        own: flags of the command itself, read before, for --help to name.

    Raises:
        UserError: an unknown recipe or flag, or a value that does not fit.
    """
    name, given = as_given(arguments, prog, own)
    options = {option.path: option for option in all_options()}
    if name not in RECIPES:
        raise UserError(f"unknown recipe {name}: {nearest(name, list(RECIPES))}")
    recipe = replace(RECIPES[name](), recipe=name)
    default = dict(flatten(Config().as_dict()))
    sources = {
        path: f"recipe {name}"
        for path, value in flatten(recipe.as_dict())
        if value != default[path]
    }
    values = {path: convert(text, options[path]) for path, text in given.items()}
    return override(recipe, values), sources | dict.fromkeys(values, "command line")


def as_given(arguments: Sequence[str], prog: str, own: str = "") -> tuple[str, dict[str, str]]:
    """The recipe's name and the text of each flag; neither is known to make sense yet.

    Raises:
        UserError: an unknown flag.
    """
    parser = Parser(
        prog=prog,
        usage=f"%(prog)s [RECIPE] [--section.field value ...] {own}".rstrip(),
        description="Recipes: " + " ".join(RECIPES),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", nargs="?", default="quickstart", metavar="RECIPE")
    paths = []
    for option in all_options():
        paths.append(option.path)
        text = option.help.replace("%", "%%")
        parser.add_argument(f"--{option.path}", metavar="X", nargs="?", const="true", help=text)
    namespace, unknown = parser.parse_known_args(arguments)
    if unknown:
        known = [f"--{path}" for path in paths]
        raise UserError(
            f"unknown argument {unknown[0]}: {nearest(unknown[0].split('=')[0], known)}"
        )
    given = vars(namespace)
    return given.pop("recipe"), given


@cache
def all_options() -> tuple[Option, ...]:
    """Every field of the config, sections resolved."""
    return tuple(_options(Config, ""))


def _options(section: Any, prefix: str) -> Iterator[Option]:
    from docstring_parser import parse_from_object

    help_of = {p.arg_name: p.description or "" for p in parse_from_object(section).params}
    types = get_type_hints(section)
    for field in fields(section):
        if is_dataclass(types[field.name]):
            yield from _options(types[field.name], f"{prefix}{field.name}.")
        elif field.name != "recipe":
            yield Option(prefix + field.name, types[field.name], help_of.get(field.name, ""))


def override(config: Config, values: dict[str, Any]) -> Config:
    """The config with some fields, given by dotted names, changed all at once."""
    nested = config.as_dict()
    for path, value in values.items():
        section, _, name = path.rpartition(".")
        (nested[section] if section else nested)[name] = value
    changed: Config = from_values(Config, nested)
    return changed


def convert(text: str, option: Option) -> Any:
    """A value as typed in, as the field's type.

    Raises:
        UserError: naming the flag, the value and what was expected.
    """
    type_, optional = option.type, False
    if get_origin(type_) is tuple and text.lower() in NOTHING:
        return ()
    if isinstance(type_, UnionType):
        type_ = next(t for t in get_args(type_) if t is not NoneType)
        if text.lower() in NOTHING:
            return None
        optional = True
    if get_origin(type_) is Literal:
        choices = [str(choice) for choice in get_args(type_)]
        if text.lower() in WORDS and {"auto", "off"} <= set(choices):  # a switch with more to it
            return "auto" if WORDS[text.lower()] else "off"
        if text in choices:
            return text
        raise UserError(f"--{option.path} {text}: {nearest(text, choices)}")
    try:
        if type_ is bool:
            return WORDS[text.lower()]
        if get_origin(type_) is tuple:
            return tuple(get_args(type_)[0](part) for part in text.split(",") if part)
        return type_(text)
    except (ValueError, KeyError) as error:
        expected = {int: "a whole number", float: "a number", bool: "true or false"}.get(
            type_, "numbers with commas between"
        )
        if optional:
            expected += " or auto"
        raise UserError(f"--{option.path} {text}: expected {expected}") from error


def nearest(name: str, known: Sequence[str]) -> str:
    """What was probably meant, or everything that could be."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]}?"
    if len(known) > 20:
        return "see --help"
    return f"expected one of {', '.join(known)}"


def show(config: Config, sources: dict[str, str]) -> str:
    """The whole config, a line a field, with the source of each value."""
    lines = []
    for path, value in flatten(config.as_dict()):
        lines.append(f"{path:<30} {as_typed(value):<14} {sources.get(path, 'default')}")
    return "\n".join(lines)
