"""Trains stages on what their frozen blocks give, computed once and kept.

Of a stage whose lowest blocks are frozen, every epoch would compute the same from the same
examples. Instead the activations where the first trainable block begins are computed once, kept in
half precision and read in every epoch; the blocks above them and the head alone are trained. In
one pass they are computed for the later stages, too, whose frozen blocks stay as they are.

    cache = PrefixCache(model, recipe, splits, plans, run, console, parts=1)
    part = cache.part(0)             # None: this stage trains on the examples themselves
    part.fill()
    part.model, part.train, part.validation
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from numpy.typing import NDArray
from rich.markup import escape

from kerastune_ft import models
from kerastune_ft.backbones import weights
from kerastune_ft.data import Split, Splits, feeding, inspection
from kerastune_ft.data.activations import Activations, room_for
from kerastune_ft.data.tables import Arrays, Encoded, Files
from kerastune_ft.data.texts import Ragged, Tokens
from kerastune_ft.errors import TrainingError
from kerastune_ft.prefixes import Cut, Forward
from kerastune_ft.stages import StagePlan
from kerastune_ft.stores import GIB, Store, StoreError, amount, free_memory

if TYPE_CHECKING:
    from rich.console import Console

    from kerastune_ft.recipe import Recipe
    from kerastune_ft.runs import Run

_VERSION = 1  # raised when what is kept changes
_BATCH = 32  # fixed: other batches give other last bits, and the same seed must give the same run
_FEW = 256  # examples below which nothing is measured
_PLAINLY = 2  # times fewer passes: nothing is measured either, if examples are as small as
_SMALL = 60_000  # bytes, which are read sooner than any network takes a picture or a text
_MEASURED = 3  # batches
_LARGEST = 30_000.0  # half of what float16 holds
_MEMORY = 0.25  # share of the free memory that `auto` takes
_DISK_RATE = 300e6  # bytes a second, written or read; slower than any disk of today


@dataclass(frozen=True)
class Choice:
    """How one stage is trained.

    Args:
        blocks: Of the prefix; 0 trains on the examples themselves.
        views: Of each training example.
        where: `disk` or `memory`.
        why: A sentence.
    """

    blocks: int
    views: int = 1
    where: str = "disk"
    why: str = ""


class Part:
    """What a stage trains in place of the model, and on what.

    Args:
        cache: Of the run.
        number: Of the stage, from 0.
        cut: Where the model is cut.
    """

    def __init__(self, cache: PrefixCache, number: int, cut: Cut) -> None:
        self.cache = cache
        self.number = number
        self.cut = cut
        self.model = cut.suffix()
        self.train: Activations
        self.validation: Activations | None = None

    def fill(self) -> None:
        """Takes the activations from where they are kept, or computes them."""
        found = self.cache.activations(self.number, self.cut)
        self.train = found[0]
        self.validation = found[1] if len(found) > 1 else None


class PrefixCache:
    """Decides which stages of a run train on kept activations, and has them.

    Args:
        model: Of the run.
        recipe: Says what may be kept, and where.
        splits: The data.
        plans: Of all stages.
        run: Records what was decided, so that a resumed run decides nothing anew.
        console: Says what was decided and why.
        parts: Devices that share a batch.
    """

    def __init__(
        self,
        model: keras.Model,
        recipe: Recipe,
        splits: Splits,
        plans: Sequence[StagePlan],
        run: Run,
        console: Console,
        parts: int,
    ) -> None:
        self.model = model
        self.recipe = recipe
        self.splits = splits
        self.plans = plans
        self.run = run
        self.console = console
        self.refusal = self._refusal(parts)
        self._choices: dict[int, Choice] | None = None
        self._forward: tuple[tuple[str, ...], Forward] | None = None
        self._kept: dict[str, NDArray[Any]] = {}
        self._known_digests: dict[str, NDArray[Any]] = {}

    def part(self, number: int) -> Part | None:
        """Returns what a stage trains in place of the model, None if it trains the model."""
        if self.refusal or not self.plans[number].still_blocks:
            self._check_wish()
            return None
        if self._choices is None:
            self._choices = self._recorded() or self._decide()
        choice = self._choices[number]
        return Part(self, number, Cut(self.model, choice.blocks)) if choice.blocks else None

    def activations(self, number: int, cut: Cut) -> list[Activations]:
        """Returns the activations of the training and the validation split, if that has any."""
        assert self._choices is not None
        choice = self._choices[number]
        made = []
        for split in self._splits():
            views = range(choice.views if split is self.splits.train else 1)
            arrays = tuple(self._array(number, cut, split, view) for view in views)
            content = split.content
            if isinstance(content, Tokens) and cut.by_token:
                lengths = content.ids.lengths
                starts = np.concatenate([[0], lengths.cumsum()[:-1]]).astype(np.int64)
                made.append(Activations(arrays, starts, lengths, cut.reads))
            else:
                made.append(Activations(arrays, reads=cut.reads))
        return made

    # deciding

    def _refusal(self, parts: int) -> str:
        """Returns why no stage can be trained on kept activations, or nothing."""
        train, data = self.recipe.train, self.recipe.data
        content = self.splits.train.content
        if train.cache == "off":
            return "off"
        if isinstance(content, Tokens):
            if feeding.changes_of(self.recipe) is not None:
                return "data.text_augment changes the texts of every epoch"
            if content.targets is not None:
                return "networks that write are cut nowhere"
        elif data.augmentation.mixup or data.augmentation.cutmix:
            return "mixup and cutmix mix the pictures of every batch"
        if parts > 1:
            return f"{parts} devices share each batch"
        return ""

    def _check_wish(self) -> None:
        """Refuses to go without what the recipe asks for by name."""
        train = self.recipe.train
        if train.cache in ("disk", "memory") and self.refusal:
            raise TrainingError(f"train.cache: {train.cache} cannot be: {self.refusal}; set auto.")

    def _decide(self) -> dict[int, Choice]:
        """Decides for all stages, says so and records it."""
        train = self.recipe.train
        views = self._views()
        choices = {
            number: Choice(plan.still_blocks, views, why="")
            for number, plan in enumerate(self.plans)
        }
        size = {n: self._bytes(n, choices[n]) for n in choices if choices[n].blocks}
        store, where = self._store(), train.cache
        room = store.room()
        if where == "auto":
            where = "disk"
            if not _writable(store) and sum(size.values()) <= _MEMORY * free_memory():
                where, room = "memory", _MEMORY * free_memory()
        elif where == "memory":
            room = min(train.cache_gib * GIB, free_memory())
        left = room
        for number in sorted(size, key=lambda n: size[n]):
            if size[number] > left:
                said = f"{amount(size[number])} are wanted and there is room for {amount(left)}"
                if train.cache != "auto":
                    raise TrainingError(
                        f"train.cache: {train.cache}: stage '{self.plans[number].name}': {said}; "
                        "raise train.cache_gib, lower train.cache_views, or set auto."
                    )
                choices[number] = Choice(0, why=said)
            else:
                left -= size[number]
                choices[number] = dataclasses.replace(choices[number], where=where)
        why = ""
        if train.cache == "auto":
            choices, why = self._worthwhile(choices, size)
        self._record(choices)
        self._say(choices, size, why)
        return choices

    def _views(self) -> int:
        """Returns how many views of a training example there are to be."""
        if isinstance(self.splits.train.content, Tokens):
            return 1
        if not self._changed():
            return 1
        last = max(plan.last_epoch for plan in self.plans if plan.still_blocks)
        return min(self.recipe.train.cache_views, last)

    def _changed(self) -> bool:
        """Whether training examples are changed at random."""
        pictures = not isinstance(self.splits.train.content, Tokens)
        return pictures and any(self.recipe.data.augmentation.model_dump().values())

    def _worthwhile(
        self, choices: dict[int, Choice], size: Mapping[int, int]
    ) -> tuple[dict[int, Choice], str]:
        """Leaves out the stages that keeping activations makes no faster; says why.

        A stage without them computes its frozen blocks for all training and validation examples in
        every epoch. With them they are computed once per view, written, and read in every epoch.
        """
        kept = [n for n in choices if choices[n].blocks]
        if not kept:
            return choices, ""
        views = choices[kept[0]].views
        epochs = {n: self.plans[n].stage.epochs for n in kept}
        n, held = len(self.splits.train), len(self.splits.validation)
        once = views * n + held

        def none(why: str) -> tuple[dict[int, Choice], str]:
            return {k: Choice(0, why=why) for k in choices}, why

        before = sum(epochs.values()) * (n + held)
        if before <= once:
            return none(f"{sum(epochs.values())} epochs are no more than {views} views")
        if n < _FEW:
            return choices, ""
        if self._all_there(kept, choices):
            return choices, "another run has computed them"
        if before >= _PLAINLY * once and max(size[k] for k in kept) <= _SMALL * once:
            return choices, f"{once:,} examples pass through them in place of {before:,}"
        self._choices = choices
        seconds, deepest = self._seconds(kept[0]), max(choices[k].blocks for k in kept)
        gain = {}
        for k in kept:
            share = choices[k].blocks / deepest
            reading = (size[k] + epochs[k] * size[k] / views) / _DISK_RATE
            gain[k] = epochs[k] * (n + held) * seconds * share - reading
            if gain[k] <= 0:
                choices = {**choices, k: Choice(0, why="reading would take longer than computing")}
        spent, saved = once * seconds, sum(value for value in gain.values() if value > 0)
        if saved <= spent:
            return none(f"{_time(spent)} would be spent to save {_time(saved)}")
        return choices, f"{_time(spent)} spent, about {_time(saved)} saved"

    def _all_there(self, kept: Sequence[int], choices: Mapping[int, Choice]) -> bool:
        store = self._store()
        return all(
            choices[number].where == "disk"
            and store.has(self._key(Cut(self.model, choices[number].blocks), split, view))
            for number in kept
            for split in self._splits()
            for view in range(choices[number].views if split is self.splits.train else 1)
        )

    def _seconds(self, number: int) -> float:
        """Returns what an example costs up to a stage's cut, reading included, in seconds."""
        forward = self._forward_to(self._cuts(number, self.splits.train, 0))
        stream = feeding.plain(self.splits.train, self.recipe, view=None, batch_size=_BATCH)
        _, inputs = next(stream)
        forward(inputs)
        begin, count = time.perf_counter(), 0
        for (rows, inputs), _ in zip(stream, range(_MEASURED), strict=False):
            forward(inputs)
            count += len(rows)
        return (time.perf_counter() - begin) / max(count, 1)

    def _bytes(self, number: int, choice: Choice) -> int:
        cut = Cut(self.model, choice.blocks)
        total = 0
        for split in self._splits():
            views = choice.views if split is self.splits.train else 1
            total += 2 * views * int(np.prod(room_for(split.content, cut.shape)))
        return total

    def _say(self, choices: Mapping[int, Choice], size: Mapping[int, int], why: str) -> None:
        kept = [n for n in choices if choices[n].blocks]
        if not kept:
            if self.recipe.train.cache == "auto" and size:
                reasons = {choice.why for choice in choices.values() if choice.why}
                self.console.print(f"[bold]cache[/]    none: {escape('; '.join(sorted(reasons)))}")
            return
        names = ", ".join(f"'{self.plans[n].name}'" for n in kept)
        views = choices[kept[0]].views
        times = "once" if views == 1 else f"in {views} views"
        where = "on disk" if choices[kept[0]].where == "disk" else "in memory"
        room = amount(sum(size[n] for n in kept))
        said = f"{names}: frozen blocks are computed {times} and kept {where}, {room}"
        said += f"; {why}" if why else ""
        self.console.print(f"[bold]cache[/]    {escape(said)}", highlight=False)

    def _record(self, choices: Mapping[int, Choice]) -> None:
        stages = {self.plans[n].name: dataclasses.asdict(c) for n, c in choices.items()}
        self.run.write_json("cache", {"batch_size": _BATCH, "stages": stages})

    def _recorded(self) -> dict[int, Choice] | None:
        """Returns what was decided before the run was resumed."""
        if not self.run.has("cache"):
            return None
        said = self.run.read_json("cache")["stages"]
        return {number: Choice(**said[plan.name]) for number, plan in enumerate(self.plans)}

    # computing

    def _splits(self) -> list[Split]:
        validation = self.splits.validation
        return [self.splits.train, *([validation] if len(validation) else [])]

    def _store(self) -> Store:
        return Store(weights.kept("activations"), self.recipe.train.cache_gib * GIB)

    def _array(self, number: int, cut: Cut, split: Split, view: int) -> NDArray[Any]:
        assert self._choices is not None
        key = self._key(cut, split, view)
        if self._choices[number].where == "memory":
            if key not in self._kept:
                self._compute(number, split, view)
            return self._kept[key]
        store = self._store()
        values = store.get(key)
        if values is None:
            try:
                self._compute(number, split, view)
                values = store.get(key)
            except StoreError as error:
                if self.recipe.train.cache != "auto":
                    raise TrainingError(f"{error} train.cache=off trains without it.") from error
                self.console.print(f"  kept in memory: {escape(str(error))}", highlight=False)
                self._choices = {
                    n: dataclasses.replace(choice, where="memory")
                    for n, choice in self._choices.items()
                }
                return self._array(number, cut, split, view)
        assert values is not None, key
        return values

    def _cuts(self, number: int, split: Split, view: int) -> list[Cut]:
        """Returns where a stage is cut, and later ones whose frozen blocks are those of now."""
        assert self._choices is not None
        cuts: dict[int, Cut] = {}
        lowest = self._choices[number].blocks
        for later in range(number, len(self.plans)):
            choice = self._choices[later]
            lowest = min(lowest, self.plans[later].still_blocks)
            views = choice.views if split is self.splits.train else 1
            together = choice.where == self._choices[number].where
            if 0 < choice.blocks <= lowest and together and view < views:
                cuts.setdefault(choice.blocks, Cut(self.model, choice.blocks))
        return list(cuts.values())

    def _forward_to(self, cuts: Sequence[Cut]) -> Forward:
        """Builds what computes them, or takes the last one if it does the same."""
        digests = tuple(cut.digest() for cut in cuts)
        if self._forward is None or self._forward[0] != digests:
            self._forward = digests, Forward(cuts)
        return self._forward[1]

    def _compute(self, number: int, split: Split, view: int) -> None:
        """Computes what this stage, and later ones whose blocks stay as they are, want."""
        cuts = self._cuts(number, split, view)
        forward = self._forward_to(cuts)
        shown = split.name if view == 0 else f"{split.name}, view {view + 1}"
        begin = time.perf_counter()
        dtype: Any = np.float16
        while True:
            try:
                with self._tables(number, cuts, split, view, dtype) as tables:
                    self._run(forward, cuts, split, view, tables)
                break
            except _TooLargeError:  # for half precision
                dtype = np.float32
        self.console.print(
            f"  computed {len(split):,} {shown} in {_time(time.perf_counter() - begin)}",
            highlight=False,
        )

    @contextlib.contextmanager
    def _tables(
        self, number: int, cuts: Sequence[Cut], split: Split, view: int, dtype: Any
    ) -> Iterator[list[NDArray[Any]]]:
        """Yields an array to be filled for every cut."""
        assert self._choices is not None
        keys = [self._key(cut, split, view) for cut in cuts]
        shapes = [room_for(split.content, cut.shape) for cut in cuts]
        if self._choices[number].where == "memory":
            tables = [np.zeros(shape, dtype) for shape in shapes]
            yield tables
            self._kept |= dict(zip(keys, tables, strict=True))
            return
        store = self._store()
        with contextlib.ExitStack() as stack:
            yield [
                stack.enter_context(store.writing(key, shape, dtype, self._facts(cut, split, view)))
                for key, shape, cut in zip(keys, shapes, cuts, strict=True)
            ]

    def _run(
        self,
        forward: Forward,
        cuts: Sequence[Cut],
        split: Split,
        view: int,
        tables: Sequence[NDArray[Any]],
    ) -> None:
        """Computes the activations of all examples of a split in one view."""
        content = split.content
        starts: Any = None
        if isinstance(content, Tokens):
            lengths = content.ids.lengths
            starts = np.concatenate([[0], lengths.cumsum()[:-1]])
        changed = view if split is self.splits.train and self._changed() else None
        digests = self._digests(split) if isinstance(content, Files | Encoded) else None
        stream = feeding.plain(split, self.recipe, view=changed, batch_size=_BATCH, digests=digests)
        for rows, inputs in stream:
            for cut, table, values in zip(cuts, tables, forward(inputs), strict=True):
                largest = float(np.abs(values).max(initial=0.0))
                if table.dtype == np.float16 and not largest < _LARGEST:
                    raise _TooLargeError
                if not cut.by_token:
                    table[rows] = values
                    continue
                for row, value in zip(rows, values, strict=True):
                    size = int(lengths[row])
                    table[starts[row] : starts[row] + size] = value[:size]

    def _facts(self, cut: Cut, split: Split, view: int) -> dict[str, Any]:
        return {
            "backbone": models.backbone_of(self.model)[0].name,
            "cut": cut.name,
            "examples": len(split),
            "split": split.name,
            "view": view,
            "data": self.splits.path,
        }

    def _key(self, cut: Cut, split: Split, view: int) -> str:
        """Returns what decides activations: network, weights, examples, what is made of them."""
        recipe = self.recipe
        changed = split is self.splits.train and self._changed()
        facts: list[Any] = [_VERSION, keras.__version__, keras.backend.backend(), _BATCH]
        facts += [keras.config.dtype_policy().name, recipe.train.precision, cut.name, cut.digest()]
        if not isinstance(split.content, Tokens):
            facts += [recipe.backbone.side, recipe.backbone.channels, recipe.data.resize]
            facts.append(inspection.PIXELS)
        if changed:
            facts += [recipe.data.augmentation.model_dump_json(), recipe.train.seed, view]
        whole = hashlib.sha256(repr(facts).encode())
        for digest in self._digests(split):
            whole.update(digest.tobytes())
        return whole.hexdigest()[:40]

    def _digests(self, split: Split) -> NDArray[Any]:
        """Returns of each example a digest of what a network gets of it; computed once."""
        if split.digests is not None:
            return split.digests
        if split.name not in self._known_digests:
            found = np.asarray(list(_digests(split)), np.dtype((np.void, 32)))
            self._known_digests[split.name] = found
        return self._known_digests[split.name]


class _TooLargeError(Exception):
    """A number that float16 does not hold."""


def _digests(split: Split) -> Iterator[bytes]:
    """Yields of each example a digest of what a network gets of it."""
    content = split.content
    if isinstance(content, Tokens):
        columns: list[Ragged] = [content.ids]
        if content.segments is not None:
            columns.append(content.segments)
        facts = repr((content.pad_id, content.batching.buckets)).encode()
        for row in range(len(content)):
            texts = (np.int64(c.lengths[row]).tobytes() + c[row].tobytes() for c in columns)
            yield hashlib.sha256(facts + b"".join(texts)).digest()
    elif isinstance(content, Arrays):
        facts = repr((content.values.dtype, content.values.shape[1:])).encode()
        for value in content.values:
            yield hashlib.sha256(facts + value.tobytes()).digest()
    elif isinstance(content, Encoded):
        for data in content.data:
            yield hashlib.sha256(data).digest()
    else:
        assert isinstance(content, Files), type(content)
        for path in content.paths:
            with Path(path).open("rb") as file:
                yield hashlib.file_digest(file, "sha256").digest()


def _writable(store: Store) -> bool:
    try:
        store.folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(store.folder, os.W_OK)


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
