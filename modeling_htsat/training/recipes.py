"""One run from one file: dataclass defaults, then the recipe (flat YAML), then the flags of the command line.

A recipe is a list of lines `key: value`, without headings; `#` comments give it structure. Its keys are the names of
the flags, and its values are read as if they stood behind these flags, letter by letter: `1e-4` is a number where a
number is wanted, `no` is text where text is wanted. Beyond that:
    null, ~ or nothing      the default, as if the key were not there
    none                    None, for text that may be None and is something else by default; as a flag, too
    [a, b]                  the several values of a flag that takes several
    {min_lr_rate: 0.01}     for the few arguments that are dictionaries, such as lr_scheduler_kwargs
Paths are relative to the working directory, as on the command line; variables are not expanded.
"""

import argparse
import difflib
import json
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, make_dataclass
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, NoReturn, Union, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser
from transformers.trainer_pt_utils import AcceleratorConfig

from ..tables import in_one_line, write_whole

logger = logging.getLogger(__name__)

USAGE = "%(prog)s [--recipe FILE] [--flag value ...]"
ORDER = "Flags override the recipe, and the recipe overrides the defaults."
# Fields of TrainingArguments whose types no flag can express, and that HTS-AT has no use for.
WITHOUT_FLAG = frozenset({"liger_kernel_config", "optim_target_modules", "parallelism_config"})
# HfArgumentParser takes one member of a union, here the wrong one: one service for results, a yes or no for counting.
FLAG_TYPES: Mapping[str, Any] = {"report_to": list[str], "include_num_input_tokens_seen": str}
NEVER_WRITTEN = frozenset({"local_rank"})  # what a launcher sets for each process
# Not written where transformers knows the new name, which is from 5.23 on: there, the old name mirrors it.
RENAMED: Mapping[str, str] = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
# Fields of TrainingArguments that are not their own default once an instance is made: the default, what becomes of it.
SETTLED: Mapping[str, tuple[Any, Any]] = {
    "output_dir": (None, "trainer_output"),
    "activation_checkpointing": (None, False),
    "disable_tqdm": (None, False),
    "report_to": ("none", []),
    "debug": ("", []),
}
ONE_LINE: Mapping[str, Any] = {"default_flow_style": True, "allow_unicode": True, "width": sys.maxsize}


class RecipeError(ValueError):
    """What is wrong with a recipe or with the flags, in one sentence, however long the values are that it shows."""

    def __init__(self, sentence: object) -> None:
        super().__init__(in_one_line(sentence, 1000))


class Entry(NamedTuple):
    """A line of a recipe: text, a list of texts, a dictionary, or None for the default."""

    value: Any
    line: int


@dataclass(frozen=True)
class Argument:
    """What flags and recipes need to know of one field of a dataclass."""

    field: Field
    hint: Any
    section: str
    is_library: bool  # comes from transformers, and not from us

    @property
    def is_required(self) -> bool:
        return self.field.default is MISSING and self.field.default_factory is MISSING

    @property
    def is_list(self) -> bool:
        return list in _kinds(self.hint)

    @property
    def reads_none(self) -> bool:
        """Whether `none` is None: for text that has another default, there is no other way to say so."""
        is_optional_text = {str, type(None)} == _kinds(self.hint)
        return is_optional_text and not self.is_required and _default_of(self.field) is not None

    @property
    def is_dictionary(self) -> bool:
        return dict in _kinds(self.hint)


# ── the way in ────────────────────────────────────────────────────────────────────────────────────────────────────────


def parse_recipe(
    dataclasses: Sequence[type], arguments: Sequence[str] | None = None, description: str | None = None
) -> tuple[Any, ...]:
    """One instance of each dataclass, from `[--recipe FILE] [--flag value ...]`.

    What cannot be understood ends the program with status 2 and one sentence, as is usual for a command.

    Args:
        dataclasses: Their fields are the flags and the keys of recipes; `metadata={"help": ...}` explains them.
        arguments: The command line without the program's name (default: that of this process).
        description: What the program does, for `--help`.
    """
    known = _arguments_of(dataclasses)
    parser = _make_parser(known, description)
    try:
        values = _parse(parser, known, sys.argv[1:] if arguments is None else list(arguments))
        return tuple(_make_instance(dataclass, values) for dataclass in dataclasses)
    except RecipeError as error:
        return _refuse(parser, error)


