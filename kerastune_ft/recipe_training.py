"""The `train` section of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import Discriminator, Field, Tag

from kerastune_ft.recipe_checks import NAME, SETTINGS
from kerastune_ft.recipe_values import (
    Count,
    NotNegative,
    Positive,
    Section,
    Seed,
    ShareBelowOne,
    Text,
    name_or_settings,
)


class Optimizer(Section):
    """The update rule; learning rates belong to the stages."""

    name: Literal[
        "adam", "adamw", "sgd", "rmsprop", "lion", "nadam", "adamax", "adagrad", "adadelta",
        "adafactor",
    ] = Field(default="adamw", description="Keras's optimizer of that name.")  # fmt: skip
    weight_decay: NotNegative | None = Field(
        default=1e-4,
        description="Decoupled weight decay per step, times the learning rate; null is off.",
    )
    momentum: ShareBelowOne | None = Field(
        default=None, description="Momentum, 0 to 1; sgd and rmsprop only."
    )
    nesterov: bool = Field(default=False, description="Nesterov's form of momentum; sgd only.")
    clipnorm: Positive | None = Field(
        default=None, description="Largest norm of each weight's gradient; null is off."
    )
    global_clipnorm: Positive | None = Field(
        default=None, description="Largest norm of all gradients together; null is off."
    )


Schedule = Literal[
    "constant", "linear", "cosine", "polynomial", "exponential", "one_cycle", "step",
    "inverse_sqrt", "plateau",
]  # fmt: skip
BatchNorm = Literal["frozen", "affine", "train"]
Decay = Annotated[float, Gt(0), Le(1)]


class EarlyStopping(Section):
    """Ends a stage, not the run, when it no longer gets better."""

    monitor: Literal[
        "val_loss", "val_accuracy", "val_auc_pr", "val_mae", "loss", "accuracy", "auc_pr", "mae",
    ] = Field(
        default="val_loss",
        description="What has to get better: the loss, or the task's own metric (accuracy, auc_pr "
        "of several labels, mae of numbers).",
    )  # fmt: skip
    patience: Count = Field(
        default=3, description="Epochs without improvement before the stage ends."
    )
    min_delta: NotNegative = Field(
        default=0.0, description="Smallest change that counts as better."
    )
    restore_best_weights: bool = Field(
        default=True,
        description="Go on from the best epoch so far, of this stage or one before, not from the "
        "last.",
    )


class Stage(Section):
    """A span of training with one set of trainable blocks and one learning-rate schedule."""

    name: Text | None = Field(default=None, description="Shown in progress and reports.")
    trainable_blocks: Annotated[int, Ge(-1)] | Text | Annotated[tuple[Text, ...], MinLen(1)] = (
        Field(
            description="Backbone blocks that train beside the head. A number counts from the top: "
            "0 the head alone, -1 all. Names, or regular expressions that match whole names, "
            "choose blocks wherever they are."
        )
    )
    parameters: Literal["all", "biases"] = Field(
        default="all",
        description="What trains in those blocks: everything, or biases and the offsets of "
        "normalisation alone.",
    )
    epochs: Count = Field(description="Passes over the training examples, at most.")
    learning_rate: Positive = Field(description="Highest learning rate of the stage.")
    head_learning_rate: Positive | None = Field(
        default=None, description="Highest learning rate of the head; null is learning_rate."
    )
    schedule: Schedule = Field(
        default="constant",
        description="How the learning rate falls after the warm-up; plateau divides it by 5 when "
        "the monitored figure has not got better for 2 epochs.",
    )
    warmup_epochs: NotNegative = Field(
        default=0.0,
        description="Epochs in which the learning rate rises from 0; fractions are fine.",
    )
    rate_decay: Decay = Field(
        default=1.0,
        description="Learning rate of each block as a share of the one above it; the top block's "
        "is this share of learning_rate.",
    )
    batch_norm: BatchNorm = Field(
        default="frozen",
        description="Whether batch normalisation of unfrozen blocks stays as it is, trains its "
        "scale and offset alone, or moves its statistics too.",
    )
    optimizer: Optimizer | None = Field(
        default=None, description="For this stage alone; null takes train.optimizer."
    )
    early_stopping: Annotated[
        Annotated[Literal["as_train", "off"], Tag(NAME)] | Annotated[EarlyStopping, Tag(SETTINGS)],
        Discriminator(name_or_settings),
    ] = Field(
        default="as_train",
        description="When this stage ends before its last epoch: as train.early_stopping says, "
        "never, or settings of its own.",
    )


StrategyName = Literal[
    "linear_probe", "full", "lp_ft", "gradual", "progressive", "discriminative", "surgical",
    "bitfit",
]  # fmt: skip


class Strategy(Section):
    """Writes the list of stages; 'kft plan RECIPE --stages' prints it, to be edited."""

    name: StrategyName = Field(description="'kft ls strategies' explains them.")
    epochs: Count = Field(default=10, description="Of all stages together.")
    head_epochs: Count | None = Field(
        default=None,
        description="Of the first stage, which trains the head alone; null is a third of all.",
    )
    blocks: Count | Annotated[tuple[Text, ...], MinLen(1)] | None = Field(
        default=None,
        description="How many blocks from the top train in the end; of surgical, names. null is "
        "all, a quarter of them for surgical.",
    )
    step: Count | None = Field(
        default=None,
        description="Blocks added per stage of gradual, or by the first of progressive, whose "
        "steps double; null is as few as the epochs allow.",
    )
    learning_rate: Positive = Field(
        default=2e-4, description="Of the first stage that trains blocks of the backbone."
    )
    head_learning_rate: Positive = Field(
        default=3e-3,
        description="Of stages that train the head alone, of discriminative's head and of bitfit.",
    )
    rate_factor: Decay = Field(
        default=0.8,
        description="Learning rate of each further stage as a share of the one before, as more "
        "becomes trainable.",
    )
    rate_decay: Decay | None = Field(
        default=None,
        description="Stage's rate_decay, per block; null is 0.8 for discriminative, else 1.",
    )
    schedule: Schedule = Field(
        default="cosine",
        description="Of the last stage; the stages between it and the head's stay at their rate.",
    )
    warmup_epochs: NotNegative = Field(
        default=0.5,
        description="Of stages that train blocks, at most a quarter of the stage's epochs.",
    )
    batch_norm: BatchNorm = Field(default="frozen", description="Of every stage.")
    transition: Literal["epochs", "plateau"] = Field(
        default="epochs",
        description="Whether a stage gives way to the next after its epochs, or as soon as "
        "train.early_stopping's figure stops getting better for `patience` epochs.",
    )
    patience: Count = Field(default=2, description="Of transition: plateau, in epochs.")


class Averaging(Section):
    """Averages of weights, which often generalise better than the last ones."""

    ema: Annotated[float, Gt(0), Lt(1)] | None = Field(
        default=None,
        description="Momentum of an exponential moving average of the weights, which validation "
        "sees and the run keeps; null is off.",
    )
    soup: Count | None = Field(
        default=None,
        description="Greedy soup: average the best so many epochs as long as validation gains; "
        "null is off.",
    )
    wise_ft: Annotated[float, Ge(0), Le(1)] | Literal["auto"] | None = Field(
        default=None,
        description="Go back this share of the way to the weights before the backbone was "
        "touched; auto takes the share with the best validation loss; null is off.",
    )


class Checkpoint(Section):
    """When the run is saved so that it can be resumed exactly; at the end of a stage always."""

    every_steps: Count | None = Field(default=None, description="Training steps; null is off.")
    every_seconds: Positive | None = Field(default=60.0, description="Seconds; null is off.")
    keep: Annotated[int, Ge(1)] = Field(default=2, description="Newest checkpoints kept.")


class Train(Section):
    """How the model is trained."""

    seed: Seed = Field(
        default=0, description="Of the head's weights, order, dropout and augmentation."
    )
    optimizer: Optimizer = Field(default=Optimizer(), description="The update rule of every stage.")
    strategy: (
        Annotated[
            Annotated[StrategyName, Tag(NAME)]
            | Annotated[Strategy, Tag(SETTINGS)],
            Discriminator(name_or_settings),
        ]
        | None
    ) = Field(
        default=None, description="Writes the stages, in place of `stages`; a name, or settings."
    )  # fmt: skip
    stages: Annotated[tuple[Stage, ...], MinLen(1)] = Field(
        default=(
            Stage(trainable_blocks=0, epochs=5, learning_rate=1e-3),
            Stage(
                trainable_blocks=4,
                epochs=10,
                learning_rate=1e-4,
                schedule="cosine",
                warmup_epochs=0.5,
            ),
        ),
        description="One after the other, each from the weights of the one before.",
    )
    early_stopping: EarlyStopping | None = Field(
        default=EarlyStopping(), description="When to end a stage early; null never does."
    )
    folds: Count = Field(
        default=1,
        description="Cross-validation: train so many models, each validated on another part of "
        "what is not test, and average what they say of the test split; 1 trains one.",
    )
    class_weight: (
        Annotated[
            Annotated[Literal["balanced"], Tag(NAME)]
            | Annotated[dict[str, Positive], Tag(SETTINGS), MinLen(1)],
            Discriminator(name_or_settings),
        ]
        | None
    ) = Field(
        default=None,
        description="Weight of each class in the loss by name, or balanced; null is 1 for all.",
    )
    l2_sp: Positive | None = Field(
        default=None,
        description="Pull of the backbone's weights towards the pre-trained ones, per step, times "
        "the learning rate; null is off.",
    )
    stochastic_depth: ShareBelowOne = Field(
        default=0.0,
        description="Share of the examples for which the topmost unfrozen block is skipped in "
        "training, falling evenly to 0 at the stem; EfficientNet has it.",
    )
    averaging: Averaging = Field(default=Averaging(), description="Of weights; off unless set.")
    checkpoint: Checkpoint = Field(
        default=Checkpoint(), description="When the run is saved for --resume."
    )
    accumulate_steps: Count = Field(
        default=1,
        description="Batches whose gradients are averaged into one update: the effective batch is "
        "so many times data.batch_size.",
    )
    cache: Literal["auto", "off", "disk", "memory"] = Field(
        default="auto",
        description="Compute what the frozen blocks give once, keep it, and train the rest on it: "
        "on disk, where other runs find it, in memory, or never; auto where it saves time.",
    )
    cache_gib: Positive = Field(
        default=10.0, description="GiB that may be kept; what was not used for longest goes first."
    )
    cache_views: Count = Field(
        default=4,
        description="Augmented views of each picture that are kept and taken in turn, one per "
        "epoch; one is enough without augmentation.",
    )
    device: Literal["auto", "cpu", "gpu", "tpu"] = Field(
        default="auto", description="Where training runs; auto takes GPUs if there are some."
    )
    replicas: Count | None = Field(
        default=None,
        description="Devices that share each batch on this machine; null is every GPU, or 1.",
    )
    hosts: Count = Field(
        default=1, description="Machines that share each batch; more than one on JAX alone."
    )
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = Field(
        default="float32", description="Of the computation; weights stay float32."
    )
    deterministic: bool = Field(
        default=True,
        description="The same seed gives the same weights, at some cost in speed on a GPU.",
    )
    tensorboard: bool = Field(
        default=True, description="Write logs for TensorBoard into the run folder."
    )
