"""The mixin that makes a Keras optimizer prune the model while it trains."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from keras import ops

from sage_keras import arguments, scores, thresholds
from sage_keras import sensitivity as measure
from sage_keras.annotations import Tensor, Variable
from sage_keras.backend import cond, has_value, is_concrete, is_laid_out, to_dense
from sage_keras.optimizers.measured import SensitivityAverage
from sage_keras.optimizers.patterns import is_weight_matrix
from sage_keras.optimizers.pruning import pattern as groups
from sage_keras.optimizers.pruning import schedule
from sage_keras.paths import variable_path

_SCOPES = ("global", "variable")
_LARGEST_BETA_4 = 0.999


class GradualPruning(SensitivityAverage):
    """Mixin that makes a Keras optimizer prune the model while it trains.

    Put it before a Keras optimizer in the list of bases. From the step `begin` on more and more
    weights of the lowest scores are zero, until at the step `end` the share `final_sparsity` is:

        sparsity(t) = final_sparsity * (1 - ((end - t) / (end - begin))^3)

    Every `update_freq` steps, and at `end`, masks are taken from the scores of that step,
    and a weight that was zero may come back. Between two such steps, and after `end`, they stay.

    A score is one of these, of a weight `theta` with gradient `g`:

    - `"confidence"`: `average * uncertainty`, where `average` is the exponential moving average of
      the sensitivity `I = |theta * g|` and `uncertainty` that of `|I - average|` (PLATON).
    - `"sensitivity"`: `average` alone.
    - `"magnitude"`: `|theta|`, after the step's update.
    - `"movement"`: the sum of `-learning_rate * theta * g`. What the mask hides goes on training
      inside the optimizer, by the gradient at the model's masked weights.
    - `"fisher"`: the sum of `g^2`.
    - `"random"`: random ones, the same at every step: what any other choice has to beat.

    What to expect:

    - After every step the model has the exact sparsity that the schedule says, whatever is then
      evaluated, saved or exported: through moments, weight decay, constraints, gradient
      accumulation, EMA (the averages too) and mixed precision. Of equal scores the first weights
      are kept. `sparsity` is counted over the pruned variables.
    - Pruned are, by default, the variables of two axes or more but embeddings and biases, head
      included. The papers prune attention and feed-forward layers, biases too:
      `include=sage_keras.TRANSFORMER_BLOCKS`.
    - Scores are measured from the first step on, after accumulation, loss unscaling and clipping;
      steps are updates of the weights.
    - The gradient of a zero weight counts in its moments, but its sensitivity is zero: with
      `"confidence"` and `"sensitivity"` it comes back if the score that it had when it went
      outlasts those of others. With `"movement"` and `"fisher"` its score goes on.
    - A saved state brings its masks. One of another `score`, `scope` or `pattern` is refused; of
      another sparsity or other steps it loads, and the next update follows the new schedule.
    - A zero takes as much memory and time as any other weight. After training put `KeepZeros`
      before the optimizer of a later fine-tuning.

    With `SensitivityGuided` in the same class both share one average and one `beta_3`, and
    `include` and `exclude` are those of both.

    Args:
        *args: Positional arguments of the base optimizer.
        final_sparsity: Float in (0, 1), the share of the weights that is zero in the end. Defaults
            to `0.8`.
        score: `"confidence"`, `"sensitivity"`, `"magnitude"`, `"movement"`, `"fisher"` or
            `"random"`. Defaults to `"confidence"`.
        total_steps: Integer, the number of updates of the whole training. Either this, or
            `begin_step` and `end_step`, have to be passed. Defaults to `None`.
        begin: Float in [0, 1), the share of `total_steps` before the first weight is pruned.
            Defaults to `0.1`.
        end: Float above `begin` and at most 1, the share of `total_steps` after which the
            sparsity is reached. Defaults to `0.7`.
        begin_step: Integer, the step at which the sparsity begins to rise. Defaults to `None`:
            `total_steps * begin` without its fraction.
        end_step: Integer, the step at which it is reached. Defaults to `None`:
            `total_steps * end` without its fraction.
        update_freq: Integer, the steps from one choice of weights to the next. Defaults to `10`.
        scope: `"global"` to take the lowest scores of all pruned variables together, or
            `"variable"` to take the same share of each. Defaults to `"global"`.
        pattern: `None`, or `"2:4"` to prune at most two of each four weights in a row along the
            inputs of a layer, and in the end exactly two. Defaults to `None`.
        beta_3: Float above 0 and at most 0.999, the decay of the sensitivity's average. Defaults
            to `0.85`.
        beta_4: Float above 0 and at most 0.999, the decay of the uncertainty's. Defaults to
            `0.95`.
        seed: Integer, at least 0, that the scores `"random"` follow from. Defaults to `0`.
        include: `None`, or a list of regular expressions that are searched in `variable.path`.
            Variables that match one are pruned, whatever their shape. Defaults to `None`.
        exclude: `None`, or a list of regular expressions. Variables that match one are not pruned.
            Defaults to `None`.
        **kwargs: Keyword arguments of the base optimizer, `sensitivity_dtype` (see
            `SensitivityGuided`) and `on_nonfinite`.

    Raises:
        TypeError: Where the class is made, if its bases stand in the wrong order; where an object
            is made, if an argument is of the wrong type.
        ValueError: If an argument is out of range; before the first step, if `include` or
            `exclude` matches no variable, or if a variable cannot be pruned as asked.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import sage_keras
    >>> @keras.saving.register_keras_serializable(package="my_package")
    ... class PrunedLion(sage_keras.GradualPruning, keras.optimizers.Lion):
    ...     pass
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5)])
    >>> optimizer = PrunedLion(1e-3, final_sparsity=0.9, total_steps=20, update_freq=1)
    >>> model.compile(optimizer=optimizer, loss="mse")
    >>> x, y = keras.ops.ones((8, 4)), keras.ops.ones((8, 5))
    >>> history = model.fit(x, y, epochs=20, verbose=0)
    >>> optimizer.sparsity, int(np.count_nonzero(model.get_weights()[0]))
    (0.9, 2)

    Reference:
        - [Zhang et al., 2022](https://arxiv.org/abs/2206.12562), confidence (PLATON).
        - [Zhu and Gupta, 2017](https://arxiv.org/abs/1710.01878), the schedule.
        - [Sanh et al., 2020](https://arxiv.org/abs/2005.07683), movement.
    """

    _rank = 50
    _settings: ClassVar[tuple[str, ...]] = (
        "final_sparsity",
        "score",
        "total_steps",
        "begin",
        "end",
        "begin_step",
        "end_step",
        "update_freq",
        "scope",
        "pattern",
        "beta_4",
        "seed",
    )

    def __init__(
        self,
        *args: Any,
        final_sparsity: float = 0.8,
        score: str = "confidence",
        total_steps: int | None = None,
        begin: float = 0.1,
        end: float = 0.7,
        begin_step: int | None = None,
        end_step: int | None = None,
        update_freq: int = 10,
        scope: str = "global",
        pattern: str | None = None,
        beta_3: float = 0.85,
        beta_4: float = 0.95,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, beta_3=beta_3, **kwargs)
        self.final_sparsity = arguments.number("final_sparsity", final_sparsity, 0.0, 1.0, "0.8")
        self.score = arguments.choice("score", score, scores.SCORES)
        self.update_freq = arguments.integer("update_freq", update_freq, low=1, example=10)
        self.scope = arguments.choice("scope", scope, _SCOPES)
        self.pattern = self._check_pattern(pattern)
        self.beta_4 = arguments.number(
            "beta_4", beta_4, 0.0, _LARGEST_BETA_4, "0.95", high_included=True
        )
        self.seed = arguments.integer("seed", seed, low=0, example=0)
        if self.score == "movement" and self.ema_overwrite_frequency:
            raise ValueError(
                'Argument `ema_overwrite_frequency` cannot be used with `score="movement"`: the '
                "averages are pruned too, and would overwrite what is hidden. Leave it out; "
                "`keras.callbacks.SwapEMAWeights` and the end of `fit` take the averages as "
                f"before. Received: ema_overwrite_frequency={self.ema_overwrite_frequency!r}"
            )
        self._set_steps(total_steps, begin, end, begin_step, end_step)

    def _check_pattern(self, pattern: Any) -> str | None:
        if pattern is None:
            return None
        if pattern != "2:4":
            raise ValueError(
                f'Argument `pattern` must be None or "2:4". Received: pattern={pattern!r}'
            )
        if self.final_sparsity != 0.5:
            raise ValueError(
                'Argument `final_sparsity` must be 0.5 with `pattern="2:4"`, which keeps two '
                f"weights of each four. Received: final_sparsity={self.final_sparsity!r}"
            )
        return str(pattern)

    def _set_steps(
        self, total_steps: Any, begin: Any, end: Any, begin_step: Any, end_step: Any
    ) -> None:
        self.begin = arguments.number("begin", begin, 0.0, 1.0, "0.1", low_included=True)
        self.end = arguments.number("end", end, self.begin, 1.0, "0.7", high_included=True)
        steps = schedule.begin_and_end(total_steps, self.begin, self.end, begin_step, end_step)
        self.total_steps = None if total_steps is None else int(total_steps)
        self.begin_step, self.end_step = steps

    # Building.

    def _prepare(self, variables: list[Variable]) -> None:
        super()._prepare(variables)
        # What others of the class act on may be more: `include` says which matrices for all.
        self._pruned = [
            chosen and (self.include is not None or is_weight_matrix(variable))
            for variable, chosen in zip(variables, self._chosen)
        ]
        pruned = [variable for variable, yes in zip(variables, self._pruned) if yes]
        if variables and not pruned and self._strict_patterns:
            paths = [variable_path(variable) for variable in variables]
            raise ValueError(
                "None of the variables is pruned by default: those of two axes or more, but "
                "embeddings and biases. Pass `include`, a list of regular expressions that are "
                f"found in the path of one. The variables are:{arguments.listed(paths)}"
            )
        self._check_sizes(pruned)
        if self.pattern is not None:
            groups.check(pruned)

    def _check_sizes(self, pruned: list[Variable]) -> None:
        sizes = [math.prod(variable.shape) for variable in pruned]
        together, largest = sum(sizes), max(sizes, default=0)
        if largest > thresholds.MOST_SCORES:
            raise ValueError(
                f"A variable that is pruned has {largest} weights; at most "
                f"{thresholds.MOST_SCORES} can be counted. Leave it out by `exclude`: "
                f"{variable_path(pruned[sizes.index(largest)])}"
            )
        if self.scope == "global" and together > thresholds.MOST_SCORES:
            raise ValueError(
                f"The pruned variables have {together} weights, of which at most "
                f'{thresholds.MOST_SCORES} can be ranked together. Pass scope="variable", or '
                f"`include` or `exclude` to prune fewer. Received: scope={self.scope!r}"
            )

    def _add_slots(self, variables: list[Variable]) -> None:
        super()._add_slots(variables)
        own = {"confidence": "uncertainty", "movement": "movement", "fisher": "fisher"}
        self._pruning_masks = self._pruned_slots(variables, "mask", "bool", "ones")
        self._own_scores = (
            self._pruned_slots(variables, own[self.score], "float32")
            if self.score in own
            else [None] * len(variables)
        )
        self._hidden = (
            self._pruned_slots(variables, "hidden", None)
            if self.score == "movement"
            else [None] * len(variables)
        )

    def _pruned_slots(
        self, variables: list[Variable], name: str, dtype: str | None, initializer: str = "zeros"
    ) -> list[Variable | None]:
        return [
            self._add_slot(variable, name, dtype or variable.dtype, initializer=initializer)
            if pruned
            else None
            for variable, pruned in zip(variables, self._pruned)
        ]

    def _measured(self) -> list[bool]:
        needed = self.score in ("confidence", "sensitivity")
        return [
            one or (needed and pruned) for one, pruned in zip(super()._measured(), self._pruned)
        ]

    # A step.

    def _begin_step(self) -> None:
        """Puts what the masks hide into the model's variables, which the step updates."""
        super()._begin_step()
        # Interrupted anywhere, it can be repeated: what is hidden stays in its slot.
        for index in self._indices():
            hidden = self._hidden[index]
            if hidden is not None:
                variable = self._trainable_variables[index]
                weights = [ops.convert_to_tensor(one) for one in (variable, hidden)]
                self.assign(variable, ops.where(self._pruning_mask(index), *weights))

    def _before_clipping(self, grads: list[Tensor], variables: list[Variable]) -> list[Tensor]:
        if self.score not in scores.WITHOUT_DATA:
            indices = [self._get_variable_index(variable) for variable in variables]
            grads = [
                to_dense(gradient) if self._pruned[index] else gradient
                for gradient, index in zip(grads, indices)
            ]
        return super()._before_clipping(grads, variables)

    def _adjust(
        self, gradient: Tensor, variable: Variable, learning_rate: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Adds to the scores that are sums."""
        index = self._get_variable_index(variable)
        slot = self._own_scores[index]
        if slot is not None and self.score in ("movement", "fisher"):
            dense = ops.cast(gradient, slot.dtype)
            if self.score == "fisher":
                value = scores.fisher(dense)
            else:
                value = scores.movement(ops.cast(variable, slot.dtype), dense)
                value = ops.multiply(ops.cast(learning_rate, slot.dtype), value)
            self.assign(slot, ops.add(slot, value))
        return super()._adjust(gradient, variable, learning_rate)

    def _use_sensitivity(
        self,
        gradient: Tensor,
        variable: Variable,
        learning_rate: Tensor,
        value: Tensor,
        average: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Moves the average of the uncertainty."""
        index = self._get_variable_index(variable)
        slot = self._own_scores[index]
        if slot is not None and self.score == "confidence":
            # Without the correction the first values would be those of the zeros it began with.
            step = ops.cast(self.iterations + 1, value.dtype)
            smoothed = measure.bias_corrected(average, self.beta_3, step)
            uncertainty = ops.cast(scores.uncertainty(value, smoothed), slot.dtype)
            self.assign(slot, scores.moving_average(slot, uncertainty, self.beta_4))
        return super()._use_sensitivity(gradient, variable, learning_rate, value, average)

    def _end_step(self, updated: Tensor) -> None:
        """Takes new masks if they are due, and zeroes what they leave out."""
        super()._end_step(updated)
        due = ops.logical_and(updated, schedule.is_due(self.iterations, *self._steps()))
        indices = self._indices()
        masks = [self._pruning_mask(index) for index in indices]
        # The model's variables, and the averages of EMA that take their place.
        masked = [(at, self._trainable_variables[index]) for at, index in enumerate(indices)]
        if self.use_ema:
            averages = self._model_variables_moving_average
            masked += [(at, averages[index]) for at, index in enumerate(indices)]
        proposals = [ops.convert_to_tensor(variable) for _, variable in masked]
        for index, weight in zip(indices, proposals):
            if self._hidden[index] is not None:  # before the variable changes
                self.assign(self._hidden[index], ops.copy(weight))
        # In this form the masks that stay are applied where XLA writes the update, and a step that
        # takes no masks reads and writes no weight once more.
        shown = [
            ops.logical_or(masks[at], self._after_scores(due, i)) for at, i in enumerate(indices)
        ]
        values = [
            ops.where(shown[at], proposal, 0.0) for (at, _), proposal in zip(masked, proposals)
        ]

        def take() -> list[Tensor]:
            taken = self._take_masks(values[: len(indices)])
            zeroed = [ops.where(taken[at], value, 0.0) for (at, _), value in zip(masked, values)]
            return [*taken, *zeroed]

        results = cond(due, take, lambda: [*masks, *values])
        targets = [self._pruning_masks[index] for index in indices] + [
            variable for _, variable in masked
        ]
        for variable, value in zip(targets, results):
            self.assign(variable, value)

    def _after_scores(self, due: Tensor, index: int) -> Tensor:
        """`due`, which XLA knows no sooner than the scores of a variable.

        Else it might overwrite the weights before they are read for the scores, and copies them.
        """
        slot = self._own_scores[index]
        slot = self._sensitivities[index] if slot is None else slot
        if slot is None or is_laid_out(slot):  # one element would have to go to all devices
            return due
        first = ops.convert_to_tensor(slot)[(0,) * len(slot.shape)]
        never = ops.equal(first, float("-inf"))
        return ops.logical_and(due, ops.logical_not(never))

    def _steps(self) -> tuple[int, int, int]:
        return self.begin_step, self.end_step, self.update_freq

    def _take_masks(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """The masks of the highest scores, as many as the schedule keeps."""
        indices = self._indices()
        ranked = [self._score(index, weight) for index, weight in zip(indices, weights)]
        if self.pattern is not None:
            ranked = [
                groups.best_two_beyond_all(self._trainable_variables[index], score)
                for index, score in zip(indices, ranked)
            ]
        sizes = [math.prod(score.shape) for score in ranked]
        if self.scope == "global":
            return thresholds.largest(ranked, self._kept_count(sum(sizes)))
        return [
            mask
            for score, size in zip(ranked, sizes)
            for mask in thresholds.largest([score], self._kept_count(size))
        ]

    def _kept_count(self, size: int) -> Tensor:
        return schedule.kept_count(size, self.final_sparsity, self.iterations, *self._steps())

    def _score(self, index: int, weight: Tensor) -> Tensor:
        """The scores of a pruned variable's weights, as float32."""
        if self.score == "magnitude":
            return ops.cast(scores.magnitude(weight), "float32")
        if self.score == "random":
            return scores.random(self.seed, index, tuple(weight.shape))
        if self.score in ("movement", "fisher"):
            return ops.convert_to_tensor(self._own_scores[index])
        average = ops.cast(self._sensitivities[index], "float32")
        if self.score == "sensitivity":
            return average
        # Of the roots, whose product no small gradient makes zero: the order is the same.
        uncertainty = ops.convert_to_tensor(self._own_scores[index])
        both = scores.confidence(ops.sqrt(average), ops.sqrt(uncertainty))
        # The first sensitivity is its own average, and its uncertainty nothing but rounding.
        return ops.where(ops.equal(self.iterations, 1), average, both)

    def _indices(self) -> list[int]:
        return [index for index, pruned in enumerate(self._pruned) if pruned] if self.built else []

    def _pruning_mask(self, index: int) -> Tensor:
        return ops.cast(self._pruning_masks[index], "bool")

    # What users look at.

    @property
    def pruned_variables(self) -> list[Variable]:
        """List of the variables that are pruned. Empty before the optimizer is built."""
        return [self._trainable_variables[index] for index in self._indices()]

    @property
    def sparsity(self) -> float:
        """The share of the weights of the pruned variables that is zero now, exactly."""
        sizes = [math.prod(variable.shape) for variable in self.pruned_variables]
        return 1.0 - sum(self.kept_counts()) / sum(sizes) if sizes else 0.0

    def mask(self, variable: Variable | str) -> Tensor:
        """Which weights of a variable are kept.

        Args:
            variable: A variable that this optimizer prunes, or the path of one.

        Returns:
            Boolean tensor of the variable's shape.

        Raises:
            ValueError: If the optimizer is not built, or does not know or prune this variable.
        """
        instead = "prunes: build it, then pass one of `optimizer.pruned_variables`"
        index = self._index_of_chosen(variable, instead)
        if not self._pruned[index]:
            raise ValueError(
                f"Argument `variable` must be one that this optimizer {instead}. "
                f"Received: variable={self._names.trained[index]}"
            )
        return ops.copy(self._pruning_mask(index))  # the slot's own is gone after a step on JAX

    def kept_counts(self) -> list[int]:
        """How many weights of each pruned variable are kept.

        Returns:
            List of integers, in the order of `pruned_variables`.
        """
        return [int(ops.convert_to_numpy(count)) for count in self._counts()]

    def _counts(self) -> list[Tensor]:
        return [ops.sum(ops.cast(self._pruning_mask(index), "int32")) for index in self._indices()]

    def _readable(self) -> bool:
        """Whether the masks can be read: not inside of what is traced, or lost by JAX."""
        held = all(has_value(one) for one in self._pruning_masks if one is not None)
        return held and all(map(is_concrete, self._counts()))

    def _own_settings(self) -> dict[str, Any]:
        settings = super()._own_settings()
        if self.total_steps is not None:  # from which they follow
            settings |= {"begin_step": None, "end_step": None}
        return settings

    def _phrases(self) -> list[str]:
        phrase = f"prunes {sum(self._pruned)} of {len(self._pruned)} variables"
        if self._readable():
            phrase += f", sparsity {self.sparsity:.3g}"
        return [phrase, *super()._phrases()]

    def _summary_columns(self) -> dict[str, dict[str, str]]:
        pruned = [path for path, yes in zip(self._names.trained, self._pruned) if yes]
        sizes = [math.prod(variable.shape) for variable in self.pruned_variables]
        column = {
            path: f"{1 - kept / size:.3g}"
            for path, kept, size in zip(pruned, self.kept_counts(), sizes)
        }
        return {"sparsity": column, **super()._summary_columns()}