def recipe_values(path: str | os.PathLike[str], dataclasses: Sequence[type] | None = None) -> dict[str, Any]:
    """What a recipe says, without keys that it leaves to their defaults; raises RecipeError.

    Args:
        dataclasses: With them, every key must be a field of one, and values have the fields' types. Without, the file
            must be a recipe, and values are text.
    """
    entries = _read_entries(path)
    if dataclasses is None:
        return {key: entry.value for key, entry in entries.items() if entry.value is not None}
    known = _arguments_of(dataclasses)
    return _converted(path, entries, _make_parser(known), known)


def _parse(parser: HfArgumentParser, known: Mapping[str, Argument], arguments: list[str]) -> dict[str, Any]:
    recipes = _parse_flags(parser, known, arguments, {}).get("recipe", [])
    if len(recipes) > 1:
        raise RecipeError(f"--recipe is given {len(recipes)} times; a run has one recipe, and flags for the rest.")
    recipe = {} if not recipes else _converted(recipes[0], _read_entries(recipes[0]), parser, known)
    values = _parse_flags(parser, known, arguments, recipe)
    missing = [name for name, argument in known.items() if argument.is_required and name not in values]
    if missing:
        names = ", ".join(f"--{name}" for name in missing)
        raise RecipeError(f"Still needed, as flags or in the recipe: {names}.")
    return values


def _parse_flags(
    parser: HfArgumentParser, known: Mapping[str, Argument], arguments: list[str], recipe: Mapping[str, Any]
) -> dict[str, Any]:
    try:
        values, rest = parser.parse_known_args(arguments, argparse.Namespace(**recipe))
    except argparse.ArgumentError as error:
        raise RecipeError(f"{_first_name(error)}: {error.message}") from error
    if rest:
        raise RecipeError(_not_understood(rest, known))
    found = vars(values)
    return found | {name: None for name in known if known[name].reads_none and found[name] == "none"}


def _first_name(error: argparse.ArgumentError) -> str:
    return (error.argument_name or "").split("/")[0]  # of --learning_rate/--learning-rate


def _not_understood(rest: Sequence[str], known: Mapping[str, Argument]) -> str:
    flag = next((text for text in rest if text.startswith("--")), None)
    if flag is not None:
        name = flag[2:].split("=")[0]
        return f"unknown flag '--{name}'; {_nearest(name.replace('-', '_'), [*known, 'recipe'], '--')}"
    if Path(rest[0]).suffix in (".yaml", ".yml"):
        return f"{rest[0]!r} belongs to no flag; for a recipe, write `--recipe {rest[0]}`."
    return f"{rest[0]!r} belongs to no flag; every value needs one, and `--help` lists them."


def _nearest(name: str, names: Sequence[str], prefix: str = "") -> str:
    found = difflib.get_close_matches(name, names, n=1)
    return f"did you mean '{prefix}{found[0]}'?" if found else "`--help` lists those that there are."


def _make_instance(dataclass: type, values: Mapping[str, Any]) -> Any:
    names = [each.name for each in fields(dataclass) if each.init and each.name in values]
    try:
        return dataclass(**{name: values[name] for name in names})
    except (ValueError, TypeError, ImportError, OSError) as error:  # checks of the dataclass itself
        logger.debug("%s refuses its values.", dataclass.__name__, exc_info=True)
        raise RecipeError(" ".join(str(error).split())) from error


def _refuse(parser: HfArgumentParser, error: RecipeError) -> NoReturn:
    parser.exit(2, f"{parser.prog}: {error}\n")
    raise AssertionError  # `exit` does not return, but is not annotated so everywhere


