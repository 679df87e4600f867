"""The mixin that makes a Keras optimizer train subnetworks on mixed weights (DPS Mix)."""

from keras import ops

from sage_keras.annotations import Tensor, Variable
from sage_keras.optimizers.dps import selection
from sage_keras.optimizers.dps.mixing import WeightMixing
from sage_keras.optimizers.dps.subnetwork import SubnetworkSelection


class SubnetworkMixing(WeightMixing, SubnetworkSelection):
    """Mixin that makes a Keras optimizer train the subnetworks it selects, mixed (DPS, Mix).

    Put it before a Keras optimizer in the list of bases. Training then goes in cycles of two
    stages of `stage_steps` updates each, on mixed weights (see `WeightMixing`, and mind what it
    says of them):

    - In stage I columns are drawn for every step, and what is dropped is replaced by the initial
      weights. The squared gradients of the columns that were kept are added up, and so is how
      often each was kept.
    - In stage II the weights of the best scores train, the share `1 - drop_rate` of each variable,
      and the others are replaced by those that they had where the stage began. A score is the
      sum of the squared gradients divided by how often the column was kept; in stages of 50
      updates or more, columns that were kept often are punished.

    `SubnetworkSelection` tells more of stages and selection. With both, four more copies of the
    weights are kept.

    Args:
        *args: Positional arguments of the base optimizer.
        total_steps: Integer, the number of updates of the whole training, of which a stage takes
            the share `update_ratio`. Either this or `stage_steps` has to be passed. Defaults to
            `None`.
        update_ratio: Float in (0, 1), the share of `total_steps` that a stage takes. Defaults to
            `0.05`.
        stage_steps: Integer, the number of updates of a stage. Defaults to `None`:
            `total_steps * update_ratio` without its fraction.
        drop_rate: Float in [0, 1), the share of the weights that is dropped. Defaults to `0.3`.
        seed: Integer, at least 0, that the masks of stage I follow from. Defaults to `None`, a
            random one.
        include: `None`, or a list of regular expressions that are searched in `variable.path`.
            Defaults to `None`, every variable.
        exclude: `None`, or a list of regular expressions. Defaults to `None`.
        **kwargs: Keyword arguments of the base optimizer.

    Example:

    >>> import keras
    >>> import sage_keras
    >>> @keras.saving.register_keras_serializable(package="my_package")
    ... class DPSMixLion(sage_keras.SubnetworkMixing, keras.optimizers.Lion):
    ...     pass
    >>> optimizer = DPSMixLion(learning_rate=1e-4, total_steps=1000, seed=0)

    Reference:
        - [Zhang et al., 2022](https://arxiv.org/abs/2211.01642)
    """

    def _add_slots(self, variables: list[Variable]) -> None:
        super()._add_slots(variables)
        self._stage_weights = [
            self._add_slot(variable, "stage_weight", variable.dtype) if chosen else None
            for variable, chosen in zip(variables, self._chosen)
        ]
        self._frequencies = [
            self._add_slot(variable, "frequency", "float32", shape) if chosen else None
            for variable, shape, chosen in zip(variables, self._column_shapes, self._chosen)
        ]

    def _adjust(
        self, gradient: Tensor, variable: Variable, learning_rate: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Counts the columns kept in stage I."""
        index = self._get_variable_index(variable)
        if self._chosen[index]:
            self._accumulate(self._frequencies[index], self._kept_columns(index))
        return super()._adjust(gradient, variable, learning_rate)

    def _score_factor(self, index: int) -> Tensor:
        last = ops.equal(self._step_of_cycle(), self.stage_steps - 1)
        factor = selection.frequency_factor(self._frequencies[index], self.stage_steps)
        return ops.where(last, factor, ops.ones_like(factor))

    def _begin_stage_two(self, begins: Tensor) -> None:
        for index, variable in enumerate(self._trainable_variables):
            if not self._chosen[index]:
                continue
            start = ops.convert_to_tensor(self._stage_weights[index])
            weight = ops.convert_to_tensor(variable)  # the true one, inside `apply`
            self.assign(self._stage_weights[index], ops.where(begins, weight, start))
        super()._begin_stage_two(begins)

    def _mask(self, index: int) -> Tensor:
        drawn = WeightMixing._mask(self, index)
        selected = SubnetworkSelection._mask(self, index)
        return ops.where(self._in_stage_one(), drawn, selected)

    def _target(self, index: int) -> Tensor:
        initial = ops.convert_to_tensor(self._initial_weights[index])
        start = ops.convert_to_tensor(self._stage_weights[index])
        return ops.where(self._in_stage_one(), initial, start)
