"""Leaves out or mends what `data.cleaning` names, before the data is divided; changes no file.

    table, removed, findings = clean(table, data, kind)
    texts = mended("a <b>good</b> film", data.cleaning.text)

Whatever is left out is listed with its reason, so that what was read is what was kept plus what
was left out. Of copies in splits of the data's own the one that is held out is kept, lest the
model learn what it is scored on. Suspected labels need a network, and are left out by `workflow`.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kerastune_ft.data import copies, table_files
from kerastune_ft.data.labels import Label, LabelKind, natural
from kerastune_ft.data.looks import BLANK
from kerastune_ft.data.tables import Finding, Findings, Table, finding, first_few
from kerastune_ft.data.texts import Texts
from kerastune_ft.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from kerastune_ft.recipe import Cleaning, Data, TextCleaning

TAGS = (
    "a|abbr|b|big|blockquote|body|br|center|code|dd|div|dl|dt|em|font|footer|form|h[1-6]|head|"
    "header|hr|html|i|iframe|img|input|label|li|link|meta|nav|ol|option|p|pre|s|script|section|"
    "small|span|strong|style|sub|sup|table|tbody|td|th|thead|title|tr|tt|u|ul|video"
)
"""Names of HTML's tags, for a regular expression; what else stands in angles is text."""
_TAG = re.compile(rf"</?(?:{TAGS})(?:\s[^<>]*)?/?>|<!doctype[^<>]*>", re.IGNORECASE)
_BREAK = re.compile(r"<(?:br|p|div|li|tr|h[1-6])\b[^<>]*>", re.IGNORECASE)
_SPACES = re.compile(r"\s+")
_BETWEEN = re.compile(r"(?<=\w)[\s_-]+(?=\w)")
_KEPT_CONTROLS = "\t\n\r"
_PAUSES = "\x0b\x0c\x1c\x1d\x1e\x1f\x85"  # that end lines and pages: words stand on both sides
# Invisible. Not the joiners U+200C and U+200D, which are part of words and emoji, nor marks of
# Arabic numbers and the tags of flags, which are seen.
_INVISIBLE = frozenset(
    "\u00ad\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2061\u2062\u2063\u2064"
    "\u2066\u2067\u2068\u2069\u206a\u206b\u206c\u206d\u206e\u206f\ufeff\ufff9\ufffa\ufffb"
)
_HELD_FIRST = {"test": 0, "validation": 1, "train": 2}


class Removed(NamedTuple):
    """An example that was left out.

    Args:
        name: Of the example.
        reason: The rule of `data.cleaning`, or what else left it out.
        detail: Why it applied: the copy that is kept, the class, and so on.
    """

    name: str
    reason: str
    detail: str


class Cleaned(NamedTuple):
    """A table after its rules.

    Args:
        table: What is kept.
        removed: What is not.
        findings: What was mended, and how much was left out.
    """

    table: Table
    removed: tuple[Removed, ...]
    findings: tuple[Finding, ...]


def clean(table: Table, data: Data, kind: LabelKind) -> Cleaned:
    """Applies the rules of `data.cleaning` that need no network, in a fixed order.

    Mending comes first, texts and then class names, and copies are looked for in what it made.

    Raises:
        DataError: If a class to be renamed or the list to be excluded does not exist, or nothing
            is left.
    """
    rules = data.cleaning
    findings: list[Finding] = []
    table = _mend_texts(table, rules, findings)
    table = _mend_labels(table, rules, kind, findings)
    table, removed = _without_emptied(table, data)
    steps: tuple[Callable[[Table, Cleaning], Iterator[tuple[int, str, str]]], ...] = (
        _excluded,
        _blank,
        _conflicting,
        _duplicates,
        _near_duplicates,
        _rare,
    )
    for step in steps:
        gone = {row: Removed(table.names[row], rule, why) for row, rule, why in step(table, rules)}
        if gone:
            removed += [gone[row] for row in sorted(gone)]
            table = without(table, list(gone))
    if not table.names:
        raise DataError(f"{data.path}: data.cleaning leaves out all {len(removed):,} examples.")
    if removed:
        table = _with_classes_left(table, kind)
    return Cleaned(table, tuple(removed), (*findings, *said_of(removed)))


