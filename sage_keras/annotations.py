"""Types for signatures, where the field has no name of its own."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np
import numpy.typing as npt

Tensor: TypeAlias = Any  # each backend has its own, and Keras takes them all
Variable: TypeAlias = Any  # a keras.Variable, or a raw tf.Variable
LearningRate: TypeAlias = (
    float | keras.optimizers.schedules.LearningRateSchedule | Callable[[], float | Tensor]
)
Patterns: TypeAlias = Sequence[str] | None
Groups: TypeAlias = dict[str, str] | Callable[[Variable], str | None] | None
Scores: TypeAlias = Mapping[str, npt.ArrayLike]  # by variable path
Arrays: TypeAlias = dict[str, np.ndarray]
