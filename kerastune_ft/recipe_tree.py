"""Reads and writes the YAML of recipes: a tree in which every value knows where it was written.

Built from parse events, so that no tag of an untrusted file can construct an object, and scalars
are read by the core schema of YAML 1.2 in files and on the command line alike. Knows no recipe
key; `recipe.py` does.

    tree = parse("a: {b: 1e-3}", "r.yaml", problems)
    tree = override(tree, "a.b=2", default, wants_text, problems)
    plain(tree), place(tree, ("a", "b")).text      # {'a': {'b': 2}}, 'command line'
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from kerastune_ft.errors import RecipeError

KeyPath = tuple[str | int, ...]


class Place(NamedTuple):
    """Where a value was written: `text` is shown, `line` sorts."""

    line: int
    text: str


class Problem(NamedTuple):
    """One mistake, before it becomes a line of a `RecipeError`."""

    place: Place
    key: str
    message: str

    def __str__(self) -> str:
        end = "" if self.message.endswith("?") else "."
        return ": ".join(part for part in (self.place.text, self.key, self.message) if part) + end


@dataclass(frozen=True)
class Node:
    """Holds a scalar, a `list[Node]` or a `dict[str, Node]`, and where it was written."""

    place: Place
    value: Any
    depth: int = 0


COMMAND_LINE = Place(2**31, "command line")
_DEEPEST = 50
_INTEGER = re.compile(r"[-+]?[0-9]{1,40}|0o[0-7]{1,40}|0x[0-9a-fA-F]{1,40}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_PLAIN = re.compile(r"[A-Za-z_./]([A-Za-z0-9_./ -]*[A-Za-z0-9_./-])?")
_WORDS: dict[str, object] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
}


def scalar(text: str) -> object:
    """Returns what an unquoted scalar means in YAML 1.2: no dates, no `yes`, `1e-3` a number."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text, 0 if text[:2] in ("0o", "0x") else 10)
    return float(text) if _FLOAT.fullmatch(text) else text


