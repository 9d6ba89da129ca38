"""Keras's optimizers with a rate, an age and a decay of each variable's own.

Every optimizer of `OPTIMIZERS` does what Keras's does until an option is used: rates by variable,
bias correction and warm-up by a variable's own updates, a pull towards the start, an average of the
weights. Keras's `use_ema` is refused: it does not survive a second `fit`.

    optimizer = make(recipe.train.optimizer, 1e-3, rates={"dense/kernel": 1.0, "conv/kernel": 0.1})
    optimizer.build(model.trainable_variables)
    carry_over(model.optimizer, optimizer, continue_iterations=False)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import keras
from keras import ops

from kerastune_ft.errors import ModelError
from kerastune_ft.schedules import END_SHARE as END_SHARE
from kerastune_ft.schedules import SCHEDULES as SCHEDULES
from kerastune_ft.schedules import StageSchedule as StageSchedule

if TYPE_CHECKING:
    from kerastune_ft.recipe import Optimizer

NO_DECAY = ("bias", "beta", "gamma")
"""Variables with one of these in their name are not decayed: it would shift, not regularise."""


class LayerwiseOptions(TypedDict, total=False):
    """What the optimizers of this module take beyond Keras's arguments."""

    rates: Mapping[str, float] | None
    ages: Mapping[str, int] | None
    newborn: Sequence[str]
    warmup_steps: int
    no_decay: Sequence[str]
    pull: float | None
    unpulled: Sequence[str]
    average: float | None


