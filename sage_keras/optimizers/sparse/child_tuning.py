"""The mixin that trains a part of the weights at a time (Child-Tuning), and AdamW with it."""

import random
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from sage_keras import arguments
from sage_keras.annotations import LearningRate, Patterns, Scores, Tensor, Variable
from sage_keras.optimizers.base import VariableChoice
from sage_keras.optimizers.sparse import choice
from sage_keras.paths import unique_paths
from sage_keras.random_bits import chosen, random_bits


class ChildTuning(VariableChoice):
    """Mixin that updates a part of the weights by their gradients, the child network.

    Put it before a Keras optimizer in the list of bases. Only gradients change, and they do
    before they are clipped:

    - `mode="free"`: each step every weight is in the child with the probability `fraction`. Its
      gradient is divided by `fraction`, and those of the others are zero. The draws follow from
      `seed` and `iterations`: they are the same on every backend, a resumed run goes on as one
      that was never stopped, and micro-steps of gradient accumulation share a draw.
    - `mode="driven"`: the child are the best `fraction` of each variable's weights by `scores`,
      for the whole run.

    What to expect:

    - Under Adam the free mode is in part a lower learning rate: a gradient that is `g / p` with
      the probability `p` has the mean `g` but the mean square `g^2 / p`, by which Adam divides.
      Its steps are smaller by `sqrt(p)`, and noisier. Compare with the base at
      `sqrt(p) * learning_rate`.
    - Weights outside of the child still follow the base's momentum and weight decay, as in the
      published code. `SparseFineTuning` keeps every bit of them, and saves their state.
    - Scores are not part of the configuration. An optimizer that is made from it, and gets no
      saved state, has a driven child of all weights.
    - In the paper only the Transformer's blocks have a driven child; embeddings and head train as
      a whole. For that pass `include=TRANSFORMER_BLOCKS`.

    Args:
        *args: Positional arguments of the base optimizer.
        mode: `"free"` or `"driven"`. Defaults to `"free"`.
        fraction: Float above 0 and at most 1, the share of the weights in the child: 0.2 to 0.4 in
            the paper if free, 0.1 to 0.3 if driven. Defaults to `0.3`.
        scores: For `"driven"` a dict of variable path to array, such as the mean squared gradients
            over the training data (Fisher), or what `sage_keras.analysis.measure_sensitivity`
            returns. Defaults to `None`.
        seed: Integer, at least 0, that the draws follow from. Defaults to `None`, a random one,
            which Python's `random.seed` makes reproducible.
        include: `None`, or a list of regular expressions that are searched in `variable.path`. The
            others take the plain base step. Defaults to `None`, every variable.
        exclude: `None`, or a list of regular expressions. Defaults to `None`.
        **kwargs: Keyword arguments of the base optimizer.

    Raises:
        TypeError: Where the class is made, if its bases stand in the wrong order; where an object
            is made, if an argument is of the wrong type.
        ValueError: If an argument is out of range, if `scores` are missing or not of the model's
            variables, or if `include` or `exclude` matches no variable.

    Example:

    >>> import keras
    >>> import sage_keras
    >>> @keras.saving.register_keras_serializable(package="my_package")
    ... class ChildSGD(sage_keras.ChildTuning, keras.optimizers.SGD):
    ...     pass
    >>> kernel = keras.Variable([1.0, 1.0], name="kernel")
    >>> fisher = {"kernel": [0.5, 2.0]}
    >>> optimizer = ChildSGD(learning_rate=0.5, mode="driven", fraction=0.5, scores=fisher)
    >>> optimizer.apply([keras.ops.ones((2,))], [kernel])
    >>> keras.ops.convert_to_numpy(kernel).tolist()
    [1.0, 0.5]

    Reference:
        - [Xu et al., 2021](https://arxiv.org/abs/2109.05687)
    """

    _rank = 25
    _settings: ClassVar[tuple[str, ...]] = ("mode", "fraction", "scores", "seed")

    def __init__(
        self,
        *args: Any,
        mode: str = "free",
        fraction: float = 0.3,
        scores: Scores | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.mode = arguments.choice("mode", mode, ("free", "driven"))
        self.fraction = arguments.number("fraction", fraction, 0.0, 1.0, "0.3", high_included=True)
        if seed is None and self.mode == "free":
            seed = random.randrange(2**31)
        self.seed = None if seed is None else arguments.integer("seed", seed, low=0, example=0)
        if (scores is None) != (self.mode == "free") or isinstance(scores, str):
            raise ValueError(
                'Argument `scores` must be a dict of variable path to array with mode="driven", '
                f'and None with mode="free". Received: mode={mode!r}, scores={scores!r}'
            )
        self._child = _Child(scores)

    @property
    def scores(self) -> Any:
        """The argument, of which only the fingerprint is kept."""
        return self._child.scores.described() if self._child.scores else None

    def _prepare(self, variables: list[Variable]) -> None:
        super()._prepare(variables)
        self._child.choose(variables, self._chosen, self.fraction)

    def _add_slots(self, variables: list[Variable]) -> None:
        super()._add_slots(variables)
        self._masks = [
            self._add_slot(
                variable,
                "child",
                "bool",
                initializer=lambda shape, dtype, mask=mask: ops.convert_to_tensor(mask, dtype),
            )
            if mask is not None
            else None
            for variable, mask in zip(variables, self._child.masks)
        ]
        self._child.masks = []

    def _before_clipping(self, grads: list[Tensor], variables: list[Variable]) -> list[Tensor]:
        grads = self._dense(grads, variables)
        grads = [
            self._of_child(gradient, self._get_variable_index(variable))
            if self._is_chosen(variable)
            else gradient
            for gradient, variable in zip(grads, variables)
        ]
        return super()._before_clipping(grads, variables)

    def _of_child(self, gradient: Tensor, index: int) -> Tensor:
        if self.mode == "driven":
            return ops.where(ops.convert_to_tensor(self._masks[index]), gradient, 0.0)
        bits = random_bits((self.seed or 0) + index, self.iterations, tuple(gradient.shape))
        return ops.where(chosen(bits, self.fraction), ops.divide(gradient, self.fraction), 0.0)

    def _phrases(self) -> list[str]:
        children = f"trains a child of {sum(self._chosen)} of {len(self._chosen)} variables"
        return [children, *super()._phrases()]

    def _summary_columns(self) -> dict[str, dict[str, str]]:
        return {"child": self._chosen_marks(), **super()._summary_columns()}


class _Child:
    """The scores and masks until they are slots: here neither Keras nor TensorFlow tracks them."""

    def __init__(self, scores: Any) -> None:
        self.scores = None if scores is None else choice.Scores(scores)
        self.masks: list[np.ndarray | None] = []

    def choose(self, variables: list[Variable], chosen: list[bool], fraction: float) -> None:
        self.masks = [None] * len(variables)
        if self.scores is None:
            return
        indices = [index for index, yes in enumerate(chosen) if yes]
        shapes = [tuple(variables[index].shape) for index in indices]
        if self.scores.arrays is None:  # of a configuration: all, until a saved state is loaded
            for index, shape in zip(indices, shapes):
                self.masks[index] = np.ones(shape, bool)
            return
        paths = unique_paths(variables)
        arrays = self.scores.of([paths[index] for index in indices], shapes)
        for index, shape, best in zip(indices, shapes, choice.best(arrays, fraction, "variable")):
            mask = np.zeros(shape, bool)
            mask.reshape(-1)[best] = True
            self.masks[index] = mask
        self.scores.arrays = {}  # they take as much memory as the weights


@keras.saving.register_keras_serializable(package="sage_keras")
class ChildTuningAdamW(ChildTuning, keras.optimizers.AdamW):
    """AdamW that updates a part of the weights by their gradients, the child network.

    `ChildTuning` tells how the child is chosen, and what its free mode is under Adam.

    Args:
        learning_rate: A float, a `keras.optimizers.schedules.LearningRateSchedule`, or a callable
            that takes no arguments and returns the value to use. Defaults to `0.001`.
        weight_decay: Float, the decoupled weight decay, of all weights. Defaults to `0.004`.
        mode: `"free"` or `"driven"`. Defaults to `"free"`.
        fraction: Float above 0 and at most 1, the share of the weights in the child. Defaults to
            `0.3`.
        scores: For `"driven"` a dict of variable path to array. Defaults to `None`.
        seed: Integer, that the draws follow from. Defaults to `None`, a random one.
        include: `None`, or a list of regular expressions that are searched in `variable.path`.
            Defaults to `None`, every variable.
        exclude: `None`, or a list of regular expressions. Defaults to `None`.
        **kwargs: The other arguments of `keras.optimizers.AdamW`: `beta_1`, `beta_2`, `epsilon`,
            `amsgrad`, `clipnorm`, `clipvalue`, `global_clipnorm`, `use_ema`, `ema_momentum`,
            `ema_overwrite_frequency`, `loss_scale_factor`, `gradient_accumulation_steps`, `name`.

    Example:

    >>> import keras
    >>> from sage_keras import ChildTuningAdamW
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile(optimizer=ChildTuningAdamW(2e-4, fraction=0.3, seed=0), loss="mse")

    Reference:
        - [Xu et al., 2021](https://arxiv.org/abs/2109.05687)
    """

    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        weight_decay: float = 0.004,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        amsgrad: bool = False,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        loss_scale_factor: float | None = None,
        gradient_accumulation_steps: int | None = None,
        name: str | None = None,
        *,
        mode: str = "free",
        fraction: float = 0.3,
        scores: Scores | None = None,
        seed: int | None = None,
        include: Patterns = None,
        exclude: Patterns = None,
        on_nonfinite: str = "propagate",
        **kwargs: Any,
    ) -> None:
        super().__init__(**arguments.passed(locals()))