def parse(text: str, source: str, problems: list[Problem]) -> Node | None:
    """Returns the tree of a YAML text, or None if it holds no document.

    Args:
        text: One document.
        source: Named in places.
        problems: Gets what is wrong but does not stand in the way: duplicate keys, tags.

    Raises:
        RecipeError: If it is not YAML.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        builder = _Builder(YAML(typ="safe", pure=True).parse(text), source, problems)
        return builder.document()
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}" if mark else source
        reason = error.problem or error.context or "cannot be parsed"
        if "'\\t'" in reason:
            reason = "indented with a tab; YAML wants spaces"
        elif "mapping values are not allowed" in reason:
            reason += "; check the indentation, and quote a text that contains ': '"
    except YAMLError as error:
        place, reason = source, str(error).splitlines()[0]
    raise RecipeError([f"{place}: not valid YAML: {reason}."])


class _Builder:
    def __init__(self, events: Iterator[Any], source: str, problems: list[Problem]) -> None:
        self.events, self.source, self.problems = events, source, problems
        self.anchors: dict[str, Node] = {}

    def document(self) -> Node | None:
        tree = None
        for event in self.events:
            kind = type(event).__name__
            if kind == "DocumentStartEvent":
                if tree is not None:
                    self.problem(event, "", "a second document starts here; a recipe is one")
                    return tree
                tree = self.node(next(self.events))
        return tree

    def place(self, event: Any) -> Place:
        line = event.start_mark.line + 1
        return Place(line, f"{self.source}:{line}")

    def problem(self, event: Any, key: str, message: str) -> None:
        self.problems.append(Problem(self.place(event), key, message))

    def node(self, event: Any, level: int = 0) -> Node:
        place = self.place(event)
        if level > _DEEPEST:
            raise _too_deep(place)
        kind = type(event).__name__
        if kind == "AliasEvent":
            # An anchor is known once its value is complete: a value cannot hold itself.
            if event.anchor not in self.anchors:
                self.problem(event, f"*{event.anchor}", "alias of an anchor that is not above it")
            return replace(self.anchors.get(event.anchor, Node(place, None)), place=place)
        tag = str(event.tag or "").removeprefix("tag:yaml.org,2002:")
        allowed = {
            "ScalarEvent": ("", "!", "str", "int", "float", "bool", "null"),
            "SequenceStartEvent": ("", "!", "seq"),
            "MappingStartEvent": ("", "!", "map"),
        }
        if tag not in allowed[kind]:
            self.problem(event, f"tag '{tag}'", "not allowed in a recipe; write a plain value")
        if kind == "ScalarEvent":
            is_text = event.style is not None or tag in ("!", "str")
            node = Node(place, event.value if is_text else scalar(event.value))
        elif kind == "SequenceStartEvent":
            items = []
            while type(item := next(self.events)).__name__ != "SequenceEndEvent":
                items.append(self.node(item, level + 1))
            node = branch(place, items)
        else:
            node = self.mapping(place, level)
        if event.anchor:
            self.anchors[event.anchor] = node
        return node

    def mapping(self, place: Place, level: int) -> Node:
        entries: dict[str, Node] = {}
        merged: list[Node] = []
        while type(event := next(self.events)).__name__ != "MappingEndEvent":
            # Keys are text whatever they look like: class names such as 007 or null stay whole.
            is_scalar = type(event).__name__ == "ScalarEvent"
            key = event.value if is_scalar else str(self.node(event, level + 1).value)
            value = self.node(next(self.events), level + 1)
            if key == "<<" and is_scalar and event.style is None:
                merged += value.value if isinstance(value.value, list) else [value]
            elif not is_scalar:
                self.problem(event, "", "a key is neither a list, a mapping nor an alias")
            elif key in entries:
                self.problem(event, key, f"duplicate key; also at {entries[key].place.text}")
            else:
                entries[key] = replace(value, place=self.place(event))
        for node in merged:
            if not isinstance(node.value, dict):
                self.problems.append(Problem(node.place, "<<", "expected a mapping to merge"))
                continue
            entries = {**node.value, **entries}
        return branch(place, entries)


def _too_deep(place: Place) -> RecipeError:
    return RecipeError([f"{place.text}: nested more than {_DEEPEST} levels deep."])


def branch(place: Place, value: dict[str, Node] | list[Node]) -> Node:
    """Returns a node of nodes; refuses depths that aliases of aliases can reach."""
    nodes = value.values() if isinstance(value, dict) else value
    depth = 1 + max((node.depth for node in nodes), default=0)
    if depth > _DEEPEST:
        raise _too_deep(place)
    return Node(place, value, depth)


def tree_of(value: object, place: Place, problems: list[Problem], level: int = 0) -> Node:
    """Returns the tree of Python mappings, lists, tuples and scalars, all at one place."""
    if level > _DEEPEST:
        raise _too_deep(place)
    if isinstance(value, Mapping):
        entries: dict[str, Node] = {}
        for key, item in value.items():
            if isinstance(key, bool) or not isinstance(key, str | int):
                problems.append(Problem(place, repr(key), "a key is text"))
            else:
                entries[str(key)] = tree_of(item, place, problems, level + 1)
        return branch(place, entries)
    if isinstance(value, list | tuple):
        return branch(place, [tree_of(item, place, problems, level + 1) for item in value])
    return Node(place, os.fspath(value) if isinstance(value, os.PathLike) else value)


def plain(node: Node, done: dict[int, Any] | None = None) -> Any:
    """Returns dicts, tuples and scalars; shared where the tree is, so that aliases stay cheap."""
    done = {} if done is None else done
    if not isinstance(node.value, dict | list):
        return node.value
    if id(node.value) not in done:
        done[id(node.value)] = (
            {key: plain(item, done) for key, item in node.value.items()}
            if isinstance(node.value, dict)
            else tuple(plain(item, done) for item in node.value)
        )
    return done[id(node.value)]


def descend(tree: Node, path: KeyPath) -> tuple[Node, int]:
    """Returns the deepest node written along a path, and how many steps lead to it."""
    node = tree
    for steps, part in enumerate(path):
        if isinstance(node.value, list):
            inner = node.value[part] if isinstance(part, int) and part < len(node.value) else None
        else:
            inner = node.value.get(part) if isinstance(node.value, dict) else None
        if inner is None:
            return node, steps
        node = inner
    return node, len(path)


def override(
    tree: Node,
    text: str,
    default: Callable[[KeyPath, object], Any],
    wants_text: Callable[[KeyPath], bool],
    problems: list[Problem],
) -> Node:
    """Returns the tree with one `key=value` of the command line put in.

    Args:
        tree: Stays as it is.
        text: `a.b.0.c=value`; the value a YAML scalar or flow collection.
        default: Called with a path and the scalar there, None where nothing is written; returns
            the mapping or list that it stands for, or None.
        wants_text: Tells whether a key takes text alone; then `2024` is a text too.
        problems: Gets what is wrong with `text`.
    """
    key, equals, written = text.partition("=")
    path = tuple(key.strip().split("."))
    written = written.strip()
    if not equals or not all(path):
        expected = "expected key=value with a dotted key, such as train.seed=3"
        problems.append(Problem(COMMAND_LINE, key.strip(), f"{expected}, got '{text}'"))
        return tree
    if not written:
        hint = f"no value after '='; '{key}=null' sets null, {key}=\"''\" empty text"
        problems.append(Problem(COMMAND_LINE, key, hint))
        return tree
    if written[0] in "[{\"'":
        found: list[Problem] = []
        try:
            node = parse(written, "command line", found)
        except RecipeError as error:
            reason = str(error).split("not valid YAML: ")[-1].rstrip(".")
            if wants_text(path):
                reason += f"; text that begins so is quoted: \"{key}='{written}'\""
            problems.append(Problem(COMMAND_LINE, key, f"{written} is not valid YAML: {reason}"))
            return tree
        for problem in found:
            message = problem.message.partition("; also at")[0]
            problems.append(Problem(COMMAND_LINE, f"{key}: {problem.key}", message))
        value = tree_of(plain(node) if node else None, COMMAND_LINE, problems)
    else:
        value = Node(COMMAND_LINE, scalar(written))
        if isinstance(value.value, int | float) and wants_text(path):
            value = Node(COMMAND_LINE, written)
    try:
        return _put(tree, path, 0, value, default)
    except _NoSuchPlaceError as error:
        problems.append(Problem(COMMAND_LINE, key, str(error)))
        return tree


class _NoSuchPlaceError(Exception):
    pass


def _put(
    node: Node, path: KeyPath, step: int, new: Node, default: Callable[[KeyPath, object], Any]
) -> Node:
    if step == len(path):
        return new
    here, part = ".".join(map(str, path[:step])), str(path[step])
    if not isinstance(node.value, dict | list):
        meant = default(path[:step], node.value)
        if meant is None and node.value is not None:
            raise _NoSuchPlaceError(f"'{here}' is {node.value!r}, which has no keys")
        node = tree_of({} if meant is None else meant, node.place, [])
    if isinstance(node.value, list):
        items = list(node.value)
        if not part.isdecimal() or int(part) >= len(items):
            count = f"{len(items)} item" + "s" * (len(items) != 1)
            indices = f", 0 to {len(items) - 1}" if items else ""
            raise _NoSuchPlaceError(f"no item '{part}'; '{here}' has {count}{indices}")
        items[int(part)] = _put(items[int(part)], path, step + 1, new, default)
        return branch(node.place, items)
    old = node.value.get(part, Node(COMMAND_LINE, None))
    return branch(node.place, {**node.value, part: _put(old, path, step + 1, new, default)})


def emit(mapping: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Yields the lines of a YAML text; scalars of other types than text as JSON writes them."""
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            yield f"{indent}{_text(key)}:"
            yield from emit(value, indent + "  ")
        elif isinstance(value, tuple) and value and isinstance(value[0], Mapping):
            yield f"{indent}{_text(key)}:"
            for item in value:
                first, *others = emit(item, indent + "    ")
                yield f"{indent}  - {first.lstrip()}"
                yield from others
        else:
            written = _text(value) if isinstance(value, str) else json.dumps(value)
            yield f"{indent}{_text(key)}: {written}"


def _text(text: str) -> str:
    if _PLAIN.fullmatch(text) and scalar(text) == text:
        return text
    # JSON's escapes are YAML's, but for characters that JSON may leave bare and YAML may not.
    return "".join(
        char if char.isprintable() else f"\\U{ord(char):08x}"
        for char in json.dumps(text, ensure_ascii=False)
    )
