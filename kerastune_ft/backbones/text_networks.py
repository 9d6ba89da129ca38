"""Builds the language networks of rows, with their weights, as plain Keras models without a head.

A network is named `row.tag` (`bert.minilm`) and reloads with `keras.models.load_model` alone.
Every dropout in it is a `keras.layers.Dropout`; whether they act is decided by their rates.

    row = backbones.get("bert")
    network = build(row, weights="minilm")
    features = network({"token_ids": ids, "padding_mask": mask, "segment_ids": segments})
    cuts(network)           # ('embeddings_dropout', 'layer_0_outer_norm', ...)
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras

from kerastune_ft import files
from kerastune_ft.backbones import (
    BACKBONES,
    arrays,
    text_architectures,
    text_folders,
    text_graphs,
    text_hub,
    text_tensors,
)
from kerastune_ft.backbones.facts import Backbone
from kerastune_ft.backbones.text_architectures import Architecture
from kerastune_ft.backbones.text_folders import RANDOM_AS, Place, layers_of_config, located
from kerastune_ft.errors import ModelError, WeightsError

__all__ = [
    "Place",
    "build",
    "causal",
    "cuts",
    "layers_of_config",
    "located",
    "max_length",
    "save_architecture",
    "seq2seq",
]


def build(
    row: Backbone, *, weights: str, dropout: float = 0.1, vocabulary_size: int | None = None
) -> keras.Model:
    """Builds the network of a row without a head; of T5 the encoder alone.

    Args:
        row: Facts of the network.
        weights: A tag of the row or the name of a KerasHub preset; an address that begins with
            `hf://` or `kaggle://`; a folder in Hugging Face's or KerasHub's format or of a former
            run, or its `.keras` file; `none` for random numbers in a tiny network (2 layers, 32
            wide, 2 heads, 128 positions); `none:` and any of the others for random numbers in
            their network, for which a folder with a `network.json` of `save_architecture` is
            enough. Random ones are repeatable after `keras.utils.set_random_seed`.
        dropout: Rate of every dropout layer, from 0 to less than 1.
        vocabulary_size: Of a network of random numbers, in tokens; 1000, or that of the weights
            after `none:`, by default.

    Returns:
        Takes `token_ids`, `padding_mask` (1 is real) and where the row has segments
        `segment_ids`, int32 `(batch, length)` of any length; returns `(batch, length, width)`
        after the last normalisation. Named `row.tag`.

    Raises:
        ModelError: If an argument is out of its range.
        WeightsError: If the weights are unknown, cannot be had, are damaged, or do not fit.
    """
    return _built(row, weights, dropout, vocabulary_size, whole=False)


def seq2seq(
    row: Backbone, *, weights: str, dropout: float = 0.1, vocabulary_size: int | None = None
) -> keras.Model:
    """Builds the whole of a T5, encoder, decoder and head.

    Args:
        row: Facts of a network with a decoder.
        weights: As for `build`.
        dropout: As for `build`.
        vocabulary_size: As for `build`.

    Returns:
        Takes `encoder_token_ids`, `encoder_padding_mask`, `decoder_token_ids` and
        `decoder_padding_mask`, int32 `(batch, length)` each; returns logits, float32
        `(batch, target length, vocabulary)`. Named `row.tag`.

    Raises:
        ModelError: If the row has no decoder.
        WeightsError: As for `build`.
    """
    if row.language is None or not row.language.decoder:
        raise ModelError(f"backbone '{row.name}' has no decoder, so it writes no text; take 't5'.")
    return _built(row, weights, dropout, vocabulary_size, whole=True)


def causal(
    row: Backbone, *, weights: str, dropout: float = 0.1, vocabulary_size: int | None = None
) -> keras.Model:
    """Builds a causal network with its head, which is its token embedding.

    Args:
        row: Facts of a causal network.
        weights: As for `build`.
        dropout: As for `build`.
        vocabulary_size: As for `build`.

    Returns:
        Takes `token_ids` and `padding_mask`, int32 `(batch, length)`; returns logits, float32
        `(batch, length, vocabulary)`. Named `row.tag`.

    Raises:
        ModelError: If the row is not causal.
        WeightsError: As for `build`.
    """
    if row.language is None or not row.language.causal:
        raise ModelError(f"backbone '{row.name}' is not causal; take 'gpt2'.")
    return text_graphs.causal(_built(row, weights, dropout, vocabulary_size, whole=False))


def save_architecture(network: keras.Model, path: Path) -> None:
    """Writes what a network is built like, without its weights.

    In a folder as `network.json`, it is what `none:FOLDER` is built of, under the same name, until
    the folder has a `model.keras`. It is Keras's own JSON of the network, data alone.

    Args:
        network: That a function of this module built, or a model with one of them inside.
        path: Of the file; it appears whole or not at all.

    Raises:
        ModelError: If there is no network of language in it.
    """
    rows = tuple(f"{row.name}." for row in BACKBONES.values() if row.language)
    models = [x for x in (network, *network.layers) if isinstance(x, keras.Model)]
    ours = [model for model in models if model.name.startswith(rows)]
    if not ours:
        raise ModelError(
            f"model '{network.name}' holds no network of language of this package; give one that "
            "text_networks.build made."
        )
    files.write_text(path, ours[-1].to_json())


def cuts(network: keras.Model) -> tuple[str, ...]:
    """Returns the last layer of every block in the order of `network.layers`.

    The blocks are the embeddings, each transformer layer, and each of the decoder's. A last
    normalisation belongs to the block before it.
    """
    found = [
        (_block(layer.name), layer.name)
        for layer in network.layers
        if not isinstance(layer, keras.layers.InputLayer)
    ]
    # Layers that are named after no block are part of the one before.
    filled = itertools.accumulate(found, lambda last, new: (new[0] or last[0], new[1]))
    return tuple(
        [name for _, name in group][-1]
        for _, group in itertools.groupby(filled, key=lambda entry: entry[0])
    )


def _block(name: str) -> str | None:
    """Returns which block a layer is of; None for that of the layer before."""
    match = re.match(r"((?:layer|decoder)_\d+)_", name)
    if match:
        return match[1]
    if name.startswith("decoder_embeddings"):
        return "decoder_0"
    embeddings = ("embeddings", "token_embedding", "position_embedding", "segment_embedding")
    return "embeddings" if name.startswith(embeddings) else None


def max_length(network: keras.Model | Backbone, weights: str | None = None) -> int | None:
    """Returns how many tokens a network takes at most; None where positions are relative.

    Args:
        network: Made by a function of this module; or the facts of one.
        weights: With facts: as for `build`.

    Raises:
        WeightsError: If the weights are unknown or cannot be had.
    """
    if isinstance(network, keras.Model):
        names = {layer.name for layer in network.layers}
        if "position_embedding" not in names:
            return None
        return int(network.get_layer("position_embedding").input_dim)
    place = located(network, weights or "none")
    if place.kind == "none":
        return text_architectures.tiny(network).positions or None
    if place.kind == "run":
        file = text_folders.network_file(Path(str(weights).removeprefix(RANDOM_AS)))
        for layer in text_folders.network_config(file, network)["layers"]:
            if layer["name"] == "position_embedding":
                return int(layer["config"]["input_dim"])
        return None
    return text_folders.architecture(network, place).positions or None


def _built(
    row: Backbone, weights: str, dropout: float, vocabulary: int | None, whole: bool
) -> keras.Model:
    """Builds a network; `whole` with the decoder."""
    if row.language is None:
        raise ModelError(f"backbone '{row.name}' takes pictures, not text.")
    if not 0 <= dropout < 1:
        raise ModelError(f"dropout: expected 0 or more and less than 1, got {dropout}.")
    random = weights == "none" or weights.startswith(RANDOM_AS)
    if vocabulary is not None and (not random or vocabulary < 1):
        raise ModelError(
            f"vocabulary_size: is that of the weights '{weights}'; leave it out."
            if not random
            else f"vocabulary_size: expected 1 or more, got {vocabulary}."
        )
    place = located(row, weights)
    if place.kind == "run":
        return _from_run(row, weights, dropout, whole)
    name = f"{row.name}.{place.tag}"
    if place.kind == "none":
        return _random(text_architectures.tiny(row, vocabulary or 1000), name, dropout, whole)
    assert place.folder is not None
    shape = text_folders.architecture(row, place)
    if random:
        shape = dataclasses.replace(shape, vocabulary=vocabulary or shape.vocabulary)
        return _random(shape, name, dropout, whole)
    if place.kind == "keras_hub":
        found = text_hub.read(place.folder, shape, whole)
    else:
        shape, found = _huggingface(row, place.folder, shape, whole)
    network = _random(shape, name, dropout, whole)
    arrays.assign(network, found, place.folder)
    return network


def _random(shape: Architecture, name: str, dropout: float, whole: bool) -> keras.Model:
    if whole:
        return text_graphs.seq2seq(shape, name, dropout)
    return text_graphs.features(shape, name, dropout)


def _huggingface(
    row: Backbone, folder: Path, shape: Architecture, whole: bool
) -> tuple[Architecture, text_tensors.Arrays]:
    """Reads the weights of a folder in Hugging Face's format."""
    text_folders.preflight(row, folder)
    tensors = text_tensors.Tensors(text_folders.Safetensors(folder), row.name, str(folder))
    if whole:
        shape = dataclasses.replace(shape, tied=text_tensors.t5_head_is_tied(shape, tensors))
    found = text_tensors.TABLES[row.name](shape, tensors)
    if whole:
        found |= text_tensors.t5_decoder(shape, tensors)
    tensors.check()
    unused = tensors.unused()
    if unused:
        warnings.warn(
            f"{folder}: {len(unused)} tensors of it are not used, as those of another task's head "
            f"are ({', '.join(unused[:3])}{', ...' if len(unused) > 3 else ''}).",
            stacklevel=4,
        )
    return shape, found