# ── the flags ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _arguments_of(dataclasses: Sequence[type]) -> dict[str, Argument]:
    """Every field that can be given, by name: our own first, then those that come from transformers."""
    found = [argument for dataclass in dataclasses for argument in _arguments_of_one(dataclass)]
    (name, times), *_ = Counter(argument.field.name for argument in found).most_common(1)
    if times > 1:
        raise ValueError(f"{times} of the dataclasses have a field {name!r}; one flag can set only one of them.")
    return {argument.field.name: argument for argument in sorted(found, key=lambda argument: argument.is_library)}


def _arguments_of_one(dataclass: type) -> Iterator[Argument]:
    hints = get_type_hints(dataclass)
    for each in fields(dataclass):
        if not each.init or each.name in WITHOUT_FLAG:
            continue
        hint = FLAG_TYPES.get(each.name, hints[each.name])
        owner = next(parent for parent in dataclass.__mro__ if each.name in vars(parent).get("__annotations__", {}))
        yield Argument(each, hint, section_title(dataclass), owner.__module__.split(".")[0] == "transformers")


def section_title(dataclass: type) -> str:
    """What `--help` and written recipes call the fields of a dataclass: "data" for `DataArguments`."""
    name = dataclass.__name__.removeprefix("HTSAT").removesuffix("Arguments") or dataclass.__name__
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    return getattr(dataclass, "_argument_group_name", words)


def _make_parser(known: Mapping[str, Argument], description: str | None = None) -> HfArgumentParser:
    sections: dict[str, list[Argument]] = {}
    for argument in known.values():
        title = f"{argument.section}: what transformers brings along" if argument.is_library else argument.section
        sections.setdefault(title, []).append(argument)
    views = [_view(title, members) for title, members in sections.items()]
    settings: dict[str, Any] = {"allow_abbrev": False, "exit_on_error": False}
    parser = HfArgumentParser(views, usage=USAGE, description=description, epilog=ORDER, **settings)
    explanation = "a YAML file of lines `flag: value`, without the dashes"
    parser.add_argument("--recipe", action="append", metavar="FILE", default=argparse.SUPPRESS, help=explanation)
    return parser


def _view(title: str, members: Sequence[Argument]) -> type:
    """A dataclass of the same fields under a heading; required ones are looked for after the recipe was read."""
    specification = [(member.field.name, member.hint, _view_field(member)) for member in members]
    return make_dataclass("View", specification, namespace={"_argument_group_name": title})


def _view_field(argument: Argument) -> Any:
    metadata = dict(argument.field.metadata)
    kind = next((kind for kind in (int, float, str) if kind in _kinds(argument.hint)), None)
    if kind is not None and "choices" not in metadata:
        metadata.setdefault("metavar", {int: "N", float: "X", str: "TEXT"}[kind])
    if argument.is_required:
        metadata["help"] = f"{metadata.get('help', '')} (required)".strip()
        default = argparse.SUPPRESS
    else:
        default = _default_of(argument.field)
    if argument.is_list:
        words = default.split() if default in ("none", "") else default  # report_to, debug
        return field(default_factory=lambda: words, metadata=metadata)
    return field(default=default, metadata=metadata)


def _kinds(hint: Any) -> set[Any]:
    """The types of a union, and those within: `list[str] | None` has list, str and NoneType."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal or not inner:
        return {origin or hint}
    outer = set() if origin in (Union, UnionType) else {origin}
    return outer.union(*map(_kinds, inner))


# ── the file ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _read_entries(path: str | os.PathLike[str]) -> dict[str, Entry]:
    """The lines of a recipe, by key. Read as nodes: YAML's own idea of types (`no` is False) stays out of it."""
    try:
        root = yaml.compose(Path(path).read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
        return _entries_of(path, root)
    except OSError as error:
        raise RecipeError(f"{path}: the recipe cannot be read: {error.strerror or error}.") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path}: not YAML: {' '.join(str(error).split())}.") from error
    except RecursionError as error:
        raise RecipeError(f"{path}: not YAML: brackets in brackets without end.") from error


