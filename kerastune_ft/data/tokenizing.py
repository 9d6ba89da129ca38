"""Makes tokens of texts, once per run, with labels where they belong.

    tokenizer = tokenizer_of(row, "minilm", texts)
    splits = tokenized(splits, tokenizer, recipe)      # its splits hold `texts.Tokens`

What a tokenizer made of many texts is kept in the cache, under what decides it.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kerastune_ft import backbones
from kerastune_ft.backbones import text_networks, weights
from kerastune_ft.backbones.facts import Backbone, Language
from kerastune_ft.backbones.tokenizers import Encoded, Tokenizer, Truncation
from kerastune_ft.data import Split, Splits, cleaning, tables
from kerastune_ft.data.texts import Batching, Ragged, Texts, Tokens

if TYPE_CHECKING:
    from kerastune_ft.recipe import Recipe

CACHED_CHARACTERS = 5_000_000
"""From so many characters on, which take some seconds, tokens are kept in the cache."""

_CACHE = 1  # raised when what is kept changes

_MANY = 0.2  # of the texts: losing the end of so many is a warning


def tokenizer_of(row: Backbone, tag: str, texts: Sequence[str] = ()) -> Tokenizer:
    """Returns the tokenizer that belongs to weights.

    Args:
        row: Facts of the network.
        tag: Weights, as `backbone.weights` of a recipe names them.
        texts: Random weights have none: a small one is made of these.

    Raises:
        WeightsError: If the weights or their tokenizer cannot be had.
    """
    place = text_networks.located(row, tag)
    if place.kind == "none" or place.folder is None:
        return Tokenizer.tiny(row.name, texts)
    if place.kind == "run":
        return Tokenizer.load(place.folder / "tokenizer.json")
    if place.kind == "keras_hub":
        return Tokenizer.from_preset_folder(place.folder, model_type=row.name)
    return Tokenizer.from_folder(place.folder, model_type=row.name)


def tokenized(splits: Splits, tokenizer: Tokenizer, recipe: Recipe) -> Splits:
    """Returns splits whose content is tokens, with a finding about texts that are cut."""
    made = {split.name: tokens_of(split, tokenizer, recipe) for split in splits.all}
    cut = [
        name
        for split in splits.all
        for name, was_cut in zip(split.names, made[split.name][1], strict=True)
        if was_cut
    ]
    findings = splits.findings + cut_finding(cut, sum(map(len, splits.all)), recipe)
    train, validation, test = (replace(split, content=made[split.name][0]) for split in splits.all)
    return replace(splits, train=train, validation=validation, test=test, findings=findings)


def cut_finding(cut: Sequence[str], total: int, recipe: Recipe) -> tuple[tables.Finding, ...]:
    """Returns a finding about texts that are cut, () if none is.

    Args:
        cut: Their names.
        total: How many texts there are.
        recipe: Says how they are cut.
    """
    if not cut:
        return ()
    kept = {"head": "beginning", "tail": "end", "head_tail": "beginning and end"}
    what = f"the {kept[recipe.data.truncation]} is kept"
    if recipe.task.name == "text_generation":
        what = "the end of the prompt and the beginning of what follows are kept"
    elif recipe.task.name == "token_classification":
        what = "the first words are kept"
    message = (
        f"texts of more than {length_of(recipe)} tokens ({len(cut) / total:.1%}), of which {what}"
    )
    severity: tables.Severity = "warn" if len(cut) > _MANY * total else "note"
    return (tables.finding("cut_text", severity, message, cut),)


def language_of(recipe: Recipe) -> Language:
    """Returns what is known about the language network of a recipe."""
    language = backbones.get(recipe.backbone.name).language
    assert language is not None, recipe.backbone.name
    return language


def length_of(recipe: Recipe) -> int:
    """Returns the most tokens of a text that the network of a recipe sees."""
    return recipe.backbone.sequence_length or language_of(recipe).sequence_length


def tokens_of(
    split: Split, tokenizer: Tokenizer, recipe: Recipe
) -> tuple[Tokens, NDArray[np.bool_]]:
    """Returns the tokens of one split, and which of its texts were cut."""
    texts, data = split.content, recipe.data
    assert isinstance(texts, Texts), type(texts)
    length, segments = length_of(recipe), language_of(recipe).segments
    batching = Batching.of(data.batch_size, data.batch_tokens, length)
    if recipe.task.name == "token_classification":
        return tagged(texts, split.labels, tokenizer, batching, segments)
    if recipe.task.name == "text_generation":
        return continued(texts, split.labels, tokenizer, batching, recipe.task.learn_prompt)
    if recipe.task.name == "text_to_text":
        return written(texts, split.labels, tokenizer, batching, data.truncation)
    return read(texts, tokenizer, batching, segments, data.truncation)


def inputs_of(
    texts: Texts, tokenizer: Tokenizer, recipe: Recipe
) -> tuple[Tokens, NDArray[np.bool_]]:
    """Returns the tokens of texts without labels, for predictions, and which texts were cut."""
    segments = language_of(recipe).segments
    batching = Batching.of(recipe.data.batch_size, None, length_of(recipe))
    texts = cleaning.mended_texts(texts, recipe.data.cleaning.text)  # as those of training were
    if texts.words is not None:
        labels = [np.zeros(len(words), np.int32) for words in texts.words]
        return tagged(texts, labels, tokenizer, batching, segments)
    if recipe.task.name == "text_generation":
        return prompts(texts, tokenizer, batching, recipe.task.max_new_tokens)
    return read(texts, tokenizer, batching, segments, recipe.data.truncation)


def prompts(
    texts: Texts, tokenizer: Tokenizer, batching: Batching, max_new_tokens: int
) -> tuple[Tokens, NDArray[np.bool_]]:
    """Returns the tokens of beginnings, so short that there is room to go on with them.

    As in training, a beginning that is too long loses its own beginning.
    """
    length = _room_for_prompt(batching.buckets[-1], max_new_tokens)
    encoded = _encode(tokenizer, texts.first, None, length, "tail")
    ids = Ragged.of(encoded.ids, encoded.starts)
    tokens = Tokens(texts, ids, tokenizer.pad_id, batching, tokenizer=tokenizer)
    return tokens, encoded.truncated


def prompt_length(recipe: Recipe) -> int:
    """Returns the most tokens of a beginning that the network of a recipe goes on with."""
    return _room_for_prompt(length_of(recipe), recipe.task.max_new_tokens)


def _room_for_prompt(whole: int, max_new_tokens: int) -> int:
    return max(whole - max_new_tokens, whole // 2, 1)


def read(
    texts: Texts,
    tokenizer: Tokenizer,
    batching: Batching,
    segments: bool,
    truncation: Truncation = "head",
) -> tuple[Tokens, NDArray[np.bool_]]:
    """Returns the tokens of texts that have a label as a whole, and which texts were cut.

    Args:
        texts: Or pairs of texts.
        tokenizer: Of the network.
        batching: Its last bucket is the most tokens of a text.
        segments: Whether the network wants to know which text of a pair a token is of.
        truncation: Which part of a text that is too long is kept.
    """
    length = batching.buckets[-1]
    encoded = _encode(tokenizer, texts.first, texts.second, length, truncation)
    tokens = Tokens(
        texts,
        Ragged.of(encoded.ids, encoded.starts),
        tokenizer.pad_id,
        batching,
        segments=Ragged.of(encoded.segments, encoded.starts) if segments else None,
        tokenizer=tokenizer,
    )
    return tokens, encoded.truncated


def written(
    texts: Texts,
    targets: Sequence[str] | NDArray[Any],
    tokenizer: Tokenizer,
    batching: Batching,
    truncation: Truncation = "head",
) -> tuple[Tokens, NDArray[np.bool_]]:
    """Returns the tokens of texts and of what a decoder is to write for each; see `read`."""
    tokens, cut = read(texts, tokenizer, batching, segments=False, truncation=truncation)
    length = batching.buckets[-1]
    made = _encode(tokenizer, [str(text) for text in targets], None, length, "head")
    ragged = Ragged.of(made.ids, made.starts)
    return replace(tokens, targets=ragged, start_id=tokenizer.pad_id), cut | made.truncated


def tagged(
    texts: Texts,
    tags: Sequence[Any] | NDArray[Any],
    tokenizer: Tokenizer,
    batching: Batching,
    segments: bool,
) -> tuple[Tokens, NDArray[np.bool_]]:
    """Gives the first token of every word the word's tag, and the others none; see `read`.

    Args:
        texts: With words.
        tags: Of each text the class number of every word.
        tokenizer: Of the network.
        batching: Its last bucket is the most tokens of a text.
        segments: Whether the network has segments.
    """
    assert texts.words is not None
    encoded = tokenizer.encode_words(texts.words, length=batching.buckets[-1])
    assert encoded.words is not None
    marks = np.full(len(encoded.ids), -1, np.int32)
    spoken = []
    for row, numbers in enumerate(tags):
        here = slice(int(encoded.starts[row]), int(encoded.starts[row + 1]))
        words = encoded.words[here]
        first = (words >= 0) & (words != np.concatenate([[-1], words[:-1]]))
        marks[here][first] = np.asarray(numbers, np.int32)[words[first]]
        spoken.append(words[first])
    tokens = Tokens(
        texts,
        Ragged.of(encoded.ids, encoded.starts),
        tokenizer.pad_id,
        batching,
        segments=Ragged.of(encoded.segments, encoded.starts) if segments else None,
        marks=Ragged.of(marks, encoded.starts),
        words=Ragged.joined(spoken),
        tokenizer=tokenizer,
    )
    return tokens, encoded.truncated


def continued(
    texts: Texts,
    follows: Sequence[str] | NDArray[Any],
    tokenizer: Tokenizer,
    batching: Batching,
    learn_prompt: bool = False,
) -> tuple[Tokens, NDArray[np.bool_]]:
    """Joins prompt, what follows it and an end; every place learns the token after it.

    A space is put between the two where there is none. A prompt that is too long loses its
    beginning: what follows must fit.

    Args:
        texts: The prompts; they may be empty.
        follows: What follows each.
        tokenizer: Of the network.
        batching: Its last bucket is the most tokens of both.
        learn_prompt: Whether the tokens of the prompt are learned, too.
    """
    length = batching.buckets[-1]
    spaced = [
        said if not prompt or prompt[-1:].isspace() or said[:1].isspace() else f" {said}"
        for prompt, said in zip(texts.first, map(str, follows), strict=True)
    ]
    assert tokenizer.eos_id is not None
    prompts = _encode(tokenizer, texts.first, None, length, "tail")
    made = _encode(tokenizer, spaced, None, length - 1, "head")
    end = np.asarray([tokenizer.eos_id], np.int32)
    rows, marks = [], []
    cut = prompts.truncated | made.truncated
    for row in range(len(texts)):
        prompt = prompts.ids[prompts.starts[row] : prompts.starts[row + 1]]
        after = made.ids[made.starts[row] : made.starts[row + 1]]
        room = length - 1 - len(after)
        if len(prompt) > room:
            cut[row] = True
            prompt = prompt[len(prompt) - room :]
        # Without a prompt the end of another text stands before the first token.
        before = prompt if len(prompt) or room < 1 else end
        ids = np.concatenate([before, after, end]).astype(np.int32)
        mark = np.append(ids[1:], -1)
        if not learn_prompt:
            mark[: max(len(before) - 1, 0)] = -1
        rows.append(ids)
        marks.append(mark)
    tokens = Tokens(
        texts,
        Ragged.joined(rows),
        tokenizer.pad_id,
        batching,
        marks=Ragged.joined(marks),
        tokenizer=tokenizer,
    )
    return tokens, cut


def _encode(
    tokenizer: Tokenizer,
    first: Sequence[str],
    second: Sequence[str] | None,
    length: int,
    truncation: Truncation,
) -> Encoded:
    """Encodes texts, or takes what was made of the same texts before."""
    characters = sum(map(len, first)) + sum(map(len, second or ()))
    if characters < CACHED_CHARACTERS:
        return tokenizer.encode(first, second, length=length, truncation=truncation)
    key = hashlib.sha256(f"{_CACHE} {tokenizer.fingerprint()} {length} {truncation}".encode())
    for column in (first, second or ()):
        for text in column:
            key.update(hashlib.sha256(text.encode("utf-8", "replace")).digest())
        key.update(b"|")
    path = weights.home() / "tokens" / f"{key.hexdigest()[:32]}.npz"
    found = _cached(path, len(first))
    if found is None:
        found = tokenizer.encode(first, second, length=length, truncation=truncation)
        _keep(path, found)
    return found


def _cached(path: Path, count: int) -> Encoded | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            made = Encoded(file["ids"], file["segments"], file["starts"], file["truncated"], None)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    whole = len(made.starts) == count + 1 and int(made.starts[-1]) == len(made.ids)
    return made if whole else None


def _keep(path: Path, made: Encoded) -> None:
    """Writes to the cache; a cache that cannot be written costs no more than time."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.savez(
                file,
                ids=made.ids,
                segments=made.segments,
                starts=made.starts,
                truncated=made.truncated,
            )
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
