"""Strategies: named rules that write a list of stages, which can then be edited.

Nothing here trains. Every rule takes the settings and the number of blocks and returns ordinary
stages; `kft plan RECIPE --stages` prints them as YAML that can be pasted into a recipe.

    stages(Strategy(name="gradual", epochs=9, blocks=3), blocks=19)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from kerastune_ft.errors import RecipeError
from kerastune_ft.recipe import Stage, Strategy, Train


@dataclass(frozen=True)
class StrategyRow:
    """A strategy.

    Args:
        name: As written in recipes.
        description: One line for `kft ls strategies`.
        paper: Where it comes from, an address; empty if it has no one source.
        write: Returns the stages for settings and a number of blocks.
    """

    name: str
    description: str
    paper: str
    write: Callable[[Strategy, int], list[Stage]]


def settings(train: Train) -> Strategy | None:
    """Returns the settings of a recipe's strategy, None where the recipe lists its stages."""
    if isinstance(train.strategy, str):
        return Strategy(name=train.strategy)
    return train.strategy


def stages(train: Train, blocks: int) -> tuple[Stage, ...]:
    """Returns the stages of a recipe: its own, or those that its strategy writes.

    Args:
        train: The recipe's `train`.
        blocks: How many the backbone has.

    Raises:
        RecipeError: If the strategy does not fit the number of epochs or blocks.
    """
    choice = settings(train)
    if choice is None:
        return train.stages
    written = STRATEGIES[choice.name].write(choice, blocks)
    total = sum(stage.epochs for stage in written)
    assert total == choice.epochs, (choice, total)
    if choice.transition == "plateau":
        if train.early_stopping is None:
            raise _refused("transition", "plateau needs train.early_stopping to say of what")
        watched = train.early_stopping.model_copy(update={"patience": choice.patience})
        return tuple(stage.model_copy(update={"early_stopping": watched}) for stage in written)
    return tuple(written)


def _linear_probe(choice: Strategy, blocks: int) -> list[Stage]:
    return [_head(choice, choice.epochs)]


def _full(choice: Strategy, blocks: int) -> list[Stage]:
    return [_body(choice, "all", _top(choice, blocks), choice.epochs, 0)]


def _lp_ft(choice: Strategy, blocks: int) -> list[Stage]:
    probe = _probe_epochs(choice, 1)
    return [
        _head(choice, probe),
        _body(choice, "all", _top(choice, blocks), choice.epochs - probe, 0),
    ]


def _gradual(choice: Strategy, blocks: int) -> list[Stage]:
    most = _count(choice, blocks, blocks)
    probe = _probe_epochs(choice, 1 if choice.step is None else math.ceil(most / choice.step))
    left = choice.epochs - probe
    step = choice.step or math.ceil(most / min(most, left))
    depths = [min(depth, most) for depth in range(step, most + step, step)]
    return [_head(choice, probe), *_climb(choice, depths, left)]


def _progressive(choice: Strategy, blocks: int) -> list[Stage]:
    most = _count(choice, blocks, blocks)
    left = choice.epochs - _probe_epochs(choice, 1)
    step = choice.step or 1
    depths = _doubling(step, most)
    while choice.step is None and len(depths) > left:
        step += 1
        depths = _doubling(step, most)
    probe = _probe_epochs(choice, len(depths))
    return [_head(choice, probe), *_climb(choice, depths, choice.epochs - probe)]


def _doubling(step: int, most: int) -> list[int]:
    depths = [min(step, most)]
    while depths[-1] < most:
        step *= 2
        depths.append(min(depths[-1] + step, most))
    return depths


def _discriminative(choice: Strategy, blocks: int) -> list[Stage]:
    stage = _body(choice, "discriminative", _top(choice, blocks), choice.epochs, 0, decay=0.8)
    return [stage.model_copy(update={"head_learning_rate": choice.head_learning_rate})]


def _surgical(choice: Strategy, blocks: int) -> list[Stage]:
    probe = _probe_epochs(choice, 1)
    named = choice.blocks if isinstance(choice.blocks, tuple) else _quarter(choice, blocks)
    return [_head(choice, probe), _body(choice, "surgical", named, choice.epochs - probe, 0)]


def _quarter(choice: Strategy, blocks: int) -> int:
    return _count(choice, blocks, math.ceil(blocks / 4))


def _bitfit(choice: Strategy, blocks: int) -> list[Stage]:
    stage = _body(choice, "biases", _top(choice, blocks), choice.epochs, 0)
    update: dict[str, object] = {"parameters": "biases", "batch_norm": "affine"}
    # So few numbers train that they bear, and need, the head's rate.
    update["learning_rate"] = choice.head_learning_rate
    return [stage.model_copy(update=update)]


