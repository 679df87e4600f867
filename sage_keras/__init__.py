"""Sensitivity-guided optimizers for Keras."""

import importlib
from typing import TYPE_CHECKING, Any

from sage_keras.optimizers.dps.dps import DPSDense, DPSMix, Mixout
from sage_keras.optimizers.dps.mixing import WeightMixing
from sage_keras.optimizers.dps.subnetwork import SubnetworkSelection
from sage_keras.optimizers.dps.subnetwork_mixing import SubnetworkMixing
from sage_keras.optimizers.layerwise.decay import layerwise_decay
from sage_keras.optimizers.layerwise.layerwise import LayerwiseAdamW, LayerwiseLearningRate
from sage_keras.optimizers.layerwise_sage import LayerwiseSage
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
from sage_keras.optimizers.sparse.fine_tuning import SparseFineTuning
from sage_keras.optimizers.sparse.sparse_adamw import SparseAdamW

if TYPE_CHECKING:
    from sage_keras import analysis as analysis
    from sage_keras import callbacks as callbacks
    from sage_keras import compression as compression
    from sage_keras import hub as hub
else:
    _SUBMODULES = ("analysis", "callbacks", "compression", "hub")

    def __getattr__(name: str) -> Any:
        """Imports a submodule when it is first used."""
        if name in _SUBMODULES:
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *_SUBMODULES})


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
    "LayerwiseSage",
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
