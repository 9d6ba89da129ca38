"""Scores models that label every word or write texts.

Figures come from libraries: entities by seqeval, ROUGE by rouge-score, BLEU by sacrebleu.

    scores, rows, true, said = evaluate_places(model, recipe, splits.test, splits.outputs)
    scores["rouge_l"], rows[0]["predicted"]
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from kerastune_ft import figures, generation
from kerastune_ft.data import texts as batches
from kerastune_ft.data import tokenizing
from kerastune_ft.data.texts import Texts, Tokens

if TYPE_CHECKING:
    from kerastune_ft.data import Split
    from kerastune_ft.recipe import Recipe
    from kerastune_ft.tasks import Outputs

Scores = dict[str, Any]
Row = dict[str, Any]

MOST_WRITTEN = 1000
"""Texts of a split that are written for its scores, drawn at random if there are more: writing one
takes as long as reading many."""

_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f]")
_WORD = re.compile(rf"{_UNSPACED.pattern}|[^\W\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f]+")


def score_places(model: keras.Model, tokens: Tokens) -> tuple[Scores, list[np.ndarray]]:
    """Scores every place where something is learned.

    Returns:
        `loss`, the mean over places, and `accuracy`; and per example the largest logit's number
        at each place where something is learned.
    """
    total, right, places = 0.0, 0, 0
    chosen: list[Any] = [None] * len(tokens)
    scorer = _scorer(model)
    for rows in batches.plan(tokens.lengths, tokens.batching):
        marks = tokens.marked(rows)
        inputs = tokens.padded(rows)
        read = [inputs[tensor.name] for tensor in model.inputs]
        picked, best = map(np.asarray, scorer.predict_on_batch([*read, np.maximum(marks, 0)]))
        real = marks >= 0
        total -= float(picked[real].sum(dtype="float64"))
        right += int((best == marks)[real].sum())
        places += int(real.sum())
        for row, numbers, where in zip(rows, best, real, strict=True):
            chosen[row] = numbers[where]
    places = max(places, 1)
    return {"loss": total / places, "accuracy": right / places, "places": places}, chosen


def _scorer(model: keras.Model) -> keras.Model:
    """Returns a model that gives of every place the label's log share, and the largest logit.

    All logits of a batch can take gigabytes: they stay where they are computed.
    """
    marks = keras.Input((None,), dtype="int32", name="marks")
    shares = keras.ops.log_softmax(keras.ops.cast(model.outputs[0], "float32"), axis=-1)
    picked = keras.ops.take_along_axis(shares, keras.ops.expand_dims(marks, -1), axis=-1)
    best = keras.ops.argmax(shares, axis=-1)
    return keras.Model([*model.inputs, marks], [picked[..., 0], best])


def tags(model: keras.Model, tokens: Tokens, outputs: Outputs) -> list[list[str]]:
    """Returns the tag of every word; words without a token, or cut off, get `O`, or the first."""
    return tags_of(word_logits(model, tokens), outputs)


def _by_word(tokens: Tokens, chosen: Sequence[np.ndarray], outputs: Outputs) -> list[list[str]]:
    """Returns the tag of every word, given the number at each place where something is learned."""
    usual = usual_tag(outputs)
    assert tokens.texts.words is not None and tokens.words is not None
    found = []
    for row, (words, numbers) in enumerate(zip(tokens.texts.words, chosen, strict=True)):
        said = [usual] * len(words)
        for word, number in zip(tokens.words[row], numbers, strict=True):
            said[int(word)] = outputs.names[int(number)]
        found.append(said)
    return found


def usual_tag(outputs: Outputs) -> str:
    """Returns the tag of a word that a network does not see."""
    return "O" if "O" in outputs.names else outputs.names[0]


def write(model: keras.Model, recipe: Recipe, tokens: Tokens) -> list[str]:
    """Returns what a model writes for each text."""
    assert tokens.tokenizer is not None
    written = generation.write(
        model,
        tokens,
        beams=recipe.task.beams,
        max_new_tokens=recipe.task.max_new_tokens,
    )
    return [tokens.tokenizer.decode(ids) for ids in written]


def evaluate_places(
    model: keras.Model, recipe: Recipe, split: Split, outputs: Outputs
) -> tuple[Scores, list[Row], list[Any], list[Any]]:
    """Scores a split of a task that has something to learn at every place.

    Returns:
        Scores; a row per example; what is true and what the model says of each.
    """
    tokens = split.content
    assert isinstance(tokens, Tokens), type(tokens)
    return _TASKS[recipe.task.name](model, recipe, split, tokens, outputs)


def _tagging(
    model: keras.Model, recipe: Recipe, split: Split, tokens: Tokens, outputs: Outputs
) -> tuple[Scores, list[Row], list[Any], list[Any]]:
    scores, chosen = score_places(model, tokens)
    said = _by_word(tokens, chosen, outputs)
    return _tagged(scores, said, split, tokens.texts, outputs)


def word_logits(model: keras.Model, tokens: Tokens) -> list[np.ndarray]:
    """Returns the logits of each word of each text, `float64 (words, classes)`.

    A word that the model does not see, without a token or cut off, is not a number.
    """
    assert tokens.texts.words is not None and tokens.words is not None
    found: list[Any] = [None] * len(tokens)
    for rows in batches.plan(tokens.lengths, tokens.batching):
        raw = np.asarray(model.predict_on_batch(tokens.padded(rows)), "float64")
        marks = tokens.marked(rows)
        for row, numbers, where in zip(rows, raw, marks >= 0, strict=True):
            found[row] = np.full((len(tokens.texts.words[row]), raw.shape[-1]), np.nan)
            found[row][tokens.words[row]] = numbers[where]
    return found


def score_words(
    logits: Sequence[np.ndarray], split: Split, outputs: Outputs
) -> tuple[Scores, list[Row], list[Any], list[Any]]:
    """Scores logits of words, of one model or the mean of several; see `evaluate_places`.

    Args:
        logits: Of each text, `float64 (words, classes)`; not a number for words not seen.
        split: Of texts with words, tokenised or not.
        outputs: Names the tags.
    """
    held = split.content.texts if isinstance(split.content, Tokens) else split.content
    assert isinstance(held, Texts), type(held)
    from scipy import special

    total, right, places = 0.0, 0, 0
    for words, labels in zip(logits, split.labels, strict=True):
        seen = np.isfinite(words).all(axis=1)
        shares = words[seen] - special.logsumexp(words[seen], axis=1, keepdims=True)
        total -= float(shares[np.arange(len(shares)), labels[seen]].sum())
        right += int((shares.argmax(axis=1) == labels[seen]).sum())
        places += len(shares)
    places = max(places, 1)
    scores = {"loss": total / places, "accuracy": right / places, "places": places}
    return _tagged(scores, tags_of(logits, outputs), split, held, outputs)


def tags_of(logits: Sequence[np.ndarray], outputs: Outputs) -> list[list[str]]:
    """Returns the tag of every word, given logits: see `tags` and `word_logits`."""
    usual = usual_tag(outputs)
    return [
        [outputs.names[int(w.argmax())] if np.isfinite(w).all() else usual for w in words]
        for words in logits
    ]


def _tagged(
    scores: Scores, said: list[list[str]], split: Split, texts: Texts, outputs: Outputs
) -> tuple[Scores, list[Row], list[Any], list[Any]]:
    from seqeval import metrics

    true = [[outputs.names[int(number)] for number in row] for row in split.labels]
    entities = _looks_like_entities(outputs.names)
    scores["examples"] = len(true)
    if entities:
        scores["f1"] = float(metrics.f1_score(true, said, zero_division=0))
        scores["precision"] = float(metrics.precision_score(true, said, zero_division=0))
        scores["recall"] = float(metrics.recall_score(true, said, zero_division=0))
        report = metrics.classification_report(true, said, output_dict=True, zero_division=0)
    else:
        from sklearn import metrics as plain

        flat = [tag for row in true for tag in row], [tag for row in said for tag in row]
        report = plain.classification_report(*flat, output_dict=True, zero_division=0)
        scores["f1"] = float(report["macro avg"]["f1-score"])
    common = Counter(tag for row in true for tag in row)
    scores["majority_accuracy"] = max(common.values()) / max(sum(common.values()), 1)
    scores["per_class"] = {
        name: {
            "precision": float(row["precision"]),
            "recall": float(row["recall"]),
            "f1": float(row["f1-score"]),
            "support": int(row["support"]),
        }
        for name, row in report.items()
        if isinstance(row, dict) and not name.endswith(" avg")
    }
    rows: list[Row] = [
        {"row": _row(name), "text": text, "true": " ".join(right), "predicted": " ".join(found)}
        for name, text, right, found in zip(split.names, texts.first, true, said, strict=True)
    ]
    return scores, rows, true, said


def _looks_like_entities(names: Sequence[str]) -> bool:
    """Whether tags are `O` and such as `B-PER`, `I-PER`."""
    return "O" in names and any(name[:2] in ("B-", "I-", "S-", "E-") for name in names)


def _writing(
    model: keras.Model, recipe: Recipe, split: Split, tokens: Tokens, outputs: Outputs
) -> tuple[Scores, list[Row], list[Any], list[Any]]:
    scores, _ = score_places(model, tokens)
    few = np.sort(np.random.default_rng(0).permutation(len(tokens))[:MOST_WRITTEN])
    held = tokens.take(few)
    said = write(model, recipe, _prompts(recipe, held))
    true = [str(split.labels[row]) for row in few]
    pairs = zip(true, said, strict=True)
    scores |= {
        "examples": len(tokens),
        "perplexity": math.exp(min(scores["loss"], 700.0)),
        "written": len(few),
        "exact_match": float(np.mean([a.strip() == b.strip() for a, b in pairs])),
        **text_scores(true, said),
        "per_class": {},
    }
    if recipe.task.name == "text_to_text":
        copied = list(held.texts.first)
        scores["copying_rouge_l"] = text_scores(true, copied)["rouge_l"]
    rows: list[Row] = [
        {"row": _row(split.names[row]), "text": text, "true": right, "predicted": found}
        for row, text, right, found in zip(few, held.texts.first, true, said, strict=True)
    ]
    return scores, rows, true, said


def _prompts(recipe: Recipe, tokens: Tokens) -> Tokens:
    """Returns what is read, without what is to be written."""
    if tokens.marks is None:
        return tokens
    assert tokens.tokenizer is not None
    return tokenizing.inputs_of(tokens.texts, tokens.tokenizer, recipe)[0]


def text_scores(true: Sequence[str], said: Sequence[str]) -> Scores:
    """Returns ROUGE-1, 2 and L (F1, means over texts) and BLEU (of all together, 0 to 100)."""
    import sacrebleu
    from rouge_score import rouge_scorer

    kinds = {"rouge1": "rouge_1", "rouge2": "rouge_2", "rougeL": "rouge_l"}
    scorer = rouge_scorer.RougeScorer(list(kinds), tokenizer=_Words())
    found = [scorer.score(right, text) for right, text in zip(true, said, strict=True)]
    figures_ = {
        name: float(np.mean([row[kind].fmeasure for row in found])) if found else 0.0
        for kind, name in kinds.items()
    }
    # Without spaces between words a word is a character.
    how = "zh" if sum(map(len, map(_UNSPACED.findall, true))) > len("".join(true)) / 5 else "13a"
    # Forced: texts that end in " ." are no reason to warn.
    found_bleu = sacrebleu.corpus_bleu(list(said), [list(true)], tokenize=how, force=True)
    bleu = found_bleu.score if said else 0.0
    return {**figures_, "bleu": float(bleu)}


class _Words:
    """Divides texts of any script into words; the library's own knows Latin letters alone."""

    def tokenize(self, text: str) -> list[str]:
        """Returns words in lower case; of scripts without spaces, characters."""
        return _WORD.findall(text.lower())