def _head(choice: Strategy, epochs: int) -> Stage:
    return Stage(
        name="head",
        trainable_blocks=0,
        epochs=epochs,
        learning_rate=choice.head_learning_rate,
        batch_norm=choice.batch_norm,
    )


def _body(
    choice: Strategy,
    name: str,
    blocks: int | tuple[str, ...],
    epochs: int,
    number: int,
    decay: float = 1.0,
) -> Stage:
    return Stage(
        name=name,
        trainable_blocks=blocks,
        epochs=epochs,
        # The list is meant to be read and edited: three figures are enough.
        learning_rate=float(f"{choice.learning_rate * choice.rate_factor**number:.3g}"),
        schedule=choice.schedule,
        warmup_epochs=min(choice.warmup_epochs, epochs / 4),
        rate_decay=decay if choice.rate_decay is None else choice.rate_decay,
        batch_norm=choice.batch_norm,
    )


def _climb(choice: Strategy, depths: list[int], epochs: int) -> list[Stage]:
    """Returns a stage per depth; epochs that cannot be shared evenly go to the last stages."""
    if epochs < len(depths):
        least = choice.epochs - epochs + len(depths)
        raise _refused(
            "epochs",
            f"{len(depths)} stages need an epoch each beside the head's; expected {least} or more, "
            f"got {choice.epochs}, or a larger step, or fewer blocks",
        )
    each, more = divmod(epochs, len(depths))
    last = len(depths) - 1
    climbed = [
        _body(choice, f"top {depth}", depth, each + (i > last - more), i)
        for i, depth in enumerate(depths)
    ]
    # A rate that falls to nothing within every short stage would leave each hardly trained.
    steady = [stage.model_copy(update={"schedule": "constant"}) for stage in climbed[:-1]]
    return [*steady, climbed[-1]]


def _probe_epochs(choice: Strategy, stages_after: int) -> int:
    """Returns the epochs of the first stage, which leave at least one to each stage after it."""
    if choice.head_epochs is not None:
        probe = choice.head_epochs
    else:
        probe = max(1, min(round(choice.epochs / 3), choice.epochs - stages_after))
    if probe >= choice.epochs:
        raise _refused(
            "epochs",
            f"{choice.epochs} leave none for the blocks after {probe} of the head; expected more "
            f"than {probe}",
        )
    return probe


def _top(choice: Strategy, blocks: int) -> int | tuple[str, ...]:
    if choice.blocks is None:
        return -1
    return choice.blocks if isinstance(choice.blocks, tuple) else _count(choice, blocks, blocks)


def _count(choice: Strategy, blocks: int, default: int) -> int:
    if isinstance(choice.blocks, tuple):
        raise _refused("blocks", f"{choice.name} counts blocks from the top; surgical takes names")
    count = default if choice.blocks is None else choice.blocks
    if count > blocks:
        raise _refused("blocks", f"the backbone has {blocks}, got {count}")
    return count


def _refused(key: str, message: str) -> RecipeError:
    return RecipeError([f"train.strategy.{key}: {message}."])


_ROWS = (
    StrategyRow("linear_probe", "the head alone; the backbone stays as it is", "", _linear_probe),
    StrategyRow("full", "everything at once at one rate", "", _full),
    StrategyRow(
        "lp_ft",
        "the head first, then everything: a head that is in place bends the features less",
        "https://arxiv.org/abs/2202.10054",
        _lp_ft,
    ),
    StrategyRow(
        "gradual",
        "the head, then one more block per stage from the top, at falling rates",
        "https://arxiv.org/abs/1801.06146",
        _gradual,
    ),
    StrategyRow(
        "progressive",
        "the head, then the last blocks, then ever larger steps down to all",
        "https://arxiv.org/abs/1801.06146",
        _progressive,
    ),
    StrategyRow(
        "discriminative",
        "everything at once, each block at a share of the rate of the one above",
        "https://arxiv.org/abs/1801.06146",
        _discriminative,
    ),
    StrategyRow(
        "surgical",
        "the head, then the named blocks alone (by default the top quarter)",
        "https://arxiv.org/abs/2210.11466",
        _surgical,
    ),
    StrategyRow(
        "bitfit",
        "the head, and in the backbone biases and the offsets of normalisation alone",
        "https://arxiv.org/abs/2106.10199",
        _bitfit,
    ),
)

STRATEGIES: dict[str, StrategyRow] = {row.name: row for row in _ROWS}
