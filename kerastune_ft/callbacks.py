"""Keras callbacks for what Keras lacks; usable in any script, without a recipe.

audit = FreezeAudit()
model.fit(..., callbacks=[audit, StopOnNaN()])
print(audit.report)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import keras

from kerastune_ft import models
from kerastune_ft.errors import NotFiniteError, TrainingError
from kerastune_ft.gradual import GradualUnfreezing as GradualUnfreezing
from kerastune_ft.gradual import StageRates as StageRates
from kerastune_ft.states import digest_of, sync

if TYPE_CHECKING:
    from rich.console import Console

_Role: TypeAlias = Literal["frozen", "trained", "statistics"]


@dataclass(frozen=True)
class AuditReport:
    """What a freeze audit found.

    Args:
        frozen: Weights that had to stay, BatchNormalization statistics included unless their
            layer trains.
        frozen_moved: Paths of those that moved; empty in a sound stage.
        trained: Weights that were to move.
        trained_still: Paths of those that stayed. A few are normal (a dead unit's bias).
        blocks_still: Blocks that were to train and of which nothing moved; empty in a sound stage.
        statistics: Weights that no gradient reaches but whose layer trains, and moves them itself:
            BatchNormalization's under `batch_norm: train`.
        statistics_still: How many of them stayed.
    """

    frozen: int
    frozen_moved: tuple[str, ...]
    trained: int
    trained_still: tuple[str, ...]
    blocks_still: tuple[str, ...]
    statistics: int = 0
    statistics_still: int = 0

    @property
    def passed(self) -> bool:
        """Whether what was frozen stayed and what was trainable moved."""
        return not self.frozen_moved and not self.blocks_still

    @classmethod
    def of(cls, record: dict[str, Any]) -> AuditReport:
        """Returns what `record` said."""
        made: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in record.items()
        }
        made.pop("passed", None)
        return cls(**made)

    def record(self) -> dict[str, Any]:
        """Returns it as plain data for `audit.json`."""
        return {"passed": self.passed, **asdict(self)}


class FreezeAudit(keras.callbacks.Callback):
    """Proves that a fit trained what was marked trainable and nothing else.

    Takes a sha256 of every weight when training begins and compares when it ends. The frozen
    ones must be bit-identical, and of every trainable block something must have moved.

    Args:
        raises: Whether a failed audit raises; otherwise read `report`.
        whole: The model that is looked at, where a part of it is fitted; None is what is fitted.

    Raises:
        TrainingError: At the end of training, if the audit fails.
    """

    def __init__(self, raises: bool = True, whole: keras.Model | None = None) -> None:
        super().__init__()
        self.raises = raises
        self.whole = whole
        self.report: AuditReport | None = None
        self._before: dict[str, tuple[_Role, bytes]] = {}
        self._restored = False

    def state(self) -> dict[str, Any]:
        """Returns the digests for `json`: the audit of a resumed stage compares with its start."""
        return {path: [role, digest.hex()] for path, (role, digest) in self._before.items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back what `state` said; the next training does not take digests of its own."""
        self._before = {path: (role, bytes.fromhex(text)) for path, (role, text) in state.items()}
        self._restored = True

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Takes the digests."""
        self.report = None
        if self._restored:
            self._restored = False
            return
        model = self.whole or self.model
        role: dict[int, _Role] = {id(v): "trained" for v in model.trainable_variables}
        for layer in models.layers_of(model):
            normalises = isinstance(layer, keras.layers.BatchNormalization)
            if normalises and models.statistics_move(layer):
                role |= {id(v): "statistics" for v in layer.non_trainable_variables}
        self._before = {
            path: (role.get(id(weight), "frozen"), digest_of(weight))
            for _, path, weight in models.named_weights(model)
        }

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Compares."""
        sync(self.model)
        frozen_moved: list[str] = []
        trained_still: list[str] = []
        statistics_still = 0
        moved_blocks: set[str] = set()
        trained_blocks: dict[str, None] = {}
        for block, path, weight in models.named_weights(self.whole or self.model):
            role, digest = self._before[path]
            moved = digest_of(weight) != digest
            if role == "trained":
                trained_blocks[block] = None
                if moved:
                    moved_blocks.add(block)
                else:
                    trained_still.append(path)
            elif role == "statistics":
                statistics_still += not moved
            elif moved:
                frozen_moved.append(path)
        roles = [role for role, _ in self._before.values()]
        self.report = AuditReport(
            frozen=roles.count("frozen"),
            frozen_moved=tuple(frozen_moved),
            trained=roles.count("trained"),
            trained_still=tuple(trained_still),
            blocks_still=tuple(block for block in trained_blocks if block not in moved_blocks),
            statistics=roles.count("statistics"),
            statistics_still=statistics_still,
        )
        if self.raises and not self.report.passed:
            raise TrainingError(_failure(self.report))


def _failure(report: AuditReport) -> str:
    parts = []
    if report.frozen_moved:
        shown = ", ".join(report.frozen_moved[:5])
        parts.append(f"{len(report.frozen_moved)} frozen weights moved ({shown})")
    if report.blocks_still:
        parts.append(f"nothing moved in {', '.join(report.blocks_still)}")
    return (
        f"freeze audit failed: {'; '.join(parts)}. Expected frozen weights to stay bit-identical "
        "and every trainable block to move; was the model compiled after `unfreeze`?"
    )


class StopOnNaN(keras.callbacks.Callback):
    """Ends training with an error at the first loss that is not a finite number.

    Args:
        stage: Named in the error.
        first_step: Steps of the first epoch that were done before, in a resumed fit.

    Raises:
        NotFiniteError: With the epoch, the step and the learning rate.
    """

    def __init__(self, stage: str = "training", first_step: int = 0) -> None:
        super().__init__()
        self.stage = stage
        self.first_step = first_step
        self._epoch = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Remembers the epoch."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Looks at the loss."""
        loss = float((logs or {}).get("loss", 0.0))
        if not math.isfinite(loss):
            self._stop("loss", loss, f", step {self.first_step + batch + 1}")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Looks at the loss on validation, which sees what the last step did."""
        self.first_step = 0
        loss = float((logs or {}).get("val_loss", 0.0))
        if not math.isfinite(loss):
            self._stop("loss on validation", loss, "")

    def _stop(self, what: str, loss: float, step: str) -> None:
        rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        raise NotFiniteError(
            f"{self.stage}: the {what} is {loss} at epoch {self._epoch + 1}{step}, "
            f"learning rate {rate:.3g}; try a tenth of it, or train.optimizer.clipnorm=1.0."
        )


class EpochRows(keras.callbacks.Callback):
    """Makes a row of numbers after every epoch and hands it on.

    A row has `epoch` (from 1, over all stages), `stage`, `learning_rate` (of the epoch's last
    step), the metrics, `seconds` (validation included) and `examples_per_second` (training
    alone).

    Args:
        stage: Written into every row.
        examples: Training examples in an epoch.
        receivers: Called in order with every finished row.
    """

    def __init__(
        self, stage: str, examples: int, receivers: list[Callable[[dict[str, Any]], None]]
    ) -> None:
        super().__init__()
        self.stage = stage
        self.examples = examples
        self.receivers = receivers
        self._begin = self._trained = 0.0
        self._before = 0.0
        self._runs = False

    def state(self) -> dict[str, Any]:
        """Returns for `json` what the running epoch has cost so far."""
        return {"seconds": time.monotonic() - self._begin if self._runs else 0.0}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back what `state` said: the resumed epoch has cost that already."""
        self._before = float(state["seconds"])

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Starts the clock."""
        self._begin = self._trained = time.monotonic() - self._before
        self._before = 0.0
        self._runs = True

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Reads the clock: the last one of the epoch counts."""
        self._trained = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Makes the row."""
        self._runs = False
        sync(self.model)
        rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        row = {
            "epoch": epoch + 1,
            "stage": self.stage,
            "learning_rate": rate,
            **{name: float(value) for name, value in sorted((logs or {}).items(), key=_rank)},
            "seconds": time.monotonic() - self._begin,
            "examples_per_second": self.examples / max(1e-9, self._trained - self._begin),
        }
        for receive in self.receivers:
            receive(row)


class ProgressBar(keras.callbacks.Callback):
    """Shows one moving line per epoch on a terminal; silent where there is none.

    Args:
        console: Rich's console.
        epochs: Number of the stage's last epoch, counted over all stages.
        steps: Steps per epoch.
    """

    def __init__(self, console: Console, epochs: int, steps: int) -> None:
        super().__init__()
        self.console = console
        self.epochs = epochs
        self.steps = steps
        self.first_step = 0
        self._bar: Any = None
        self._line: Any = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Opens the line."""
        if not self.console.is_terminal:
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        self._bar.start()
        title = f"epoch {epoch + 1:>2}/{self.epochs}"
        self._line = self._bar.add_task(title, total=self.steps, figures="")

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Moves the line."""
        if self._bar is not None:
            figures = "  ".join(
                f"{name} {float(value):.4f}" for name, value in (logs or {}).items()
            )
            self._bar.update(self._line, completed=self.first_step + batch + 1, figures=figures)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Removes the line; the epoch's own row takes its place."""
        self.first_step = 0
        self.close()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Removes the line."""
        self.close()

    def close(self) -> None:
        """Removes the line if there is one, after an interruption too."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _rank(item: tuple[str, Any]) -> tuple[bool, bool, str]:
    """Sorts training before validation, and the loss before the metrics."""
    name = item[0]
    return name.startswith("val_"), not name.endswith("loss"), name