def mended_table(
    table: Table, rules: Cleaning, kind: LabelKind, class_names: Sequence[str]
) -> Table:
    """Returns data to score a trained model on, mended as what it was trained on; all is kept.

    A text of which nothing is left stays, as an empty one.

    Args:
        table: The data.
        rules: Of the run.
        kind: Of the labels.
        class_names: The model's; a label that is not one of them but in its spelling becomes it.
    """
    findings: list[Finding] = []
    table = _mend_texts(table, rules, findings)
    if kind.name == "class":
        labels = [rules.rename_labels.get(str(label), str(label)) for label in table.labels]
        if rules.label_spelling == "merge":
            known = dict.fromkeys(class_names, 1)
            better = spellings({**dict.fromkeys(labels, 0), **known})
            labels = [better.get(label, label) for label in labels]
        table = replace(table, labels=tuple(labels))
    return replace(table, findings=(*table.findings, *findings))


def without(table: Table, rows: Sequence[int]) -> Table:
    """Returns a table that lacks some rows."""
    keep = np.ones(len(table.names), bool)
    keep[list(rows)] = False
    return table.take(np.flatnonzero(keep))


def said_of(removed: Sequence[Removed]) -> tuple[Finding, ...]:
    """Returns a finding per rule that left something out."""
    made = []
    for reason in dict.fromkeys(row.reason for row in removed):
        rows = [row for row in removed if row.reason == reason]
        made.append(
            finding(
                "removed",
                "note",
                f"examples left out by {reason}",
                [row.name for row in rows],
                details=[row.detail for row in rows],
            )
        )
    return tuple(made)


def mended(text: str, rules: TextCleaning) -> str:
    """Returns a text as the rules want it; a run mends what it predicts alike."""
    if rules.mojibake:
        import ftfy

        text = ftfy.fix_encoding(text)
    if rules.html:
        text = html.unescape(_TAG.sub("", _BREAK.sub(" ", _without_comments(text))))
    if rules.control:
        text = "".join(
            " " if letter in _PAUSES else letter for letter in text if not _is_control(letter)
        )
    if rules.unicode != "none":
        text = unicodedata.normalize("NFC" if rules.unicode == "nfc" else "NFKC", text)
    if rules.whitespace:
        text = _SPACES.sub(" ", text).strip()
    return text


def mends(rules: TextCleaning) -> bool:
    """Whether the rules change any text."""
    return rules.unicode != "none" or any(
        (rules.whitespace, rules.html, rules.control, rules.mojibake)
    )


def mended_texts(texts: Texts, rules: TextCleaning) -> Texts:
    """Returns texts as the rules want them; words that would become empty stay as they are."""
    if not mends(rules):
        return texts
    words = texts.words
    if words is not None:
        words = tuple(tuple(mended(w, rules).strip() or w for w in row) for row in words)
        return Texts(tuple(" ".join(row) for row in words), None, words)
    second = texts.second
    return Texts(
        tuple(mended(text, rules) for text in texts.first),
        None if second is None else tuple(mended(text, rules) for text in second),
    )


def filled(
    rows: Sequence[Mapping[str, Any]],
    rules: Cleaning,
    kind: LabelKind,
    texts: Sequence[str | None],
    labels: Sequence[str],
    findings: Findings,
    names: Sequence[str],
) -> tuple[list[Mapping[str, Any]], frozenset[int]]:
    """Returns the rows of a table with missing texts and labels filled in as the rules say.

    Where several classes stand in one column an empty cell is none of them, and not missing.

    Args:
        rows: Cells by column.
        rules: Of the recipe.
        kind: Of the labels.
        texts: Columns of texts, those that are None left out.
        labels: Columns of labels.
        findings: Receives what was filled in.
        names: Of the rows.

    Returns:
        The rows, and which of them got the commonest label: a guess, to be learned from but not
        to be scored on.
    """
    guessed: set[int] = set()
    wanted = [(column, rules.missing_text, rules.missing_text_value) for column in texts if column]
    wanted += [(column, rules.missing_label, rules.missing_label_value) for column in labels]
    made = list(rows)
    for column, rule, constant in wanted:
        if rule == "drop" or not any(column in cells for cells in made):
            continue
        label = column in labels
        if label and kind.name == "classes" and len(labels) == 1:
            missing = [i for i, cells in enumerate(made) if _says_nan(cells.get(column))]
        else:
            missing = [i for i, cells in enumerate(made) if is_missing(cells.get(column), label)]
        if not missing:
            continue
        if label and rule == "most_frequent":
            guessed.update(missing)
        numbers = column in labels and kind.name == "numbers"
        value = constant if rule == "constant" else _commonest(made, column, numbers)
        for row in missing:
            made[row] = {**made[row], column: value}
            message = f"cells without a {'label' if label else 'text'}, filled in"
            shown = value if len(str(value)) < 40 else f"{str(value)[:39]}…"
            findings.add(
                "filled_in", "note", f"{message} with '{shown}' (column {column})", names[row]
            )
    return made, frozenset(guessed)