class _Layerwise(keras.optimizers.Optimizer):
    """Gives each variable a learning rate, an age, a decay and an average of its own.

    An update of a variable comes in this order: weight decay, the pull, the optimizer's own rule,
    the average. Read and set `learning_rate` as a property; it is the product of the rate and
    `rate_scale`, a variable that is 1 until a callback lowers it.

    A variable's own count of updates is `iterations + 1 + age`. Adam, AdamW and Adamax correct
    their bias by it, Nadam that of its second moment; the others correct nothing. Ages are fixed
    when the train function is traced.

    Args:
        *args: Keras's.
        rates: Share of the learning rate by `keras.Variable.path`; all variables need one. At 0 a
            variable and its slots stay as they are. Adafactor limits the product, and is scaled
            only below its limit.
        ages: Updates that a variable's slots have seen before iteration 0, by path; 0 where none
            is given, negative for a variable that begins later.
        newborn: Paths of the variables that are warmed up.
        warmup_steps: Updates over which a newborn variable's rate rises linearly.
        no_decay: Variables with one of these in their name are not decayed, nor is any of fewer
            than two dimensions, unless it is called a kernel. Empty decays all, as Keras does.
        pull: Draws every variable towards its value at `build` by `rate * pull` of the way, in
            each update: L2-SP, in a decoupled form. Comes on top of `weight_decay`.
        unpulled: Paths of variables without a start worth keeping, such as the head's.
        average: Momentum of the exponential average of each variable, 0 to 1. A younger average
            has less, `(1 + n) / (10 + n)` at update n.
        **kwargs: Keras's.

    References:
        - Decoupled decay: Loshchilov & Hutter 2019. https://arxiv.org/abs/1711.05101
        - L2-SP: Li, Grandvalet & Davoine 2018. https://arxiv.org/abs/1802.01483
    """

    def __init__(
        self,
        *args: Any,
        rates: Mapping[str, float] | None = None,
        ages: Mapping[str, int] | None = None,
        newborn: Sequence[str] = (),
        warmup_steps: int = 0,
        no_decay: Sequence[str] = NO_DECAY,
        pull: float | None = None,
        unpulled: Sequence[str] = (),
        average: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.use_ema:
            raise ValueError("use_ema: not supported; average=0.99 keeps an average.")
        if average is not None and not 0.0 <= average < 1.0:
            raise ValueError(f"average: expected 0 up to 1, got {average}.")
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps: expected 0 or more, got {warmup_steps}.")
        self.rates = None if rates is None else {path: float(x) for path, x in rates.items()}
        self.ages = {path: int(age) for path, age in (ages or {}).items()}
        self.newborn = list(newborn)
        self.warmup_steps = warmup_steps
        self.no_decay = list(no_decay)
        self.pull = pull
        self.unpulled = list(unpulled)
        self.average = average
        self.rate_scale = self.add_variable(
            shape=(),
            initializer="ones",
            dtype="float32",
            aggregation="only_first_replica",
            name="rate_scale",
        )

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Creates the slots; the start and the average begin with the variables' values.

        Raises:
            ValueError: If `rates` leaves a variable out.
        """
        if self.built:
            return
        if self.rates is not None:
            missing = [v.path for v in variables if v.path not in self.rates]
            if missing:
                raise ValueError(
                    f"rates: no rate for {', '.join(missing)}; every variable needs one."
                )
        super().build(variables)
        self._starts = [
            self._copy(variable, "start")
            if self.pull and variable.path not in self.unpulled
            else None
            for variable in variables
        ]
        self._averages = [
            self._copy(variable, "average") if self.average is not None else None
            for variable in variables
        ]

    def _copy(self, variable: keras.Variable, name: str) -> keras.Variable:
        if self._overwrite_variable_with_gradient(variable):
            return None
        value = _value(variable)
        return self.add_variable_from_reference(
            variable,
            name=name,
            initializer=lambda shape, dtype: ops.convert_to_tensor(value, dtype=dtype),
        )

    def _get_current_learning_rate(self) -> Any:
        return ops.multiply(super()._get_current_learning_rate(), self.rate_scale)

    def _apply_weight_decay(self, variables: Sequence[keras.Variable]) -> None:
        """Does nothing: `update_step` decays, because only there the variable's rate is known."""

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates one variable; TensorFlow hands in a `tf.Variable` of one device."""
        index = self._get_variable_index(variable)
        known = self._trainable_variables[index]
        share = 1.0 if self.rates is None else self.rates[known.path]
        if share == 0.0:
            return
        warms = self.warmup_steps > 0 and known.path in self.newborn
        age = self.ages.get(known.path, 0)
        own: Any = None
        if warms or age or self.average is not None:
            own = ops.maximum(ops.cast(self.iterations, "float32") + (1.0 + age), 1.0)

        rate = learning_rate
        if share != 1.0:
            rate = ops.cast(rate, "float32") * share
        if warms:
            rate = ops.cast(rate, "float32") * ops.minimum(own / self.warmup_steps, 1.0)

        if self.weight_decay and self._use_weight_decay(variable) and self._decays(known):
            decay = ops.cast(self.weight_decay, variable.dtype)
            self.assign_sub(variable, variable * decay * ops.cast(rate, variable.dtype))
        if self._starts[index] is not None:
            drawn = ops.cast(self.pull, variable.dtype) * ops.cast(rate, variable.dtype)
            self.assign_sub(variable, ops.subtract(variable, self._starts[index]) * drawn)

        correction = _bias_correction(self, own, variable.dtype) if age else None
        if correction is not None:
            rate = ops.cast(rate, "float32") * correction
        super().update_step(gradient, variable, rate)

        mean = self._averages[index]
        if mean is not None:
            momentum = ops.minimum((1.0 + own) / (10.0 + own), self.average)
            step = ops.cast(1.0 - momentum, variable.dtype)
            self.assign_add(mean, ops.subtract(variable, mean) * step)

    def _decays(self, variable: keras.Variable) -> bool:
        if not self.no_decay:
            return True
        owner = str(variable.path).rpartition("/")[0].rpartition("/")[2]
        if any(p in variable.name or owner.endswith(f"_{p}") for p in self.no_decay):
            return False  # a layer that only holds a bias may call it otherwise
        return len(variable.shape) >= 2 or "kernel" in variable.name

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {
            **super().get_config(),
            "rates": None if self.rates is None else dict(self.rates),
            "ages": dict(self.ages),
            "newborn": list(self.newborn),
            "warmup_steps": self.warmup_steps,
            "no_decay": list(self.no_decay),
            "pull": self.pull,
            "unpulled": list(self.unpulled),
            "average": self.average,
        }


def _value(variable: keras.Variable) -> Any:
    """Returns a variable's value as numpy, also while TensorFlow traces a function."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.init_scope():
            return ops.convert_to_numpy(variable)
    return ops.convert_to_numpy(variable)


def _bias_correction(optimizer: keras.optimizers.Optimizer, own: Any, dtype: Any) -> Any:
    """Returns the bias correction at a variable's own count, over the one that Keras applies.

    Keras's is repeated with Keras's rounding, so that it cancels; ours keeps its precision at small
    counts, where `1 - beta**n` loses digits. None for rules without a correction.
    """
    step = ops.cast(optimizer.iterations + 1, dtype)

    def theirs(beta: float) -> Any:
        weight = 1 - ops.power(ops.cast(beta, dtype), step)
        return ops.cast(weight, "float32")

    def ours(beta: float) -> Any:
        return -ops.expm1(own * math.log(beta)) if beta else ops.ones_like(own)

    if isinstance(optimizer, keras.optimizers.Adam):
        right = ops.sqrt(ours(optimizer.beta_2)) / ours(optimizer.beta_1)
        wrong = ops.sqrt(theirs(optimizer.beta_2)) / theirs(optimizer.beta_1)
    elif isinstance(optimizer, keras.optimizers.Adamax):
        right, wrong = 1.0 / ours(optimizer.beta_1), 1.0 / theirs(optimizer.beta_1)
    elif isinstance(optimizer, keras.optimizers.Nadam):
        right, wrong = ops.sqrt(ours(optimizer.beta_2)), ops.sqrt(theirs(optimizer.beta_2))
    else:
        return None
    # In bfloat16 beta_2 rounds to 1 and Keras's correction to 0: its step is 0, and stays so.
    usable = wrong > 0.0
    return ops.where(usable, right / ops.where(usable, wrong, 1.0), 1.0)


@keras.saving.register_keras_serializable("kerastune_ft")
class LayerwiseAdadelta(_Layerwise, keras.optimizers.Adadelta):
    """Keras's Adadelta with options by variable."""


@keras.saving.register_keras_serializable("kerastune_ft")
class LayerwiseAdafactor(_Layerwise, keras.optimizers.Adafactor):
    """Keras's Adafactor with options by variable."""


@keras.saving.register_keras_serializable("kerastune_ft")
class LayerwiseAdagrad(_Layerwise, keras.optimizers.Adagrad):
    """Keras's Adagrad with options by variable."""


@keras.saving.register_keras_serializable("kerastune_ft")
class LayerwiseAdam(_Layerwise, keras.optimizers.Adam):
    """Keras's Adam with options by variable."""


@keras.saving.register_keras_serializable("kerastune_ft")
class LayerwiseAdamax(_Layerwise, keras.optimizers.Adamax):
    """Keras's Adamax with options by variable."""


@keras.saving.register_keras_serializable("kerastune_ft")
class LayerwiseAdamW(_Layerwise, keras.optimizers.AdamW):
    """Keras's AdamW with options by variable."""


@keras.saving.register_keras_serializable("kerastune_ft")
class LayerwiseLion(_Layerwise, keras.optimizers.Lion):
    """Keras's Lion with options by variable."""


@keras.saving.register_keras_serializable("kerastune_ft")
class LayerwiseNadam(_Layerwise, keras.optimizers.Nadam):
    """Keras's Nadam with options by variable."""


@keras.saving.register_keras_serializable("kerastune_ft")
class LayerwiseRMSprop(_Layerwise, keras.optimizers.RMSprop):
    """Keras's RMSprop with options by variable."""


@keras.saving.register_keras_serializable("kerastune_ft")
class LayerwiseSGD(_Layerwise, keras.optimizers.SGD):
    """Keras's SGD with options by variable."""


OPTIMIZERS: dict[str, type[keras.optimizers.Optimizer]] = {
    "adadelta": LayerwiseAdadelta,
    "adafactor": LayerwiseAdafactor,
    "adagrad": LayerwiseAdagrad,
    "adam": LayerwiseAdam,
    "adamax": LayerwiseAdamax,
    "adamw": LayerwiseAdamW,
    "lion": LayerwiseLion,
    "nadam": LayerwiseNadam,
    "rmsprop": LayerwiseRMSprop,
    "sgd": LayerwiseSGD,
}

CARRIED = ("sgd", "adam", "adamw", "rmsprop", "lion")
"""Optimizers whose slots are carried over, and whose Keras originals are converted."""


def make(
    choice: Optimizer,
    learning_rate: float | keras.optimizers.schedules.LearningRateSchedule,
    *,
    rates: Mapping[str, float] | None = None,
    newborn: Sequence[str] = (),
    warmup_steps: int = 0,
    accumulate_steps: int = 1,
    average: float | None = None,
    pull: float | None = None,
    unpulled: Sequence[str] = (),
) -> keras.optimizers.Optimizer:
    """Makes the optimizer that a recipe names.

    Weight decay leaves out biases and the scale and offset of normalisation: pulling those to
    zero does not regularise, it shifts.

    Args:
        choice: The recipe's `train.optimizer`.
        learning_rate: A number or a schedule. Keras gives a schedule the number of batches, not
            of updates.
        rates: Share of the learning rate by variable path, for all variables or none.
        newborn: Paths of the variables that are warmed up.
        warmup_steps: Updates over which their rate rises.
        accumulate_steps: Batches whose mean gradient makes one update.
        average: Momentum of the average of the weights.
        pull: Strength of the pull towards the start, times the learning rate.
        unpulled: Paths that are not pulled.
    """
    global_clipnorm = getattr(choice, "global_clipnorm", None)
    options: dict[str, Any] = {"weight_decay": choice.weight_decay or None}
    if choice.clipnorm is not None:
        options["clipnorm"] = choice.clipnorm
    if global_clipnorm is not None:
        options["global_clipnorm"] = global_clipnorm
    if choice.momentum is not None:
        options["momentum"] = choice.momentum
    if choice.nesterov:
        options["nesterov"] = True
    if choice.name == "adamw":
        options["weight_decay"] = choice.weight_decay or 0.0
    if accumulate_steps > 1:
        options["gradient_accumulation_steps"] = accumulate_steps
    return OPTIMIZERS[choice.name](
        learning_rate=learning_rate,
        rates=rates,
        newborn=newborn,
        warmup_steps=warmup_steps,
        average=average,
        pull=pull,
        unpulled=unpulled,
        **options,
    )


def convert(
    optimizer: keras.optimizers.Optimizer, **options: Unpack[LayerwiseOptions]
) -> keras.optimizers.Optimizer:
    """Makes an optimizer of this module with the configuration of another one.

    The new one is not built and has no state; `carry_over` brings that. Converted from Keras's own
    it decays what Keras's decayed, biases too, unless `no_decay` says otherwise.

    Args:
        optimizer: Keras's SGD, Adam, AdamW, RMSprop or Lion, or one of this module, alone or in
            a LossScaleOptimizer.
        **options: Options of this module, instead of those that the optimizer has.

    Raises:
        ModelError: If it is of another class, or keeps an average of Keras's own.
    """
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return keras.optimizers.LossScaleOptimizer(
            convert(optimizer.inner_optimizer, **options),
            initial_scale=optimizer.initial_scale,
            dynamic_growth_steps=optimizer.dynamic_growth_steps,
            name=optimizer.name,
        )
    ours = {_rule(OPTIMIZERS[name]): OPTIMIZERS[name] for name in CARRIED}
    found = type(optimizer)
    if found not in ours and found not in OPTIMIZERS.values():
        raise ModelError(
            f"optimizer '{found.__name__}' cannot be converted; compile with one of Keras's "
            f"{', '.join(known.__name__ for known in ours)}, not a subclass, or with one of "
            "kerastune_ft.optimizers.OPTIMIZERS."
        )
    if optimizer.use_ema:
        raise ModelError(
            f"optimizer '{found.__name__}' has use_ema=True, which does not survive a second fit; "
            f"compile without it and ask for average={optimizer.ema_momentum}."
        )
    config = optimizer.get_config()
    rate = optimizer._learning_rate
    if not isinstance(rate, keras.Variable):
        config["learning_rate"] = rate
    if found in ours:
        config["no_decay"] = []
    converted = ours.get(found, found)(**{**config, **options})
    for name in ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern"):
        if hasattr(optimizer, name):
            setattr(converted, name, getattr(optimizer, name))
    return converted


def _rule(found: type[keras.optimizers.Optimizer]) -> type[keras.optimizers.Optimizer]:
    """Returns Keras's class of an optimizer class."""
    return next(parent for parent in found.__mro__ if not issubclass(parent, _Layerwise))


def _inner(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer.inner_optimizer
    return optimizer


def _set(target: keras.Variable, source: keras.Variable) -> None:
    # By way of numpy: JAX donates the buffers of the old optimizer.
    target.assign(ops.convert_to_numpy(source))


def carry_over(
    old: keras.optimizers.Optimizer,
    new: keras.optimizers.Optimizer,
    *,
    continue_iterations: bool,
) -> None:
    """Copies an optimizer's state to another one that is built on other variables.

    Variables are matched by identity, or by their path where that is unique. Starts are always
    copied; slots and averages if both optimizers follow the same rule, one of `CARRIED`, for
    variables whose rate was not 0. All other slots start fresh, and their variables' ages say so.

    Call it before the train function is traced, since ages are fixed then; on the JAX backend call
    `model.jax_state_sync()` first.

    Args:
        old: Built, Keras's own or one of this module, alone or in a LossScaleOptimizer.
        new: Built, one of this module, alone or in a LossScaleOptimizer.
        continue_iterations: Whether iterations, learning rate, `rate_scale` and half-full gradient
            accumulators go on; otherwise a schedule starts anew, and ages count what has been.
    """
    assert old.built and new.built, "carry_over needs optimizers that are built"
    if old is not new and old is not _inner(old) and new is not _inner(new):
        _set(new.dynamic_scale, old.dynamic_scale)
        _set(new.step_counter, old.step_counter)
    old, new = _inner(old), _inner(new)
    assert isinstance(new, _Layerwise), "carry_over needs an optimizer of this module"

    rule = _rule(type(new))
    same = rule is _rule(type(old)) and rule in {_rule(OPTIMIZERS[name]) for name in CARRIED}
    done = int(ops.convert_to_numpy(old.iterations))
    old_slots, new_slots = _slot_lists(old), _slot_lists(new)
    old_rates = getattr(old, "rates", None) or {}
    old_ages = getattr(old, "ages", {})
    accumulate = new.gradient_accumulation_steps
    goes_on = continue_iterations and accumulate == old.gradient_accumulation_steps
    twins = _twins(old, new)
    for index, variable in enumerate(new._trainable_variables):
        twin = twins[index]
        kept = same and twin is not None
        if twin is not None:
            path = old._trainable_variables[twin].path
            kept = kept and old_rates.get(path, 1.0) != 0.0
            for kind, variables in new_slots.items():
                wanted = {"starts": True, "accumulated_gradients": goes_on}.get(kind, kept)
                source = old_slots[kind][twin] if wanted and kind in old_slots else None
                if source is not None and variables[index] is not None:
                    _set(variables[index], source)
        age = (old_ages.get(path, 0) if kept else -done) + (0 if continue_iterations else done)
        new.ages.pop(variable.path, None)
        if age:
            new.ages[variable.path] = age

    if continue_iterations:
        if goes_on:
            _set(new._iterations, old._iterations)
        else:
            new._iterations.assign(done * (accumulate or 1))
        if all(isinstance(x._learning_rate, keras.Variable) for x in (old, new)):
            _set(new._learning_rate, old._learning_rate)
        if isinstance(old, _Layerwise):
            _set(new.rate_scale, old.rate_scale)


def _twins(old: keras.optimizers.Optimizer, new: keras.optimizers.Optimizer) -> list[int | None]:
    """Returns, for each variable of `new`, its index in `old`."""
    by_identity = {id(variable): i for i, variable in enumerate(old._trainable_variables)}
    old_paths, new_paths = ([x.path for x in one._trainable_variables] for one in (old, new))
    found: list[int | None] = []
    for variable in new._trainable_variables:
        index = by_identity.get(id(variable))
        if index is None and old_paths.count(variable.path) == new_paths.count(variable.path) == 1:
            index = old_paths.index(variable.path)
            if old._trainable_variables[index].shape != variable.shape:
                index = None
        found.append(index)
    return found


def _slot_lists(optimizer: keras.optimizers.Optimizer) -> dict[str, list[keras.Variable | None]]:
    """Returns the slots by kind, such as `momentums`, each by model variable."""
    found: dict[str, list[keras.Variable | None]] = {}
    for name, value in vars(optimizer).items():
        if name in ("_variables", "_trainable_variables") or not isinstance(value, list):
            continue
        if len(value) == len(optimizer._trainable_variables) and all(
            x is None or isinstance(x, keras.Variable) for x in value
        ):
            found[name.lstrip("_")] = list(value)
    return found


def slots(optimizer: keras.optimizers.Optimizer) -> dict[str, keras.Variable]:
    """Returns every variable of an optimizer by a name that another process gives it too.

    Names are `momentums/dense/kernel`, `iterations`, and `loss_scale/dynamic_scale` for those of a
    LossScaleOptimizer. A path that several variables share is numbered in their order.

    Args:
        optimizer: Built.
    """
    assert optimizer.built, "slots needs an optimizer that is built"
    inner = _inner(optimizer)
    names: list[tuple[str, keras.Variable]] = []
    if inner is not optimizer:
        names += [(f"loss_scale/{name}", x) for name, x in _scalars(optimizer)]
    names += _scalars(inner)
    paths = [variable.path for variable in inner._trainable_variables]
    numbered = [
        path if paths.count(path) == 1 else f"{path}#{paths[: i + 1].count(path)}"
        for i, path in enumerate(paths)
    ]
    for kind, variables in _slot_lists(inner).items():
        names += [
            (f"{kind}/{path}", variable)
            for path, variable in zip(numbered, variables, strict=True)
            if variable is not None
        ]
    found = dict(names)
    assert len(found) == len(names), "two slots have one name"
    # More than Keras lists: in a LossScaleOptimizer it does not list Nadam's product.
    assert {id(x) for x in found.values()} >= {id(x) for x in optimizer.variables}
    return found


def _scalars(optimizer: keras.optimizers.Optimizer) -> list[tuple[str, keras.Variable]]:
    return [
        (name.lstrip("_"), value)
        for name, value in vars(optimizer).items()
        if isinstance(value, keras.Variable)
    ]


def ages(optimizer: keras.optimizers.Optimizer) -> dict[str, int]:
    """Returns the ages that are not 0, by variable path, for a checkpoint next to `slots`."""
    return dict(getattr(_inner(optimizer), "ages", {}))


def set_ages(optimizer: keras.optimizers.Optimizer, ages: Mapping[str, int]) -> None:
    """Sets what `ages` returned, before the train function is traced."""
    _inner(optimizer).ages = {path: int(age) for path, age in ages.items()}


def averages(
    optimizer: keras.optimizers.Optimizer,
) -> list[tuple[keras.Variable, keras.Variable]]:
    """Returns each model variable with its average; none if the optimizer keeps no averages.

    Args:
        optimizer: Built, alone or in a LossScaleOptimizer.
    """
    inner = _inner(optimizer)
    if not isinstance(inner, _Layerwise) or inner.average is None:
        return []
    pairs = zip(inner._trainable_variables, inner._averages, strict=True)
    return [(variable, mean) for variable, mean in pairs if mean is not None]