def _from_run(row: Backbone, weights: str, dropout: float, whole: bool) -> keras.Model:
    """Builds the network that a run holds."""
    random = weights.startswith(RANDOM_AS)
    file = text_folders.network_file(Path(weights.removeprefix(RANDOM_AS)))
    if file.name == text_folders.NETWORK_FILE and not random:
        raise WeightsError(
            f"{file.parent}: is a run that has no model.keras yet, so it holds no weights; "
            f"'kft resume {file.parent}' goes on with it, or set backbone.weights to "
            f"'{RANDOM_AS}{file.parent}' for random numbers in its network."
        )
    network = _revived(file, text_folders.network_config(file, row), dropout)
    if not random:
        _, held = arrays.read(file)
        arrays.assign(network, held, file)
    has_decoder = isinstance(network.input, dict) and "decoder_token_ids" in network.input
    if whole == has_decoder:
        return _without_logits(network)
    if whole:
        raise WeightsError(
            f"{file}: holds the encoder of '{network.name}' alone, so it cannot write text; give "
            "the folder of a run that did."
        )
    inputs = {
        key: keras.Input((None,), dtype="int32", name=key) for key in ("token_ids", "padding_mask")
    }
    encoder = keras.Model(
        [network.input[f"encoder_{key}"] for key in inputs],
        network.get_layer("final_dropout").output,
    )
    return keras.Model(inputs, _replayed(encoder, list(inputs.values())), name=network.name)