def is_missing(value: Any, label: bool = False) -> bool:
    """Whether a cell has no value: nothing, blanks, or of labels the word NaN."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return True
    return isinstance(value, str) and (not value.strip() or (label and _says_nan(value)))


def _says_nan(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().lower() == "nan"
    return value is None or (isinstance(value, float) and np.isnan(value))


def spellings(counts: Mapping[str, int]) -> dict[str, str]:
    """Returns for every class name that is another one in other spelling the commonest of these.

    Names are the same in other spelling if they differ in case, Unicode form, spaces, hyphens and
    underscores alone.

    Args:
        counts: Examples of each class.
    """
    kinds: dict[str, list[str]] = {}
    for name in counts:
        plain = unicodedata.normalize("NFKC", name).casefold()
        # A sign or a dash at an end is part of the name: -1 is not 1, and B- is not B.
        kinds.setdefault(_BETWEEN.sub(" ", plain).strip(), []).append(name)
    found = {}
    for names in kinds.values():
        best = max(sorted(names, key=natural), key=lambda name: counts[name])
        found.update({name: best for name in names if name != best})
    return found


def _commonest(rows: Sequence[Mapping[str, Any]], column: str, numbers: bool) -> Any:
    known = [cells.get(column) for cells in rows if not is_missing(cells.get(column), True)]
    if not known:
        raise DataError(f"column '{column}': every cell is empty; there is nothing to fill in.")
    if numbers:
        try:
            return repr(float(np.median([float(str(value)) for value in known])))
        except ValueError as error:
            raise DataError(f"column '{column}': {error}; expected numbers.") from error
    counts = Counter(str(value) for value in known)
    most = max(counts.values())
    value = min((name for name, count in counts.items() if count == most), key=natural)
    return next(cell for cell in known if str(cell) == value)


def _without_comments(text: str) -> str:
    parts, place = [], 0
    while (start := text.find("<!--", place)) >= 0:
        end = text.find("-->", start + 4)
        if end < 0:
            break
        parts.append(text[place:start])
        place = end + 3
    return "".join([*parts, text[place:]])


def _is_control(letter: str) -> bool:
    if letter in _KEPT_CONTROLS or letter in _PAUSES:
        return False
    return letter in _INVISIBLE or unicodedata.category(letter) == "Cc"


def _mend_texts(table: Table, rules: Cleaning, findings: list[Finding]) -> Table:
    texts = table.content
    if not isinstance(texts, Texts) or not mends(rules.text):
        return table
    made = mended_texts(texts, rules.text)
    changed = [
        name
        for row, name in enumerate(table.names)
        if (made.first[row], made.second and made.second[row])
        != (texts.first[row], texts.second and texts.second[row])
    ]
    if changed:
        message = "texts mended by data.cleaning.text"
        findings.append(finding("mended_text", "note", message, changed))
    return replace(table, content=made)


def _without_emptied(table: Table, data: Data) -> tuple[Table, list[Removed]]:
    """Leaves out the texts of which mending left nothing, or refuses them under `stop`."""
    texts = table.content
    if not isinstance(texts, Texts) or not mends(data.cleaning.text) or not any(texts.first):
        return table, []
    empty = [row for row, text in enumerate(texts.first) if not text.strip()]
    names = [table.names[row] for row in empty]
    if names and data.on_error == "stop":
        raise DataError(
            f"{data.path}: data.cleaning.text leaves nothing of {first_few(names)} and "
            "data.on_error is 'stop'; set data.on_error=skip to go on without them."
        )
    gone = [Removed(name, "empty_text", "nothing is left once it is mended") for name in names]
    return without(table, empty) if empty else table, gone


def _mend_labels(table: Table, rules: Cleaning, kind: LabelKind, findings: list[Finding]) -> Table:
    if kind.name != "class":
        return table
    counts = Counter(str(label) for label in table.labels)
    for name in rules.rename_labels:
        if name not in counts:
            raise DataError(
                f"data.cleaning.rename_labels: no class '{name}'"
                f"{did_you_mean(name, counts) or ';'} there are {first_few(counts, 20)}."
            )
    renamed = dict(rules.rename_labels)
    if rules.label_spelling == "merge":
        after: Counter[str] = Counter()
        for name, count in counts.items():
            after[renamed.get(name, name)] += count
        better = spellings(after)
        for name in counts:
            now = renamed.get(name, name)
            if now in better:
                renamed[name] = better[now]
    renamed = {old: new for old, new in renamed.items() if old != new}
    if not renamed:
        return table
    changed = [
        (name, f"{label} -> {renamed[str(label)]}")
        for name, label in zip(table.names, table.labels, strict=True)
        if str(label) in renamed
    ]
    findings.append(
        finding(
            "renamed_label",
            "note",
            "labels given another spelling",
            [name for name, _ in changed],
            details=[how for _, how in changed],
        )
    )
    labels: list[Label] = [renamed.get(str(label), str(label)) for label in table.labels]
    names = dict.fromkeys(renamed.get(name, name) for name in table.class_names)
    return replace(table, labels=tuple(labels), class_names=tuple(sorted(names, key=natural)))


def _excluded(table: Table, rules: Cleaning) -> Iterator[tuple[int, str, str]]:
    if rules.exclude is None:
        return
    path = Path(rules.exclude).expanduser()
    try:
        text = table_files.decoded(table_files.read(path), "utf-8", path)
    except table_files.NoTextError as error:
        raise DataError(f"data.cleaning.exclude: {error}") from error
    listed = table_files.frame(text, path)
    if "name" not in listed.columns:
        raise DataError(
            f"data.cleaning.exclude: {path}: no column 'name'; the columns are "
            f"{first_few(listed.columns, 20)}."
        )
    wanted = dict.fromkeys(listed["name"])
    for row, name in enumerate(table.names):
        if name in wanted:
            del wanted[name]
            yield row, "exclude", f"listed in {path.name}"
    # A text has a digest behind the number of its row, and is known by it in a table whose rows
    # have moved. Of several alike those at the end go.
    moved = Counter(name.rpartition("#")[2] for name in wanted if "#" in name)
    taken = set(listed["name"])
    for row in reversed(range(len(table.names))):
        name = table.names[row]
        digest = name.rpartition("#")[2]
        if "#" in name and name not in taken and moved[digest]:
            moved[digest] -= 1
            yield row, "exclude", f"the same text is listed in {path.name}"


def _blank(table: Table, rules: Cleaning) -> Iterator[tuple[int, str, str]]:
    if rules.blank == "keep" or table.looks is None:
        return
    for row in np.flatnonzero(table.looks.contrast < BLANK):
        yield int(row), "blank", f"contrast {table.looks.contrast[row]:.1f}"


def _conflicting(table: Table, rules: Cleaning) -> Iterator[tuple[int, str, str]]:
    if rules.conflicting_labels == "keep":
        return
    first = copies.identities(table)
    labels: dict[int, set[Label]] = {}
    for row, label in zip(first.tolist(), table.labels, strict=True):
        labels.setdefault(row, set()).add(label)
    for row, same in enumerate(first.tolist()):
        if len(labels[same]) > 1:
            said = " and ".join(sorted(f"'{label}'" for label in labels[same]))
            yield row, "conflicting_labels", f"the same content is labelled {said}"


def _duplicates(table: Table, rules: Cleaning) -> Iterator[tuple[int, str, str]]:
    if rules.duplicates == "keep":
        return
    first = copies.identities(table)
    yield from _all_but_one(table, first, "duplicates", rules.duplicates == "drop")


def _near_duplicates(table: Table, rules: Cleaning) -> Iterator[tuple[int, str, str]]:
    if rules.near_duplicates == "keep":
        return
    first = np.arange(len(table.names))
    families = copies.families(len(first), first, copies.near_pairs(table))
    yield from _all_but_one(table, families, "near_duplicates", False)


def _all_but_one(
    table: Table, families: NDArray[np.int64], rule: str, everyone: bool
) -> Iterator[tuple[int, str, str]]:
    """Yields the rows of each family and label but the one that is kept."""
    members: dict[tuple[int, Label], list[int]] = {}
    for row, (family, label) in enumerate(zip(families.tolist(), table.labels, strict=True)):
        members.setdefault((family, label), []).append(row)
    for rows in members.values():
        if len(rows) < 2:
            continue
        official = table.official
        kept = min(rows, key=lambda row: (_HELD_FIRST[official[row]] if official else 0, row))
        for row in rows:
            if everyone or row != kept:
                detail = "one of several" if everyone else f"'{table.names[kept]}' is kept"
                yield row, rule, detail


def _rare(table: Table, rules: Cleaning) -> Iterator[tuple[int, str, str]]:
    counts = Counter(table.labels)
    for row, label in enumerate(table.labels):
        if counts[label] < rules.fewest_per_class:
            yield row, "fewest_per_class", f"class '{label}' has {counts[label]} examples"


def _with_classes_left(table: Table, kind: LabelKind) -> Table:
    if kind.name != "class":
        return table
    present = set(map(str, table.labels))
    return replace(table, class_names=tuple(n for n in table.class_names if n in present))
