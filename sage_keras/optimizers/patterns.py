"""Ready lists of patterns that choose which variables of a model a method acts on."""

# The attention and feed-forward kernels and biases of keras-hub's backbones, LoRA kernels
# included: what the authors of SAGE guide. Embeddings, normalisation, pooler and head stay out.
# The sublayer between block and kernel keeps out what is merely numbered, such as Whisper's
# `conv_layer_1/kernel`.
TRANSFORMER_BLOCKS = (
    r"(?:layer|block)_\d+/.+/(?:kernel|bias|lora_kernel_[ab])$",
    r"transformer_(?:en|de)coder(?:_\d+)?/.+/(?:kernel|bias|lora_kernel_[ab])$",
)

# The weight matrices of attention, feed-forward, pooler and head of keras-hub's backbones and
# classifiers: where the authors of DPS select. Biases, embeddings and normalisation stay out.
TRANSFORMER_MATRICES = (
    r"(?:layer|block)_\d+/.+/kernel$",
    r"transformer_(?:en|de)coder(?:_\d+)?/.+/kernel$",
    r"(?:^|/)(?:pooled_dense|pooler|logits|head|classifier|predictions)/kernel$",
)
