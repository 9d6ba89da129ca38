"""Keeps pictures as they are after decoding and resizing, so that later passes only read them.

What is kept are the bytes that the network's input is made of, from before augmentation; a stream
of kept pictures gives the same batches, bit for bit, as one that decodes. Every file is read once,
in a pass of its own before training, and must then be what it was when it was inspected.

    splits = kept(splits, recipe, say=print)    # `data.cache`; or the same splits

On disk they lie in `kft`'s home under a key that says which pictures in which form, and other runs
find them, whatever their split. `auto` keeps them where they are going to be read twice or more:
on disk, if they fit into `train.cache_gib`; in memory, if the disk does not take them and they are
no more than a quarter of the free memory. Where they cannot be kept, they are streamed, and it is
said why.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL
import tensorflow as tf
from numpy.typing import NDArray

from kerastune_ft.backbones import weights
from kerastune_ft.data import Split, Splits, images, inspection, pools
from kerastune_ft.data.decoding import Preparation
from kerastune_ft.data.tables import Encoded, Files, Prepared, first_few
from kerastune_ft.stores import GIB, Store, StoreError, amount, free_memory

if TYPE_CHECKING:
    from kerastune_ft.recipe import Recipe

_BATCH = 64
_MEMORY = 0.25  # share of the free memory that `auto` takes


class _ChangedError(Exception):
    """Files that are no longer what was inspected."""


def kept(splits: Splits, recipe: Recipe, say: Callable[[str], None]) -> Splits:
    """Returns the splits with their pictures kept, as `data.cache` of a recipe says.

    Args:
        splits: Whatever their content is; only files of pictures are kept.
        recipe: Says size, resizing, channels, how often pictures are read and what may be kept.
        say: Receives the line that says what was decided and why.

    Returns:
        Splits of `Prepared`, or the same ones if nothing is kept.
    """
    parts = [split for split in splits.all if len(split)]
    if recipe.data.cache == "off" or not all(
        isinstance(split.content, Files | Encoded) for split in parts
    ):
        return splits
    reads = passes(recipe)
    try:
        made = _kept(parts, recipe, reads)
    except _NotKeptError as error:
        if reads > 1 or recipe.data.cache != "auto":
            say(f"streamed from their files: {error}")
        return splits
    say(made.said)
    contents = {split.name: content for split, content in zip(parts, made.contents, strict=True)}
    changed: Any = {
        split.name: dataclasses.replace(split, content=contents[split.name], digests=digests)
        for split, digests in zip(parts, made.digests, strict=True)
    }
    return dataclasses.replace(splits, **changed)


def passes(recipe: Recipe) -> int:
    """Returns how often training reads its pictures, as far as the recipe tells.

    A stage of the head alone whose activations are kept (`train.cache`) reads each picture once
    per view.
    """
    train = recipe.train
    changes = any(recipe.data.augmentation.model_dump().values())
    views = train.cache_views if changes else 1
    held = [s.epochs for s in train.stages if s.trainable_blocks == 0 and train.cache != "off"]
    rest = sum(stage.epochs for stage in train.stages) - sum(held)
    return rest + min(views, sum(held))


class _NotKeptError(Exception):
    """Why pictures are not kept."""


@dataclasses.dataclass(frozen=True)
class _Made:
    contents: list[Prepared]
    digests: list[NDArray[Any]]
    said: str


def _kept(parts: Sequence[Split], recipe: Recipe, reads: int) -> _Made:
    """Takes pictures from where they are kept, or keeps them.

    Raises:
        _NotKeptError: If they cannot or need not be kept.
    """
    where, choice = recipe.data.cache, recipe.backbone
    digests = [_digests(split) for split in parts]
    pool = pools.of(parts, digests)
    content, distinct = pool.examples.content, pool.examples.digests
    assert isinstance(content, Files | Encoded) and distinct is not None
    how, _ = images.reader(content, choice.side, choice.channels, recipe.data.resize)
    shape = (len(content), *how.shape)
    size = int(np.prod(shape)) * np.dtype(how.dtype).itemsize
    key = _key(how, distinct, content)
    store = Store(weights.kept("pictures"), recipe.train.cache_gib * GIB)
    words = f"{amount(size)} for {len(content):,} pictures"
    values = store.get(key) if where in ("auto", "disk") else None
    if values is not None and values.shape == shape and values.dtype == how.dtype:
        said = f"read from the disk, where a former run kept them: {words}"
    elif where == "auto" and reads < 2:
        raise _NotKeptError("they are read once")
    else:
        values, said = _filled(where, store, key, how, shape, content, distinct, recipe)
        said = f"{said}: {words}"
        if where == "auto":
            said += f", read {reads} times"
    contents = [Prepared(values, rows, recipe.data.resize, choice.channels) for rows in pool.rows]
    return _Made(contents, digests, said)


def _filled(
    where: str,
    store: Store,
    key: str,
    how: Preparation,
    shape: tuple[int, ...],
    content: Files | Encoded,
    digests: NDArray[Any],
    recipe: Recipe,
) -> tuple[NDArray[Any], str]:
    """Decodes every picture into an array on disk, or in memory."""
    size = int(np.prod(shape)) * np.dtype(how.dtype).itemsize
    free = free_memory() * (_MEMORY if where == "auto" else 1.0)
    facts = {"pictures": len(content), "size": list(recipe.backbone.side), "data": recipe.data.path}
    why = ""
    if where in ("auto", "disk"):
        try:
            with store.writing(key, shape, how.dtype, facts) as table:
                _fill(table, content, digests, how)
            values = store.get(key)
            if values is not None:
                return values, "decoded once and kept on disk"
            why = f"'{store.folder}' does not give back what was written"
        except StoreError as error:
            why = str(error).rstrip(".")
        except (_ChangedError, OSError, tf.errors.OpError) as error:
            raise _NotKeptError(str(error).splitlines()[0]) from error
        if where == "disk":
            raise _NotKeptError(why)
    if size > free:
        said = f"{amount(size)} are wanted and the memory to spare is {amount(free)}"
        raise _NotKeptError(f"{why}; {said}" if why else said)
    table = np.empty(shape, how.dtype)
    try:
        _fill(table, content, digests, how)
    except (_ChangedError, OSError, tf.errors.OpError) as error:
        raise _NotKeptError(str(error).splitlines()[0]) from error
    return table, "decoded once and kept in memory"


def _fill(
    table: NDArray[Any], content: Files | Encoded, digests: NDArray[Any], how: Preparation
) -> None:
    changed: list[str] = []
    watch = images.watcher(content, digests, changed)
    with tf.device("/CPU:0"):
        _, read = images.reader(content, how.image_size, how.channels, how.how, watch)
        stream = tf.data.Dataset.range(len(content)).map(
            read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        )
        stream = stream.batch(_BATCH).prefetch(1).with_options(images.options())
        start = 0
        for batch in stream.as_numpy_iterator():
            table[start : start + len(batch)] = batch
            start += len(batch)
            if changed:
                raise _ChangedError(f"{first_few(changed, 3)} changed after being inspected")


def _digests(split: Split) -> NDArray[Any]:
    """Returns the beginning of the sha256 of every file."""
    if split.digests is not None:
        return split.digests
    content = split.content
    if isinstance(content, Encoded):
        found = [hashlib.sha256(data).digest() for data in content.data]
    else:
        assert isinstance(content, Files)
        try:
            found = [hashlib.sha256(Path(path).read_bytes()).digest() for path in content.paths]
        except OSError as error:
            raise _NotKeptError(f"{error.filename}: {error.strerror}") from error
    return np.asarray(found, np.dtype((np.void, 32)))


def _key(how: Preparation, digests: NDArray[Any], content: Files | Encoded) -> str:
    """Returns what decides every byte that is kept, decoders included."""
    facts = [inspection.PIXELS, tf.__version__, PIL.__version__, how.how, how.shape, how.dtype]
    whole = hashlib.sha256(repr(facts).encode())
    for values in (digests, content.orientations, content.through_pillow):
        whole.update(np.ascontiguousarray(values).tobytes())
    return whole.hexdigest()[:40]
