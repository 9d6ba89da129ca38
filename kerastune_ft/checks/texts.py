"""Looks at texts: how long they are, what is broken in them, and in which language they are.

Measured on English sets (trec6, agnews7600, banking77, tweet_emotion, sick; 24,000 texts): none
is called foreign; in movie_polarity those that are, are Spanish and Portuguese.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kerastune_ft.checks.examined import Examined
from kerastune_ft.checks.figures import separations
from kerastune_ft.data import cleaning
from kerastune_ft.data.tables import Finding, Severity, finding
from kerastune_ft.recipe_data import TextCleaning

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MOST = 20_000  # texts whose language is asked for
_EVERY = 500  # texts between two words of progress
_SURE = 0.95
_ENOUGH = 40  # bytes of letters, below which a language cannot be told
_LONG, _TIMES = 300, 4.0  # characters; third quartiles
_HUGE = 100_000  # characters
_TELLS = 0.9  # area under the ROC curve
_SHOWN = 40
_HTML = re.compile(
    r"</?(?:a|abbr|b|big|blockquote|body|br|center|code|dd|div|dl|dt|em|font|footer|form|h[1-6]|"
    r"head|header|hr|html|i|iframe|img|input|label|li|link|meta|nav|ol|option|p|pre|s|script|"
    r"section|small|span|strong|style|sub|sup|table|tbody|td|th|thead|title|tr|tt|u|ul|video)"
    r"(?:\s[^<>]*)?/?>|<!--|<!doctype|&(?:amp|lt|gt|quot|apos|nbsp|#\d{2,5}|#x[0-9a-f]{2,5});"
    r"|(?<=\s)#\d{2,4};",
    re.IGNORECASE,
)
_WORD = re.compile(r"\w+")
_CONTROL = TextCleaning(control=True)


def lengths(examined: Examined) -> Iterator[Finding]:
    """Finds texts of one word, far longer ones than the others, and lengths that tell the class."""
    for column, texts in examined.texts:
        sizes = np.asarray([len(text) for text in texts], np.int64)
        short = [row for row, text in enumerate(texts) if _is_short(text)]
        yield from _at(
            examined, "short_text", "note", "texts of one word or none", short,
            _details(column, [_visible(texts[row]) for row in short]),
        )  # fmt: skip
        low, middle, high = (int(q) for q in np.quantile(sizes, (0.25, 0.5, 0.75)))
        usual = f"half of all have {low:,} to {high:,} characters, the median {middle:,}"
        huge = sizes >= _HUGE
        long = np.flatnonzero(~huge & (sizes > max(_LONG, _TIMES * high)))
        for kind, severity, message, rows in (
            ("huge_text", "warn", f"texts of {_HUGE:,} characters or more", np.flatnonzero(huge)),
            ("long_text", "note", "texts far longer than the others", long),
        ):
            yield from _at(
                examined, kind, "warn" if severity == "warn" else "note", f"{message}; {usual}",
                rows.tolist(), _details(column, [f"{sizes[row]:,} characters" for row in rows]),
            )  # fmt: skip
        if examined.kind == "class":
            yield from _telling(examined, column, sizes)


def _telling(examined: Examined, column: str, sizes: NDArray[np.int64]) -> Iterator[Finding]:
    found = separations(sizes, examined.labels, len(examined.class_names))
    telling = [(number, area) for number, area in found if area >= _TELLS]
    if telling:
        medians = [
            (np.median(sizes[examined.labels == n]), np.median(sizes[examined.labels != n]))
            for n, _ in telling
        ]
        yield finding(
            "length_gives_away",
            "warn",
            f"classes that the length of the {column} tells from the others",
            [examined.class_names[number] for number, _ in telling],
            details=[
                f"median {own:,.0f} characters, of others {others:,.0f}; tells it in "
                f"{area:.0%} of pairs"
                for (own, others), (_, area) in zip(medians, telling, strict=True)
            ],
        )


def _is_short(text: str) -> bool:
    words = _WORD.findall(text[:200])
    # Chinese, Japanese and Thai write no spaces: a letter there says more.
    return not words or (len(words) == 1 and len(words[0].encode()) < len(words[0]) + _ENOUGH / 4)


def broken(examined: Examined) -> Iterator[Finding]:
    """Finds characters and marks in texts that were not meant to be read."""
    for kind, message, severity, look in _BROKEN:
        for column, texts in examined.texts:
            found = [(row, said) for row, text in enumerate(texts) if (said := look(text))]
            details = _details(column, [said for _, said in found])
            yield from _at(examined, kind, severity, message, [row for row, _ in found], details)


def _html(text: str) -> str | None:
    found = _HTML.search(text)
    return _visible(found[0]) if found else None


def _control(text: str) -> str | None:
    if text.isascii() and text.isprintable():
        return None
    kept = cleaning.mended(text, _CONTROL)
    if kept == text:
        return None
    gone = Counter(text) - Counter(kept)
    return ", ".join(f"U+{ord(c):04X} {unicodedata.name(c, '')}".strip() for c in sorted(gone))


def _not_nfc(text: str) -> str | None:
    if unicodedata.is_normalized("NFC", text):
        return None
    whole = unicodedata.normalize("NFC", text)
    word = next((w for w in text.split() if not unicodedata.is_normalized("NFC", w)), text)
    return f"'{_visible(word)}', {len(text)} characters instead of {len(whole)}"


def _mojibake(text: str) -> str | None:
    if text.isascii():
        return None
    import ftfy
    from ftfy.badness import is_bad

    if not is_bad(text):
        return None
    better = ftfy.fix_encoding(text)
    if better == text:
        return None
    start = next(i for i, (a, b) in enumerate(zip(text, better, strict=False)) if a != b)
    before = max(0, start - _SHOWN // 4)
    return f"'{_visible(text[before:])}' may be '{_visible(better[before:])}'"


def _replaced(text: str) -> str | None:
    place = text.find("\ufffd")
    return None if place < 0 else f"'{_visible(text[max(0, place - _SHOWN // 2) :])}'"


_BROKEN: tuple[tuple[str, str, Severity, Callable[[str], str | None]], ...] = (
    ("html", "texts with HTML tags or entities", "warn", _html),
    ("control_characters", "texts with control or zero-width characters", "warn", _control),
    ("not_nfc", "texts with letters and accents that are not joined (NFC)", "note", _not_nfc),
    ("mojibake", "texts that were decoded with a wrong encoding", "warn", _mojibake),
    ("replacement_characters", "texts with lost characters (U+FFFD)", "warn", _replaced),
)


def languages(examined: Examined) -> Iterator[Finding]:
    """Finds texts in another language than most; of very many, in a random part of them."""
    for column, texts in examined.texts:
        rows = np.arange(len(texts))
        part = ""
        if len(rows) > _MOST:
            rows = np.sort(np.random.default_rng(0).choice(rows, _MOST, replace=False))
            part = f" (of {_MOST:,} looked at)"
        told: dict[int, tuple[str, float]] = {}
        for done, row in enumerate(rows.tolist()):
            if done % _EVERY == 0:
                examined.progress("languages", done, len(rows))
            if (language := _language(texts[row])) is not None:
                told[row] = language
        sure = {row: name for row, (name, chance) in told.items() if chance >= _SURE}
        most = Counter(sure.values()).most_common(1)
        if not most or most[0][1] <= len(sure) / 2:  # several languages on purpose
            continue
        other = [row for row, name in sure.items() if name != most[0][0]]
        details = [f"{sure[row]} ({told[row][1]:.0%})" for row in other]
        message = f"texts in another language than most, {most[0][0]}{part}"
        yield from _at(
            examined, "other_language", "warn", message, other, _details(column, details)
        )


def _language(text: str) -> tuple[str, float] | None:
    """Returns the language of a text and how likely it is, None of too few letters."""
    head = text[:2000]
    letters = sum(len(letter.encode()) for letter in head if letter.isalpha())
    if letters < _ENOUGH:
        return None
    name, chance = _identifier().classify(head)
    return str(name), float(chance)


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _visible(text: str) -> str:
    """Returns the beginning of a text with its control characters written out."""
    head = text[:_SHOWN] + ("…" if len(text) > _SHOWN else "")
    return visible(head)


def visible(text: str) -> str:
    """Returns a text in which characters that cannot be seen are written as U+0000 in brackets."""
    return "".join(
        f"⟨U+{ord(letter):04X}⟩"
        if unicodedata.category(letter) in ("Cc", "Cf", "Co", "Cs") and letter not in "\n\t"
        else letter
        for letter in text
    )


def _details(column: str, details: Sequence[str]) -> list[str]:
    return [detail if column == "text" else f"{column}: {detail}" for detail in details]


def _at(
    examined: Examined,
    kind: str,
    severity: Severity,
    message: str,
    rows: Sequence[int],
    details: Sequence[str],
) -> Iterator[Finding]:
    """Yields a finding of some rows, if there are any."""
    if len(rows):
        names = [examined.table.names[row] for row in rows]
        yield finding(kind, severity, message, names, details=details)