def _row(name: str) -> str:
    return name.rpartition("#")[0]


def headline_tags(scores: Scores) -> list[str]:
    """Returns the figures of a line for words with tags."""
    return [
        f"F1 {scores['f1']:.4f}",
        f"accuracy of words {scores['accuracy']:.4f}",
        f"loss {scores['loss']:.4f}",
        f"(always the commonest tag: accuracy {scores['majority_accuracy']:.3f})",
    ]


def headline_written(scores: Scores) -> list[str]:
    """Returns the figures of a line for texts that are written."""
    copied = scores.get("copying_rouge_l")
    return [
        f"ROUGE-L {scores['rouge_l']:.4f}",
        f"exact match {scores['exact_match']:.4f}",
        f"BLEU {scores['bleu']:.1f}",
        f"perplexity {scores['perplexity']:.2f}",
        f"(written: {scores['written']:,})",
        *([] if copied is None else [f"(copying the input: ROUGE-L {copied:.3f})"]),
    ]


def draw_lengths(true: Any, said: Any, outputs: Outputs, path: Path, title: str) -> None:
    """Draws how long the written texts are against the true ones, in words."""
    lengths = np.asarray([[len(str(text).split())] for text in true], "float64")
    written = np.asarray([[len(str(text).split())] for text in said], "float64")
    figures.draw_predicted_against_true(lengths, written, outputs, path, title)


def draw_tags(true: Any, said: Any, outputs: Outputs, path: Path, title: str) -> None:
    """Draws which tags are taken for which."""
    number = {name: i for i, name in enumerate(outputs.names)}
    right = np.asarray([number[tag] for row in true for tag in row])
    shares = np.eye(len(outputs.names))[[number[tag] for row in said for tag in row]]
    figures.draw_confusion_matrix(right, shares, outputs, path, title)


_Evaluated = tuple[Scores, list[Row], list[Any], list[Any]]
_TASKS: dict[str, Callable[..., _Evaluated]] = {
    "token_classification": _tagging,
    "text_to_text": _writing,
    "text_generation": _writing,
}
