"""What happened in training, as rows, and as lines for a terminal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kerastune_ft import callbacks

if TYPE_CHECKING:
    from rich.console import Console

    from kerastune_ft.stages import StagePlan


@dataclass
class History:
    """What happened: one row per epoch, one audit per stage.

    Args:
        rows: See `callbacks.EpochRows`.
        audits: Stage name to audit report.
        stopped_early: Names of stages that ended before their last epoch.
        best_epoch: Number of the epoch whose weights the run keeps, None for the last.
        averaging: What averaging of weights did.
        warnings: What went wrong on the way, a sentence each.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    audits: dict[str, callbacks.AuditReport] = field(default_factory=dict)
    stopped_early: list[str] = field(default_factory=list)
    best_epoch: int | None = None
    averaging: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """Returns it for `json`."""
        return {
            "rows": self.rows,
            "audits": {name: report.record() for name, report in self.audits.items()},
            "stopped_early": self.stopped_early,
            "best_epoch": self.best_epoch,
            "warnings": self.warnings,
        }

    @classmethod
    def of(cls, record: dict[str, Any]) -> History:
        """Returns what `record` said."""
        audits = {n: callbacks.AuditReport.of(report) for n, report in record["audits"].items()}
        return cls(**{**record, "audits": audits})


def epoch_line(row: dict[str, Any], last_epoch: int) -> str:
    """Returns an epoch's row as one line for a terminal."""
    figures = [
        f"{name} {value:.4f}" if abs(value) < 1e5 else f"{name} {value:.4g}"
        for name, value in row.items()
        if name not in ("epoch", "stage", "learning_rate", "seconds", "examples_per_second")
    ]
    remaining = (last_epoch - row["epoch"]) * row["seconds"]
    return (
        f"  epoch {row['epoch']:>2}/{last_epoch}  {'  '.join(figures)}  "
        f"rate {row['learning_rate']:.2g}  {row['examples_per_second']:.0f} examples/s  "
        f"{_duration(row['seconds'])}" + (f"  {_duration(remaining)} left" if remaining else "")
    )


def show_epoch(console: Console, last_epoch: int, row: dict[str, Any]) -> None:
    """Prints it."""
    console.print(epoch_line(row, last_epoch))


def headline(number: int, stages: int, stage_plan: StagePlan) -> str:
    """Returns a stage as a line, before it begins; `number` counts from 1."""
    stage = stage_plan.stage
    return (
        f"[bold]stage {number}/{stages}[/]  {stage_plan.name}: "
        f"{len(stage_plan.trainable_blocks) - 1} blocks and the head, "
        f"{stage_plan.trainable_parameters:,} parameters train; up to {stage.epochs} epochs of "
        f"{stage_plan.steps} steps at {stage.learning_rate:g}, {stage.schedule}"
    )


def audit_line(report: callbacks.AuditReport, stopped_early: bool) -> str:
    """Returns what the freeze audit found as a line."""
    early = "stopped early; " if stopped_early else ""
    return (
        f"  {early}audit passed: {report.frozen} frozen weights bit-identical, "
        f"{report.trained - len(report.trained_still)} of {report.trained} trained weights moved"
        + (f", {report.statistics} batch-norm statistics free" if report.statistics else "")
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
