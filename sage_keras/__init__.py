"""Sensitivity-guided optimizers for Keras."""

from sage_keras.optimizers.dps.dps import DPSDense, DPSMix, Mixout
from sage_keras.optimizers.dps.mixing import WeightMixing
from sage_keras.optimizers.dps.subnetwork import SubnetworkSelection
from sage_keras.optimizers.dps.subnetwork_mixing import SubnetworkMixing
from sage_keras.optimizers.layerwise.decay import layerwise_decay
from sage_keras.optimizers.layerwise.layerwise import LayerwiseAdamW, LayerwiseLearningRate
from sage_keras.optimizers.patterns import (
    BIASES_AND_HEAD,
    TRANSFORMER_BLOCKS,
    TRANSFORMER_MATRICES,
)
from sage_keras.optimizers.pruning.gradual import GradualPruning
from sage_keras.optimizers.pruning.keep_zeros import KeepZeros
from sage_keras.optimizers.pruning.platon import Platon, PrunedAdamW
from sage_keras.optimizers.sage.guided import SensitivityGuided, guided_optimizers
from sage_keras.optimizers.sage.sage import Sage, SageAdam, SageAdamax, SageSGD
from sage_keras.optimizers.saved_state import check_state_tree
from sage_keras.optimizers.sparse.child_tuning import ChildTuning, ChildTuningAdamW
from sage_keras.optimizers.sparse.fine_tuning import SparseAdamW, SparseFineTuning

__version__ = "0.1.0"

__all__ = [
    "BIASES_AND_HEAD",
    "TRANSFORMER_BLOCKS",
    "TRANSFORMER_MATRICES",
    "ChildTuning",
    "ChildTuningAdamW",
    "DPSDense",
    "DPSMix",
    "GradualPruning",
    "KeepZeros",
    "LayerwiseAdamW",
    "LayerwiseLearningRate",
    "Mixout",
    "Platon",
    "PrunedAdamW",
    "Sage",
    "SageAdam",
    "SageAdamax",
    "SageSGD",
    "SensitivityGuided",
    "SparseAdamW",
    "SparseFineTuning",
    "SubnetworkMixing",
    "SubnetworkSelection",
    "WeightMixing",
    "check_state_tree",
    "guided_optimizers",
    "layerwise_decay",
]
