"""What stands between texts and a model in a Keras script: tokens, batches, and texts again.

model = kft.text_classifier("bert", 2, weights="minilm", trainable_blocks=-1)
batches = model.preprocessor.dataset(texts, labels, seed=0, epochs=3)
model.fit(batches, epochs=3, steps_per_epoch=len(batches) // 3)
model.predict(model.preprocessor(["a good film"]))
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kerastune_ft import files
from kerastune_ft.backbones.tokenizers import Tokenizer, Truncation
from kerastune_ft.data import cleaning, feeding, tokenizing
from kerastune_ft.data.texts import Batching, Texts, Tokens
from kerastune_ft.errors import DataError
from kerastune_ft.recipe import TextCleaning

Learns = Literal["whole", "words", "target", "next"]


@dataclass(frozen=True)
class Preprocessor:
    """Makes of texts what a model takes.

    Args:
        tokenizer: Of the model's weights.
        sequence_length: The most tokens of a text.
        segments: Whether the network wants to know which text of a pair a token is of.
        learns: What the model learns: something of a `whole` text, of its `words`, a `target`
            that is to be written, or what comes `next`.
        truncation: Which part of a text that is too long is kept.
        mending: What is mended in every text first: `data.cleaning.text` of a recipe.
    """

    tokenizer: Tokenizer
    sequence_length: int
    segments: bool
    learns: Learns = "whole"
    truncation: Truncation = "head"
    mending: TextCleaning = field(default_factory=TextCleaning)

    def save(self, path: str | Path) -> None:
        """Writes all that is needed to make the same inputs elsewhere, as one JSON file."""
        with tempfile.TemporaryDirectory() as folder:
            self.tokenizer.save(Path(folder) / "tokenizer.json")
            tokenizer = (Path(folder) / "tokenizer.json").read_text(encoding="utf-8")
        names = ("sequence_length", "segments", "learns", "truncation")
        facts = {name: getattr(self, name) for name in names}
        facts["mending"] = self.mending.model_dump()
        files.write_text(Path(path), json.dumps({**facts, "tokenizer": tokenizer}))

    @classmethod
    def load(cls, path: str | Path) -> Preprocessor:
        """Reads what `save` wrote; nothing in it is run.

        Raises:
            DataError: If it is something else.
            WeightsError: If the tokenizer in it is damaged.
        """
        try:
            facts = json.loads(Path(path).read_text(encoding="utf-8"))
            text = facts["tokenizer"]
            wanted = {"sequence_length": int, "segments": bool, "learns": str, "truncation": str}
            for name, kind in {**wanted, "tokenizer": str}.items():
                if type(facts[name]) is not kind:
                    raise ValueError(f"'{name}' is {facts[name]!r:.40}")
            mending = TextCleaning.model_validate(facts.get("mending", {}))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}: is no saved preprocessor ({error}); give the file that "
                "model.preprocessor.save wrote."
            ) from error
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "tokenizer.json").write_text(text, encoding="utf-8")
            tokenizer = Tokenizer.load(Path(folder) / "tokenizer.json")
        return cls(tokenizer, **{name: facts[name] for name in wanted}, mending=mending)

    def __call__(
        self, texts: Sequence[Any], pairs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Returns inputs for `model.predict` or `model(...)`.

        Args:
            texts: One or more; of a model of words lists of words.
            pairs: The second text of each pair.

        Returns:
            `token_ids`, `padding_mask` and, where the network wants them, `segment_ids`: `int32
            (texts, length)`, as long as the longest text. Not for models that write.

        Raises:
            DataError: If there are no texts, or something is no text.
        """
        if self.learns in ("target", "next"):
            raise DataError("texts: a model that writes is used by write_texts(model, texts).")
        tokens = self.tokens(texts, pairs)
        longest = max(int(tokens.lengths.max()), 1)
        shown = Batching(len(texts), None, (longest,))
        return Tokens(
            tokens.texts, tokens.ids, tokens.pad_id, shown, segments=tokens.segments
        ).padded(np.arange(len(texts)))

    def tokens(
        self,
        texts: Sequence[Any],
        pairs: Sequence[str] | None = None,
        labels: Sequence[Any] | np.ndarray | None = None,
        batching: Batching | None = None,
        max_new_tokens: int = 64,
    ) -> Tokens:
        """Returns texts as tokens that can be streamed in batches; see `dataset`.

        A beginning that is to be gone on with leaves room for `max_new_tokens`, or half of what
        there is.
        """
        batching = batching or Batching.of(32, None, self.sequence_length)
        if isinstance(texts, str) or not len(texts):
            raise DataError("texts: expected a list of one or more texts.")
        for name, column in (("pairs", pairs), ("labels", labels)):
            if column is not None and len(column) != len(texts):
                raise DataError(f"{name}: expected {len(texts)}, one per text, got {len(column)}.")
        if self.learns == "words":
            return self._words(texts, labels, batching)
        for column in (texts, pairs or ()):
            _check_texts(column, "texts")
        held = Texts(tuple(texts), None if pairs is None else tuple(pairs))
        held = cleaning.mended_texts(held, self.mending)
        if labels is not None and self.learns in ("target", "next"):
            _check_texts(labels, "labels")
            if self.learns == "target":
                return tokenizing.written(held, labels, self.tokenizer, batching, self.truncation)[
                    0
                ]
            return tokenizing.continued(held, labels, self.tokenizer, batching)[0]
        if self.learns == "next":
            return tokenizing.prompts(held, self.tokenizer, batching, max_new_tokens)[0]
        return tokenizing.read(held, self.tokenizer, batching, self.segments, self.truncation)[0]

    def _words(
        self, texts: Sequence[Any], labels: Sequence[Any] | np.ndarray | None, batching: Batching
    ) -> Tokens:
        words = tuple(tuple(text) for text in texts)
        for text, spoken in zip(texts, words, strict=True):
            if isinstance(text, str) or not len(spoken):
                raise DataError(f"texts: expected lists of words, got {text!r:.60}.")
            _check_texts(spoken, "texts")
        tags: list[Any] = [[0] * len(row) for row in words]
        if labels is not None:
            tags = list(labels)
        for row, numbers in zip(words, tags, strict=True):
            if len(numbers) != len(row):
                raise DataError(
                    f"labels: expected {len(row)} for the words {list(row)[:5]}, one per word, got "
                    f"{len(numbers)}."
                )
        held = Texts(tuple(map(" ".join, words)), words=words)
        return tokenizing.tagged(held, tags, self.tokenizer, batching, self.segments)[0]

    def dataset(
        self,
        texts: Sequence[Any],
        labels: Sequence[Any] | np.ndarray,
        *,
        pairs: Sequence[str] | None = None,
        batch_size: int = 32,
        batch_tokens: int | None = None,
        seed: int | None = None,
        epochs: int = 1,
    ) -> Any:
        """Returns a `tf.data.Dataset` of batches of similar length, for `model.fit`.

        Args:
            texts: The texts; of a model of words lists of words.
            labels: Whole numbers `(n,)`, or numbers `(n, outputs)`; of a model of words a whole
                number for every word; of a model that writes the texts that are to be written.
            pairs: The second text of each pair.
            batch_size: Texts per batch.
            batch_tokens: Tokens per batch in place of it, padding included.
            seed: Of the order, which is drawn anew for every epoch; None sorts by length, for
                scoring.
            epochs: To stream. Give `fit` the same number of epochs and
                `steps_per_epoch=len(dataset) // epochs`.

        Returns:
            Batches of inputs and labels: `int32 (batch, 1)`, `float32 (batch, outputs)`, or for a
            model of words or one that writes `int32 (batch, length)`, -1 where nothing is learned
            (`losses.TokenCrossentropy`).

        Raises:
            DataError: If there are no texts, something is no text, or labels do not fit.
        """
        batching = Batching.of(batch_size, batch_tokens, self.sequence_length)
        tokens = self.tokens(texts, pairs, labels, batching)
        options: dict[str, Any] = {"seed": seed, "epochs": range(epochs)}
        if self.learns != "whole":
            return feeding.of_tokens(tokens, (), 0, **options)
        numbers = np.asarray(labels)
        if not np.issubdtype(numbers.dtype, np.number) or numbers.ndim not in (1, 2):
            raise DataError(
                f"labels: expected numbers (n,) or (n, outputs), got {numbers.dtype} "
                f"{numbers.shape}."
            )
        table = numbers[:, None] if numbers.ndim == 1 else numbers
        made = feeding.of_tokens(tokens, table, table.shape[1], **options)
        if not np.issubdtype(numbers.dtype, np.integer) or numbers.ndim == 2:
            return made
        import tensorflow as tf

        return made.map(lambda inputs, label: (inputs, tf.cast(label, tf.int32)))


def _check_texts(texts: Sequence[Any] | np.ndarray, name: str) -> None:
    for text in texts:
        if not isinstance(text, str):
            raise DataError(f"{name}: expected text, got {type(text).__name__} {text!r:.60}.")
