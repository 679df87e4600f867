"""Which variables of a model a method acts on: ready lists of patterns, and a choice by shape."""

import re

from sage_keras.annotations import Variable
from sage_keras.paths import variable_path

# The blocks of keras-hub's backbones, by their names.
_BLOCK = (
    r"(?:(?:layer|block)s?_\d+|(?:transformer|xlnet|hierarchical)_(?:en|de)coder(?:_\d+)*)/"
    r"(?!.*(?:router|sparse_feedforward_gate|shared_expert_gate))"  # they choose the experts
)
# The weights of all experts together, which are no layers of their own.
_EXPERTS = r".*expert(?:s|_bank)/\w+_(?:dense|proj)"

# The attention and feed-forward kernels and biases of keras-hub's backbones, LoRA kernels
# and experts included: what the authors of SAGE guide. Embeddings, normalisation, routers, pooler
# and head stay out. The sublayer between block and kernel keeps out what is merely numbered, such
# as Whisper's `conv_layer_1/kernel`. SmolLM builds one sublayer, `o_proj`, outside of its blocks.
TRANSFORMER_BLOCKS = (
    _BLOCK + r".+/(?:kernel|bias|lora_kernel_[ab])$",
    _BLOCK + _EXPERTS + r"(?:_bias)?$",
    r"(?:^|/)o_proj/(?:kernel|bias|lora_kernel_[ab])$",
)

# The weight matrices of attention, feed-forward, pooler and head of keras-hub's backbones and
# classifiers: where the authors of DPS select. Biases, embeddings, normalisation and routers stay
# out.
TRANSFORMER_MATRICES = (
    _BLOCK + r".+/kernel$",
    _BLOCK + _EXPERTS + "$",
    r"(?:^|/)(?:o_proj|pooled_dense|pooler|logits|head|classifier|predictions)/kernel$",
)

# The biases, those of normalisation too, and the head and pooler of keras-hub's classifiers: what
# BitFit trains. Made factors of `LayerwiseAdamW`, with 0 for the rest, the rest has no state:
#
#     learning_rate_multipliers = dict.fromkeys(BIASES_AND_HEAD, 1.0) | {"": 0.0}
BIASES_AND_HEAD = (
    r"(?:^|/)(?:bias|beta)$",
    r"(?:^|/)(?:pooled_dense|logits|head|classifier|predictions)/",
)
_EMBEDDINGS = re.compile(r"embedding[^/]*$")  # a table of rows, or its reverse


def is_weight_matrix(variable: Variable) -> bool:
    """Whether a variable multiplies the inputs of a layer: two axes at least, no embedding or bias.

    The biases of attention have an axis for the heads.
    """
    path = variable_path(variable)
    few = len(variable.shape) < 2
    return not (few or path.endswith("bias") or _EMBEDDINGS.search(path))
