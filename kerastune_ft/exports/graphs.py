"""Builds the graph that is served: from what users hold to names and probabilities.

    served = Served.of(run)
    served.save(folder)             # a SavedModel, with the signatures of `served.signatures`

A picture classifier has `serving_default` (files), `arrays` and `classify`; a classifier of texts
`serving_default` (texts, where the tokenizer runs in a graph), `classify` and `tokens`. The models
of a cross-validated run answer together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import tensorflow as tf

from kerastune_ft import predictions
from kerastune_ft.data.decoding import Preparation
from kerastune_ft.data.inspection import COLOURS
from kerastune_ft.data.labels import JOINT
from kerastune_ft.errors import ExportError
from kerastune_ft.exports import pictures, writing
from kerastune_ft.exports.texts import Inside
from kerastune_ft.tasks import TASKS, Outputs
from kerastune_ft.text_evaluation import usual_tag

if TYPE_CHECKING:
    import keras

    from kerastune_ft.recipe import Recipe
    from kerastune_ft.runs import Run

Tensor: TypeAlias = Any

TOP = 5
"""So many of the most probable classes are named."""

DEFAULT, ARRAYS, CLASSIFY, TOKENS = "serving_default", "arrays", "classify", "tokens"
_CLASSIFY_METHOD = "tensorflow/serving/classify"
PICTURE_FEATURE = "image/encoded"
"""Of a `tf.Example` that is to be classified."""


@dataclass(frozen=True)
class Served:
    """What is exported of a run.

    Args:
        models: Of the run, or of its folds: from raw pixels or tokens to logits or numbers.
        recipe: They were trained by.
        outputs: What they return.
        inside: The tokenizer; or why there is none, "" of pictures.
    """

    models: tuple[keras.Model, ...]
    recipe: Recipe
    outputs: Outputs
    inside: Inside | str

    @classmethod
    def of(cls, run: Run) -> Served:
        """Loads what a finished run has trained.

        Raises:
            ExportError: If it is of a task that is not exported, or Keras runs on another backend.
            RunError: If it has no model.
        """
        import keras

        recipe, outputs = predictions.contract(run)
        if recipe.task.name not in EXPORTED:
            raise ExportError(
                f"run '{run.path}': {recipe.task.name} cannot be exported yet; 'kft predict' "
                f"uses it. Exported are {', '.join(EXPORTED)}."
            )
        if keras.backend.backend() != "tensorflow":
            raise ExportError(
                f"an export is made by TensorFlow, Keras runs on {keras.backend.backend()}; run "
                f"'KERAS_BACKEND=tensorflow kft export {run.path}'."
            )
        runs = predictions.members(run, recipe)
        if len(runs) > 1 and TASKS[recipe.task.name].labels == "text":
            raise ExportError(
                f"run '{run.path}': folds write no text together; export one of them."
            )
        inside: Inside | str = ""
        tokenizer = predictions.tokenizer_of(runs[0])
        if tokenizer is not None:
            inside = Inside.of(tokenizer, recipe)
            if isinstance(inside, str) and recipe.task.name == "token_classification":
                raise ExportError(f"run '{run.path}': its words cannot be told apart: {inside}.")
            if len({run.tokenizer_path.read_bytes() for run in runs}) > 1:
                raise ExportError(f"run '{run.path}': its folds have different tokenizers.")
        return cls(tuple(map(predictions.load_model, runs)), recipe, outputs, inside)

    @property
    def reads_texts(self) -> bool:
        """Whether examples are texts."""
        return TASKS[self.recipe.task.name].modality == "text"

    @property
    def takes(self) -> bool | str:
        """Whether examples can be given as they are; else why numbers of tokens are wanted."""
        return self.inside if isinstance(self.inside, str) and self.inside else True

    @property
    def text_inputs(self) -> tuple[str, ...]:
        """What the texts of an example are called; () of pictures."""
        if not self.reads_texts:
            return ()
        return ("text", "pair") if self.recipe.data.pair_column else ("text",)

    @property
    def writes(self) -> bool:
        """Whether texts are written."""
        return TASKS[self.recipe.task.name].labels == "text"

    @property
    def tags(self) -> bool:
        """Whether every word has a label."""
        return TASKS[self.recipe.task.name].labels == "tags"

    @property
    def token_inputs(self) -> tuple[str, ...]:
        """What the signature of numbers of tokens takes."""
        if self.writes:
            return ("token_ids", "padding_mask")
        return tuple(tensor.name for tensor in self.models[0].inputs)

    @property
    def inputs(self) -> tuple[str, ...]:
        """What the default signature takes."""
        if self.reads_texts:
            return self.text_inputs if isinstance(self.inside, Inside) else self.token_inputs
        return ("image_bytes",) if self.recipe.backbone.channels in COLOURS else ("images",)

    def settled(self, texts: Sequence[tuple[str, ...]]) -> Served:
        """Returns the same without a tokenizer that makes other tokens of any of some texts.

        Args:
            texts: Or pairs of texts.
        """
        if not isinstance(self.inside, Inside):
            return self
        tokenizer = self.models[0].preprocessor.tokenizer
        text = self.inside.differing(texts, tokenizer, self.recipe)
        if not text:
            return self
        if self.tags:
            raise ExportError(f"the operations of TensorFlow make other tokens of {text!r:.80}.")
        why = f"the operations of TensorFlow make other tokens of {text!r:.80}"
        return dataclasses.replace(self, inside=why)

    def answers(self, inputs: Any) -> dict[str, Tensor]:
        """Returns what the signatures return.

        Args:
            inputs: Of the network, a batch.
        """
        if self.writes:
            return self._written(inputs)
        how = EXPORTED[self.recipe.task.name]
        raw = [tf.cast(model(inputs, training=False), tf.float32) for model in self.models]
        said = [how.activate(each) for each in raw]
        # Of one model nothing is added up, so that it says what it says.
        mean = said[0] if len(said) == 1 else tf.add_n(said) / len(said)
        return how.named(mean, self.outputs)

    def _written(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns what a model writes, with its text where the tokenizer is inside."""
        tokenizer = self.models[0].preprocessor.tokenizer
        write = writing.writer_of(self.models[0], self.recipe, tokenizer)
        ids = write(inputs)
        found = {"written_ids": ids.to_tensor(tokenizer.pad_id)}
        if isinstance(self.inside, Inside):
            skip = tuple({tokenizer.id_of(role) for role in tokenizer.special})
            found["written"] = self.inside.rules.texts(ids, skip)
        return found

    def _tagged(self, text: Tensor) -> dict[str, Tensor]:
        """Returns the tag of every word of texts."""
        assert isinstance(self.inside, Inside)
        inputs, place, real = self.inside.of_words(text)
        shares = self.answers(inputs)["probabilities"]
        of_words = tf.gather(shares, tf.maximum(place, 0), batch_dims=1)
        names = tf.constant(self.outputs.names)
        best = tf.argmax(of_words, axis=-1, output_type=tf.int32)
        tags = tf.where(place >= 0, tf.gather(names, best), usual_tag(self.outputs))
        kept = tf.ragged.boolean_mask(tags, real)
        return {
            "tags": tf.strings.reduce_join(kept, axis=1, separator=" "),
            "word_tags": kept.to_tensor(""),
            "word_probabilities": tf.where((place >= 0)[..., tf.newaxis], of_words, 0.0),
        }

    def signatures(self) -> dict[str, Any]:
        """Returns the functions that are served, by name."""
        return self._of_texts() if self.reads_texts else self._of_pictures()

    def _of_pictures(self) -> dict[str, Any]:
        choice = self.recipe.backbone
        how = Preparation(choice.side, self.recipe.data.resize, choice.channels)
        reader = pictures.Reader(how)
        made: dict[str, Any] = {}
        if choice.channels in COLOURS:

            def of_files(image_bytes: Tensor) -> dict[str, Tensor]:
                return self.answers(reader.batch(image_bytes))

            made[DEFAULT] = _traced(of_files, image_bytes=_spec(tf.string))
            self._classify(made, {PICTURE_FEATURE: "image_bytes"}, of_files)

        def of_arrays(images: Tensor) -> dict[str, Tensor]:
            return self.answers(reader.arrays(images))

        shape = (None, None, None, choice.channels)
        made[ARRAYS] = _traced(of_arrays, images=tf.TensorSpec(shape, tf.float32))
        return {DEFAULT: made[ARRAYS], **made}

    def _of_texts(self) -> dict[str, Any]:
        made: dict[str, Any] = {}
        inside = self.inside
        if isinstance(inside, Inside):

            def of_texts(text: Tensor, pair: Tensor | None = None) -> dict[str, Tensor]:
                if self.tags:
                    return self._tagged(text)
                return self.answers(inside.inputs(text, pair))

            names = self.text_inputs
            made[DEFAULT] = _traced(of_texts, **{name: _spec(tf.string) for name in names})
            self._classify(made, {name: name for name in names}, of_texts)

        def of_tokens(**inputs: Tensor) -> dict[str, Tensor]:
            return self.answers(inputs)

        names = self.token_inputs
        specs = {name: tf.TensorSpec((None, None), tf.int32) for name in names}
        made[TOKENS] = _traced(of_tokens, **specs)
        return {DEFAULT: made[TOKENS], **made}

    def _classify(
        self,
        made: dict[str, Any],
        features: Mapping[str, str],
        answers: Callable[..., dict[str, Tensor]],
    ) -> None:
        """Adds the signature that takes `tf.Example`, where there are classes."""
        if self.writes or self.tags or self.recipe.task.name.endswith("regression"):
            return
        names = tf.constant(self.outputs.names)

        def classify(inputs: Tensor) -> dict[str, Tensor]:
            wanted = {name: tf.io.FixedLenFeature((), tf.string) for name in features}
            found = tf.io.parse_example(inputs, wanted)
            given = {argument: found[name] for name, argument in features.items()}
            shares = answers(**given)["probabilities"]
            scores, order = tf.math.top_k(shares, k=len(self.outputs.names))
            return {"classes": tf.gather(names, order), "scores": scores}

        made[CLASSIFY] = _traced(classify, inputs=_spec(tf.string))

    def save(self, folder: Path) -> None:
        """Writes a SavedModel.

        Args:
            folder: Must not exist.
        """
        module = tf.Module()
        module.tables = self.inside.rules.resources if isinstance(self.inside, Inside) else []
        # Keras's variables hold TensorFlow's, which a SavedModel has to own.
        module.held = [variable.value for model in self.models for variable in model.variables]
        tf.saved_model.save(module, str(folder), signatures=self.signatures())
        _name_method(folder)


