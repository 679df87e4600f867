"""Sensitivity-guided optimizers for Keras."""

from sage_keras.optimizers.guided import SensitivityGuided, guided_optimizers
from sage_keras.optimizers.sage import Sage, SageAdam, SageAdamax, SageSGD
from sage_keras.optimizers.scopes import TRANSFORMER_BLOCKS

__version__ = "0.1.0"

__all__ = [
    "TRANSFORMER_BLOCKS",
    "Sage",
    "SageAdam",
    "SageAdamax",
    "SageSGD",
    "SensitivityGuided",
    "guided_optimizers",
]
