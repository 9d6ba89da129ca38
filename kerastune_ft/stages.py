"""What each stage will do, before it does it.

plans = plan(model, recipe.train, steps=40)
plans[1].trainable_blocks, plans[1].rates(model)
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import keras

from kerastune_ft import models, optimizers, prefixes, strategies
from kerastune_ft.data import Splits, images
from kerastune_ft.errors import TrainingError
from kerastune_ft.recipe import EarlyStopping
from kerastune_ft.tasks import TASKS

if TYPE_CHECKING:
    from kerastune_ft.recipe import Recipe, Stage, Train


@dataclass(frozen=True)
class StagePlan:
    """What one stage will do, before it does it.

    Args:
        name: As the recipe says, or made from what is trainable; unique in a run.
        stage: The recipe's stage.
        first_epoch: Epochs of the stages before.
        steps: Per epoch.
        trainable_blocks: Names, bottom first, `head` last.
        trainable_parameters: Numbers that training moves.
        still_blocks: Blocks, counted from the input, that give the same in every step.
    """

    name: str
    stage: Stage
    first_epoch: int
    steps: int
    trainable_blocks: tuple[str, ...]
    trainable_parameters: int
    still_blocks: int = 0

    def enter(self, model: keras.Model) -> None:
        """Makes trainable what the stage trains, and nothing else."""
        models.unfreeze(
            model,
            self.stage.trainable_blocks,
            batch_norm=self.stage.batch_norm,
            parameters=self.stage.parameters,
        )

    def rates(self, model: keras.Model) -> dict[str, float] | None:
        """Returns the rate of every variable as a share of `learning_rate`, None if all are 1."""
        stage = self.stage
        if stage.rate_decay == 1 and stage.head_learning_rate in (None, stage.learning_rate):
            return None
        *body, head = models.blocks(model)
        of_head = (stage.head_learning_rate or stage.learning_rate) / stage.learning_rate
        found = {weight.path: of_head for weight in head.weights}
        for depth, block in enumerate(reversed(body), 1):
            found |= {weight.path: stage.rate_decay**depth for weight in block.weights}
        return found

    def optimizer(
        self,
        model: keras.Model,
        train: Train,
        learning_rate: float | optimizers.StageSchedule,
        average: float | None = None,
    ) -> keras.optimizers.Optimizer:
        """Returns the stage's optimizer, built on what trains now.

        Keras would create the slots while it traces the train step, and TensorFlow traces a step
        that creates variables twice: building first halves the time to the first step.
        """
        *_, head = models.blocks(model)
        made = optimizers.make(
            self.stage.optimizer or train.optimizer,
            learning_rate,
            rates=self.rates(model),
            accumulate_steps=train.accumulate_steps,
            average=average,
            pull=train.l2_sp,
            unpulled=[weight.path for weight in head.weights],
        )
        if train.precision == "mixed_float16":
            made = keras.optimizers.LossScaleOptimizer(made)
        made.build(model.trainable_variables)
        return made

    def stopping(self, train: Train) -> EarlyStopping | None:
        """Returns when the stage ends early, None for never."""
        choice = self.stage.early_stopping
        if choice == "off":
            return None
        return train.early_stopping if isinstance(choice, str) else choice

    @property
    def last_epoch(self) -> int:
        """Epochs when the stage is over, unless it stops early."""
        return self.first_epoch + self.stage.epochs

    def schedule(self) -> optimizers.StageSchedule:
        """Returns the stage's learning rate as a function of its optimizer steps."""
        steps = self.stage.epochs * self.steps
        return optimizers.StageSchedule(
            self.stage.schedule,
            self.stage.learning_rate,
            steps=steps,
            warmup_steps=min(round(self.stage.warmup_epochs * self.steps), steps - 1),
        )


def check(recipe: Recipe, splits: Splits) -> None:
    """Refuses what the recipe asks of its data and the data cannot give, before anything is built.

    Raises:
        DataError: If `train.class_weight` or `data.sampling` names a class that the data lacks, or
            pictures do not have `backbone.channels`.
        TrainingError: If early stopping monitors a validation split that is empty.
    """
    splits.class_weights(recipe.train.class_weight)
    splits.sampling(recipe.data.sampling)
    if TASKS[recipe.task.name].modality == "image":
        images.check_channels(splits.all, recipe.backbone.channels)
    if len(splits.validation):
        return
    train = recipe.train
    watched = [train.early_stopping, *(stage.early_stopping for stage in train.stages)]
    for stopping in watched:
        if isinstance(stopping, EarlyStopping) and stopping.monitor.startswith("val_"):
            raise TrainingError(
                f"train.early_stopping.monitor: '{stopping.monitor}' needs a validation split and "
                "there is none; set data.split.validation, or monitor 'loss', or set "
                "train.early_stopping=null."
            )
    if train.averaging.soup or train.averaging.wise_ft == "auto":
        raise TrainingError(
            "train.averaging: weights are compared on a validation split and there is none; set "
            "data.split.validation, or leave soup out and give wise_ft a number."
        )


def plan(model: keras.Model, train: Train, steps: int) -> list[StagePlan]:
    """Lists what each stage will train. Leaves the model as the first stage wants it.

    Args:
        model: Made by a builder.
        train: The recipe's `train`.
        steps: Per epoch, of `data.feeding.steps`.

    Raises:
        ModelError: If a stage asks for blocks that there are not.
        RecipeError: If a strategy does not fit the network.
    """
    plans: list[StagePlan] = []
    *body, _ = models.blocks(model)
    for number, stage in enumerate(strategies.stages(train, len(body)), 1):
        name = stage.name or f"{number} {_describe(stage.trainable_blocks)}"
        while name in {former.name for former in plans}:  # the audits are kept by name
            name = f"{number} {name}"
        made = StagePlan(
            name=name,
            stage=stage,
            first_epoch=plans[-1].last_epoch if plans else 0,
            steps=steps,
            trainable_blocks=(),
            trainable_parameters=0,
        )
        made.enter(model)
        trained = [block for block in models.blocks(model) if block.trainable]
        if not trained:
            raise TrainingError(
                f"stage '{name}': nothing would train, because this network has no head; give it "
                "blocks: trainable_blocks=-1 is all."
            )
        plans.append(
            dataclasses.replace(
                made,
                trainable_blocks=tuple(block.name for block in trained),
                trainable_parameters=sum(block.trainable_parameters for block in trained),
                still_blocks=prefixes.still(model),
            )
        )
    plans[0].enter(model)
    if train.stochastic_depth:
        models.set_stochastic_depth(model, train.stochastic_depth)
    return plans


def _describe(trainable_blocks: int | str | tuple[str, ...]) -> str:
    if isinstance(trainable_blocks, str):
        return trainable_blocks
    if isinstance(trainable_blocks, tuple):
        more = f" and {len(trainable_blocks) - 1} more" if len(trainable_blocks) > 1 else ""
        return trainable_blocks[0] + more
    if trainable_blocks == 0:
        return "head"
    return "everything" if trainable_blocks == -1 else f"top {trainable_blocks} blocks"