@dataclass(frozen=True)
class Answer:
    """What is served of a task.

    Args:
        activate: From logits, or numbers, to what models agree on by their mean.
        named: From that to the outputs of a signature.
    """

    activate: Callable[[Tensor], Tensor]
    named: Callable[[Tensor, Outputs], dict[str, Tensor]]


def _classes(shares: Tensor, outputs: Outputs) -> dict[str, Tensor]:
    names = tf.constant(outputs.names)
    best = tf.argmax(shares, axis=1, output_type=tf.int32)
    top, order = tf.math.top_k(shares, k=min(TOP, len(outputs.names)))
    return {
        "label": tf.gather(names, best),
        "class_id": best,
        "probability": tf.reduce_max(shares, axis=1),
        "probabilities": shares,
        "top_labels": tf.gather(names, order),
        "top_probabilities": top,
    }


def _labels(shares: Tensor, outputs: Outputs) -> dict[str, Tensor]:
    thresholds = outputs.thresholds or (0.5,) * len(outputs.names)
    present = shares >= tf.constant(thresholds, tf.float32)
    names = tf.broadcast_to(tf.constant(outputs.names), tf.shape(shares))
    given = tf.ragged.boolean_mask(names, present)
    return {
        "probabilities": shares,
        "present": present,
        "labels": tf.strings.reduce_join(given, axis=1, separator=JOINT),
    }