def _entries_of(path: str | os.PathLike[str], root: yaml.Node | None) -> dict[str, Entry]:
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise RecipeError(f"{path}: a recipe is a list of lines `key: value`; this file is not.")
    if _has_references(root):
        raise RecipeError(f"{path}: a recipe has no references such as `*name`; write the value out.")
    return {key: Entry(_entry_value(path, key, node), line) for key, line, node in _pairs(path, root)}


def _has_references(root: yaml.Node) -> bool:
    """Whether a value stands in several places: by twenty references to references, in a million of them."""
    seen, waiting = set(), [root]
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            return True
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            waiting += [inner for pair in node.value for inner in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value
    return False


def _pairs(path: str | os.PathLike[str], mapping: yaml.MappingNode) -> Iterator[tuple[str, int, yaml.Node]]:
    """Keys, their lines and their values; YAML itself would silently take the last of two equal keys."""
    lines: dict[str, int] = {}
    for key, node in mapping.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise RecipeError(f"{path}: the key in line {line} is not a word.")
        if key.value in lines:
            raise RecipeError(
                f"{path}: '{key.value}' stands in line {lines[key.value]} and in line {line}; remove one."
            )
        lines[key.value] = line
        yield key.value, line, node


def _entry_value(path: str | os.PathLike[str], key: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return _json_value(path, node)
    if isinstance(node, yaml.SequenceNode):
        if not all(isinstance(item, yaml.ScalarNode) and not _is_null(item) for item in node.value):
            raise RecipeError(f"{path}: the list '{key}' may hold plain values only, and no empty ones.")
        return [item.value for item in node.value]
    return None if _is_null(node) else node.value


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and not node.style and node.tag == "tag:yaml.org,2002:null"


def _json_value(path: str | os.PathLike[str], node: yaml.Node) -> Any:
    """In dictionaries no field says which types are wanted, and values are what they are in JSON, or else text."""
    if isinstance(node, yaml.MappingNode):
        return {key: _json_value(path, value) for key, _, value in _pairs(path, node)}
    if isinstance(node, yaml.SequenceNode):
        return [_json_value(path, item) for item in node.value]
    if _is_null(node):
        return None
    is_quoted = isinstance(node, yaml.ScalarNode) and node.style
    try:
        return node.value if is_quoted else json.loads(node.value)
    except ValueError:
        return node.value


def _converted(
    path: str | os.PathLike[str],
    entries: Mapping[str, Entry],
    parser: HfArgumentParser,
    known: Mapping[str, Argument],
) -> dict[str, Any]:
    """The values of a recipe as the flags make them."""
    values = {}
    for key, entry in entries.items():
        if key not in known:
            raise RecipeError(f"{path}: unknown key '{key}' in line {entry.line}; {_remedy(key, entry, known)}")
        if entry.value is None:
            continue
        try:
            values[key] = _converted_one(known[key], entry.value, parser)
        except (RecipeError, argparse.ArgumentError) as error:
            problem = error.message if isinstance(error, argparse.ArgumentError) else error
            raise RecipeError(f"{path}: {key} in line {entry.line}: {problem}") from error
    return values


def _remedy(key: str, entry: Entry, known: Mapping[str, Argument]) -> str:
    if isinstance(entry.value, dict):
        return "recipes have no headings: write the keys below it without indentation, and a comment above them."
    return _nearest(key, list(known))


def _converted_one(argument: Argument, value: Any, parser: HfArgumentParser) -> Any:
    if value == []:
        if not argument.is_list:
            raise RecipeError("takes a value, not a list.")
        return []  # which no flag can say
    namespace, rest = parser.parse_known_args(_as_flags(argument, value))
    if rest:
        raise RecipeError(f"{rest[0]!r} cannot be read.")
    found = getattr(namespace, argument.field.name)
    return None if argument.reads_none and found == "none" else found


def _as_flags(argument: Argument, value: Any) -> list[str]:
    flag = f"--{argument.field.name}"
    if isinstance(value, dict):
        if not argument.is_dictionary:
            raise RecipeError("takes a value, not a dictionary.")
        return [f"{flag}={json.dumps(value)}"]
    if isinstance(value, list):
        if not argument.is_list:
            raise RecipeError("takes one value, not a list.")
        return [flag, *value]
    if argument.field.metadata.get("const") is True and value.lower() == "true":
        return [flag]  # `fsdp: true` is the bare flag; `--fsdp=true` would be a name
    return [f"{flag}={value}"]


# ── the way back ──────────────────────────────────────────────────────────────────────────────────────────────────────


def write_recipe(path: str | os.PathLike[str], instances: Sequence[Any]) -> None:
    """What was really run, as a recipe of all values that differ from their defaults; `parse_recipe` reads it back.

    Secrets are left out. A value that no recipe can say (None where the default is something) stands in a comment.
    """
    known = _arguments_of([type(instance) for instance in instances])
    lines = [f"# Written by modeling_htsat: {', '.join(section_title(type(each)) for each in instances)}."]
    for instance in instances:
        written = [_line(known[name], value) for name, value in _changed_values(instance, known)]
        if written:
            lines += ["", f"# {section_title(type(instance))}", *written]
    write_whole(Path(path), lambda file: file.write("\n".join(lines) + "\n"))


def _changed_values(instance: Any, known: Mapping[str, Argument]) -> Iterator[tuple[str, Any]]:
    for each in fields(instance):
        is_secret = each.name.endswith("_token")
        is_mirror = RENAMED.get(each.name) in known
        if each.name not in known or each.name in NEVER_WRITTEN or is_secret or is_mirror:
            continue
        value, default = _plain(getattr(instance, each.name)), _plain(_default_of(each))
        before, after = SETTLED.get(each.name, (MISSING, MISSING))
        is_settled = default == before and value == after
        if not (is_settled or _same(value, default)):
            yield each.name, value


def _default_of(each: Field) -> Any:
    return each.default if each.default_factory is MISSING else each.default_factory()


def _plain(value: Any) -> Any:
    """Enumerations as their values, paths as text, accelerate's settings as what they change of its defaults."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, AcceleratorConfig):
        usual = AcceleratorConfig().to_dict()
        return {key: item for key, item in value.to_dict().items() if item != usual[key]} or None
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _same(value: Any, default: Any) -> bool:
    return isinstance(value, bool) == isinstance(default, bool) and value == default  # True is not 1, but 2.0 is 2


def _line(argument: Argument, value: Any) -> str:
    if value is None and argument.reads_none:
        value = "none"
    name, is_fitting = argument.field.name, isinstance(value, (bool, int, float, str))
    if isinstance(value, (list, dict)):
        is_fitting = argument.is_list if isinstance(value, list) else argument.is_dictionary
    return f"{name}: {_text(value)}" if is_fitting else f"# No recipe can say this: {name} is {value!r}."


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return _dictionary_text(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(_text, value)) + "]"
    if isinstance(value, str):
        return _quoted(value) if _must_be_quoted(value) else value
    return json.dumps(value) if isinstance(value, bool) else repr(value)


def _dictionary_text(value: Any) -> str:
    """JSON in one line, but for what YAML does not print."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_quoted(key)}: {_dictionary_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_dictionary_text, value)) + "]"
    return _quoted(value) if isinstance(value, str) else json.dumps(value)


def _must_be_quoted(text: str) -> bool:
    return yaml.safe_dump([text], **ONE_LINE) != f"[{text}]\n"


def _quoted(text: str) -> str:
    return yaml.safe_dump([text], default_style='"', **ONE_LINE)[1:-2]


__all__ = ["RecipeError", "parse_recipe", "recipe_values", "section_title", "write_recipe"]