def _without_logits(network: keras.Model) -> keras.Model:
    """Returns a causal network up to its features; any other one as it is."""
    if "final_norm" in {layer.name for layer in network.layers} and isinstance(
        network.get_layer("final_norm"), keras.layers.LayerNormalization
    ):
        output = network.get_layer("final_norm").output
        return keras.Model(network.input, output, name=network.name)
    return network


def _replayed(network: keras.Model, inputs: list[Any]) -> Any:
    """Applies the layers of a network, not the network, to other inputs."""
    copies = keras.models.clone_model(
        network, input_tensors=inputs, clone_function=lambda layer: layer
    )
    return copies.output


def _revived(file: Path, config: dict[str, Any], dropout: float) -> keras.Model:
    """Builds a network from its settings in a file; layers that are not Keras's own are refused."""
    try:
        for found in _classes(config["layers"]):
            module, kind = str(found["module"]), str(found["class_name"])
            if not f"{module}.".startswith("keras.") or kind in _FOREIGN:
                raise WeightsError(
                    f"{file}: its network has a '{kind}', which this package does not use; give "
                    "the folder of a run of this package."
                )
            if kind == "Dropout":
                found["config"]["rate"] = dropout
        return keras.Model.from_config(config)
    except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(
            f"{file}: no network can be built of it ({line[:200]}); it is damaged, or of another "
            "version of Keras."
        ) from error


_FOREIGN = {"Lambda", "TorchModuleWrapper", "TFSMLayer"}
"""Layers of Keras that run what a file says."""


def _classes(settings: Any) -> Iterator[dict[str, Any]]:
    """Yields what Keras would make an object of, however deep; layers always count."""
    if isinstance(settings, dict):
        if "class_name" in settings and ("module" in settings or "name" in settings):
            yield {"module": "", **settings}
        for value in settings.values():
            yield from _classes(value)
    elif isinstance(settings, list):
        for value in settings:
            yield from _classes(value)