def _values(numbers: Tensor, outputs: Outputs) -> dict[str, Tensor]:
    return {"values": numbers}


def _tags(shares: Tensor, outputs: Outputs) -> dict[str, Tensor]:
    return {"probabilities": shares}


_CLASSES = Answer(tf.nn.softmax, _classes)
_LABELS = Answer(tf.nn.sigmoid, _labels)
_NUMBERS = Answer(tf.identity, _values)
_TAGS = Answer(tf.nn.softmax, _tags)
_TEXTS = Answer(tf.identity, _values)  # which `writing` answers

EXPORTED: dict[str, Answer] = {
    "image_classification": _CLASSES,
    "image_multilabel": _LABELS,
    "image_regression": _NUMBERS,
    "text_classification": _CLASSES,
    "text_pair_classification": _CLASSES,
    "text_multilabel": _LABELS,
    "text_regression": _NUMBERS,
    "token_classification": _TAGS,
    "text_to_text": _TEXTS,
    "text_generation": _TEXTS,
}
"""What is served, by task."""


def _spec(kind: Any) -> tf.TensorSpec:
    return tf.TensorSpec((None,), kind)


def _traced(body: Callable[..., Any], **specs: tf.TensorSpec) -> Any:
    """Returns a graph of named inputs."""
    named = {name: tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in specs.items()}

    def served(**inputs: Tensor) -> Any:
        return body(**inputs)

    return tf.function(served, autograph=False).get_concrete_function(**named)


def _name_method(folder: Path) -> None:
    """Tells servers which signature takes `tf.Example`; saving writes `predict` for all."""
    path = str(folder)
    updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(path)
    try:
        updater.replace_method_name(CLASSIFY, _CLASSIFY_METHOD, tags=["serve"])
    except ValueError:  # there is no such signature
        return
    updater.save()
