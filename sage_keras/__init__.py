"""Sensitivity-guided optimizers for Keras."""

from sage_keras.optimizers.dps import DPSDense, DPSMix, Mixout
from sage_keras.optimizers.guided import SensitivityGuided, guided_optimizers
from sage_keras.optimizers.layerwise import (
    LayerwiseAdamW,
    LayerwiseLearningRate,
    layerwise_decay,
)
from sage_keras.optimizers.mixing import WeightMixing
from sage_keras.optimizers.sage import Sage, SageAdam, SageAdamax, SageSGD
from sage_keras.optimizers.scopes import TRANSFORMER_BLOCKS, TRANSFORMER_MATRICES
from sage_keras.optimizers.subnetwork import SubnetworkSelection
from sage_keras.optimizers.subnetwork_mixing import SubnetworkMixing

__version__ = "0.1.0"

__all__ = [
    "TRANSFORMER_BLOCKS",
    "TRANSFORMER_MATRICES",
    "DPSDense",
    "DPSMix",
    "LayerwiseAdamW",
    "LayerwiseLearningRate",
    "Mixout",
    "Sage",
    "SageAdam",
    "SageAdamax",
    "SageSGD",
    "SensitivityGuided",
    "SubnetworkMixing",
    "SubnetworkSelection",
    "WeightMixing",
    "guided_optimizers",
    "layerwise_decay",
]
