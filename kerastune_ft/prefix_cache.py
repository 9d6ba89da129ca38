"""Trains stages on what their frozen blocks give, computed once and kept.

Of a stage whose lowest blocks are frozen, every epoch would compute the same from the same
examples. Instead the activations where the first trainable block begins are computed once, kept in
half precision and read in every epoch; the blocks above them and the head alone are trained. In
one pass they are computed for the later stages, too, whose frozen blocks stay as they are.

Examples that are not changed at random are those of a pool of both splits: what is on disk is found
again however they are divided, by every fold of a cross-validation.

    cache = PrefixCache(model, recipe, splits, plans, run, console, parts=1)
    part = cache.part(0)             # None: this stage trains on the examples themselves
    part.fill()                      # False: there is no room after all, part(0) is None now
    part.model, part.train, part.validation
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import PIL
import tensorflow as tf
from numpy.typing import NDArray
from rich.markup import escape

from kerastune_ft import models
from kerastune_ft.backbones import weights
from kerastune_ft.data import Split, Splits, feeding, inspection, pools
from kerastune_ft.data.activations import Activations, room_for
from kerastune_ft.data.pools import Pool
from kerastune_ft.data.tables import Encoded, Files
from kerastune_ft.data.texts import Tokens
from kerastune_ft.errors import TrainingError
from kerastune_ft.prefixes import Cut, Forward
from kerastune_ft.stages import StagePlan
from kerastune_ft.stores import GIB, Store, StoreError, amount, free_memory

if TYPE_CHECKING:
    from rich.console import Console

    from kerastune_ft.recipe import Recipe
    from kerastune_ft.runs import Run

_VERSION = 3  # raised when what is kept changes
_BATCH = 32  # fixed: other batches give other last bits, and the same seed must give the same run
_FEW = 256  # examples below which nothing is estimated
_PLAINLY = 2  # times fewer passes: nothing is estimated either, if examples are as small as
_SMALL = 60_000  # bytes, which are read sooner than any network takes a picture or a text
_LARGEST = 30_000.0  # half of what float16 holds
_MEMORY = 0.25  # share of the free memory that `auto` takes
_WORTH = 1.25  # times what is spent is to be saved: both are estimates
_DISK_RATE = 300e6  # bytes a second, written or read; slower than any disk of today
_RATES = {"cpu": 3e10}  # multiplications a second: ResNet50 does more, MobileNet less
_RATE = 2e12  # of other devices
_PICTURE = 2e-4  # seconds to read and decode one


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

    def fill(self) -> bool:
        """Takes the activations from where they are kept, or computes them.

        Returns:
            Whether they are there. If not, there is no room for them, and the stage is trained
            without: from now on the cache has no part for it.
        """
        found = self.cache.activations(self.number, self.cut)
        if found is None:
            return False
        self.train = found[0]
        self.validation = found[1] if len(found) > 1 else None
        return True


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
        kind: Of the device.
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
        kind: str = "cpu",
    ) -> None:
        self.model = model
        self.recipe = recipe
        self.splits = splits
        self.plans = plans
        self.run = run
        self.console = console
        self.kind = kind
        self.refusal = self._refusal(parts)
        self._choices: dict[int, Choice] | None = None
        self._forward: tuple[tuple[str, ...], Forward] | None = None
        self._kept: dict[str, tuple[int, NDArray[Any]]] = {}  # with the blocks of the cut
        self._dtypes: dict[tuple[int, str], np.dtype[Any]] = {}  # of the last view
        self._known_digests: dict[str, NDArray[Any]] = {}
        self._known_cuts: dict[int, str] = {}

    def part(self, number: int) -> Part | None:
        """Returns what a stage trains in place of the model, None if it trains the model."""
        if self.refusal or not self.plans[number].still_blocks:
            self._check_wish()
            return None
        if self._choices is None:
            self._choices = self._recorded() or self._decide()
        choice = self._choices[number]
        return Part(self, number, Cut(self.model, choice.blocks)) if choice.blocks else None

    def activations(self, number: int, cut: Cut) -> list[Activations] | None:
        """Returns the activations of the training and the validation split, if that has any.

        None if there is no room for them after all; the stage has no part then.
        """
        assert self._choices is not None
        self._known_cuts.clear()  # former stages have trained some of the weights
        self._dtypes.clear()
        made = None
        while made is None and self._choices[number].blocks:
            try:
                made = [a for pool in self._pools for a in self._of_pool(number, cut, pool)]
            except StoreError as error:
                self._give_way(number, error)
        wanted = {self._choices[n].blocks for n in self._unmoved(number) if n > number}
        self._kept = {key: kept for key, kept in self._kept.items() if kept[0] in wanted}
        if not any(choice.blocks for n, choice in self._choices.items() if n > number):
            self._forward = None
            vars(self).pop("_pools", None)
        return made

    def _of_pool(self, number: int, cut: Cut, pool: Pool) -> list[Activations]:
        """Returns the activations of each of its splits."""
        assert self._choices is not None
        examples = pool.examples
        views = range(self._choices[number].views if examples is self.splits.train else 1)
        arrays = tuple(self._array(number, cut, examples, view) for view in views)
        content = examples.content
        if isinstance(content, Tokens) and cut.by_token:
            lengths = content.ids.lengths
            starts = np.concatenate([[0], lengths.cumsum()[:-1]]).astype(np.int64)
            return [Activations(arrays, starts[r], lengths[r], cut.reads) for r in pool.rows]
        return [Activations(arrays, reads=cut.reads, rows=rows) for rows in pool.rows]

    def _give_way(self, number: int, error: StoreError) -> None:
        """Keeps in memory what cannot be kept where it was to be, or trains the stage without."""
        if self.recipe.train.cache != "auto":
            raise TrainingError(f"{error} train.cache=off trains without it.") from error
        assert self._choices is not None
        choice, why = self._choices[number], str(error).rstrip(".")
        wanted, spare = self._bytes(number, choice), _MEMORY * free_memory()
        if choice.where == "disk" and wanted <= spare:
            said, choice = "kept in memory", dataclasses.replace(choice, where="memory", why=why)
        else:
            if choice.where == "disk":
                why += f"; {amount(wanted)} are wanted and the memory to spare is {amount(spare)}"
            said, choice = f"'{self.plans[number].name}' is trained without", Choice(0, why=why)
        self.console.print(f"  {escape(f'{said}: {why}')}", highlight=False)
        self._choices = {**self._choices, number: choice}
        self._record(self._choices)

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
            if not _writable(store):
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
        Nothing is measured and no other run is asked: whether activations are kept decides the
        last bits of the weights, which are to be the same in every run.
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
        if n + held < _FEW:
            return choices, ""
        if before >= _PLAINLY * once and max(size[k] for k in kept) <= _SMALL * once:
            return choices, f"{once:,} examples pass through them in place of {before:,}"
        seconds = {k: self._seconds(choices[k].blocks) for k in kept}
        gain = {}
        for k in kept:
            reading = (size[k] + epochs[k] * size[k] / views) / _DISK_RATE
            gain[k] = epochs[k] * (n + held) * seconds[k] - reading
            if gain[k] <= 0:
                choices = {**choices, k: Choice(0, why="reading would take longer than computing")}
        left = [k for k in kept if choices[k].blocks]
        spent = once * max((seconds[k] for k in left), default=0.0)
        saved = sum(gain[k] for k in left)
        if left and saved <= _WORTH * spent:
            return none(f"about {_time(spent)} would be spent to save {_time(saved)}")
        return choices, f"about {_time(spent)} spent to save {_time(saved)}"

    def _seconds(self, blocks: int) -> float:
        """Returns about what an example costs up to a cut, in seconds, by counting."""
        contents = [split.content for split in self._parts]
        lengths = [some.ids.lengths for some in contents if isinstance(some, Tokens)]
        tokens = float(np.concatenate(lengths).mean()) if lengths else 1.0
        computing = Cut(self.model, blocks).multiplications(tokens)
        reading = _PICTURE if isinstance(contents[0], Files | Encoded) else 0.0
        return computing / _RATES.get(self.kind, _RATE) + reading

    def _bytes(self, number: int, choice: Choice) -> int:
        cut, train = Cut(self.model, choice.blocks), self.splits.train
        rooms = ((split, room_for(split.content, cut.shape)) for split in self._parts)
        return sum(2 * (choice.views if s is train else 1) * math.prod(room) for s, room in rooms)

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

    @property
    def _parts(self) -> list[Split]:
        """The splits that have activations."""
        return [self.splits.train, *filter(len, [self.splits.validation])]

    @functools.cached_property
    def _pools(self) -> list[Pool]:
        """What activations are computed of: training first, then validation, if there is any.

        Training examples that change at random are on their own, since their places decide how.
        """
        train, *_ = parts = self._parts
        alone = [Pool(parts.pop(0), (np.arange(len(train)),))] if self._changed() else []
        return [*alone, *([pools.of(parts, [*map(self._digests, parts)])] if parts else [])]

    def _store(self) -> Store:
        return Store(weights.kept("activations"), self.recipe.train.cache_gib * GIB)

    def _array(self, number: int, cut: Cut, split: Split, view: int) -> NDArray[Any]:
        key = self._key(cut, split, view)
        values = self._kept[key][1] if key in self._kept else self._store().get(key)
        if values is None:
            self._compute(number, split, view)
            values = self._kept[key][1]
        self._dtypes[cut.blocks, split.name] = values.dtype
        return values

    def _unmoved(self, number: int) -> Iterator[int]:
        """Yields a stage, if it has activations, and those later ones whose blocks stay till then.

        What is frozen in them is as it is now.
        """
        assert self._choices is not None
        lowest = self.plans[number].still_blocks
        for later in range(number, len(self.plans)):
            lowest = min(lowest, self.plans[later].still_blocks)
            if 0 < self._choices[later].blocks <= lowest:
                yield later

    def _cuts(self, number: int, split: Split, view: int) -> list[Cut]:
        """Returns where a stage is cut, and later ones whose frozen blocks are those of now."""
        assert self._choices is not None
        cuts: dict[int, Cut] = {}
        for later in self._unmoved(number):
            choice = self._choices[later]
            views = choice.views if split is self.splits.train else 1
            if choice.where == self._choices[number].where and view < views:
                cuts.setdefault(choice.blocks, Cut(self.model, choice.blocks))
        return list(cuts.values())

    def _forward_to(self, cuts: Sequence[Cut]) -> Forward:
        """Builds what computes them, or takes the last one if it does the same."""
        digests = tuple(map(self._digest_of, cuts))
        if self._forward is None or self._forward[0] != digests:
            self._forward = digests, Forward(cuts)
        return self._forward[1]

    def _compute(self, number: int, split: Split, view: int) -> None:
        """Computes what this stage, and later ones whose blocks stay as they are, want."""
        cuts = self._cuts(number, split, view)
        forward = self._forward_to(cuts)
        shown = split.name if view == 0 else f"{split.name}, view {view + 1}"
        begin = time.perf_counter()
        half = np.dtype(np.float16)
        dtypes = [self._dtypes.get((cut.blocks, split.name), half) for cut in cuts]
        while True:
            try:
                with self._tables(number, cuts, split, view, dtypes) as tables:
                    self._run(forward, cuts, split, view, tables)
                break
            except _TooLargeError as error:  # for half precision
                for place in error.places:
                    dtypes[place] = np.dtype(np.float32)
        for cut, dtype in zip(cuts, dtypes, strict=True):
            self._dtypes[cut.blocks, split.name] = dtype
        self.console.print(
            f"  computed {len(split):,} {shown} in {_time(time.perf_counter() - begin)}",
            highlight=False,
        )

    @contextlib.contextmanager
    def _tables(
        self,
        number: int,
        cuts: Sequence[Cut],
        split: Split,
        view: int,
        dtypes: Sequence[np.dtype[Any]],
    ) -> Iterator[list[NDArray[Any]]]:
        """Yields an array to be filled for every cut."""
        assert self._choices is not None
        keys = [self._key(cut, split, view) for cut in cuts]
        facts = [self._facts(cut, split, view) for cut in cuts]
        shapes = [room_for(split.content, cut.shape) for cut in cuts]
        arrays = list(zip(shapes, dtypes, strict=True))
        with contextlib.ExitStack() as stack:
            if self._choices[number].where == "memory":
                wanted = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in arrays)
                spare = _MEMORY * free_memory()
                if self.recipe.train.cache == "auto" and wanted > spare:
                    said = f"{amount(wanted)} are wanted and the memory to spare is {amount(spare)}"
                    raise StoreError(said)
                tables = [np.zeros(shape, dtype) for shape, dtype in arrays]
            else:
                store = self._store()
                tables = [
                    stack.enter_context(store.writing(key, *array, said))
                    for key, array, said in zip(keys, arrays, facts, strict=True)
                ]
            yield tables
        for key, cut, table in zip(keys, cuts, tables, strict=True):
            table.flags.writeable = False
            # An entry of the store stays mapped, even if another process removes it.
            self._kept[key] = cut.blocks, table

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
            found = forward(inputs)
            large = [
                place
                for place, (table, values) in enumerate(zip(tables, found, strict=True))
                if table.dtype == np.float16
                and not float(np.abs(values).max(initial=0.0)) < _LARGEST
            ]
            if large:
                raise _TooLargeError(large)
            for cut, table, values in zip(cuts, tables, found, strict=True):
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
        facts += [keras.config.dtype_policy().name, recipe.train.precision, cut.name]
        facts += [self._digest_of(cut), self.kind, *_versions()]
        if not isinstance(split.content, Tokens):
            facts += [recipe.backbone.side, recipe.backbone.channels, recipe.data.resize]
            facts.append(inspection.PIXELS)
        if changed:
            facts += [recipe.data.augmentation.model_dump_json(), recipe.train.seed, view]
        whole = hashlib.sha256(repr(facts).encode())
        for digest in self._digests(split):
            whole.update(digest.tobytes())
        return whole.hexdigest()[:40]

    def _digest_of(self, cut: Cut) -> str:
        """Returns the digest of a cut, computed once in a stage, which leaves it as it is."""
        if cut.blocks not in self._known_cuts:
            self._known_cuts[cut.blocks] = cut.digest()
        return self._known_cuts[cut.blocks]

    def _digests(self, split: Split) -> NDArray[Any]:
        if split.digests is None and split.name not in self._known_digests:
            self._known_digests[split.name] = feeding.digests(split)
        return self._known_digests[split.name] if split.digests is None else split.digests


class _TooLargeError(Exception):
    """Numbers that float16 does not hold."""

    def __init__(self, places: Sequence[int]) -> None:
        super().__init__(places)
        self.places = places


def _versions() -> Iterator[str]:
    """Yields the versions of what reads pictures and of what computes."""
    yield tf.__version__
    yield PIL.__version__
    backend = keras.backend.backend()
    if backend != "tensorflow":
        yield metadata.version(backend)
    if "keras_hub" in sys.modules:
        yield sys.modules["keras_hub"].__version__


def _writable(store: Store) -> bool:
    try:
        store.folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(store.folder, os.W_OK)


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
