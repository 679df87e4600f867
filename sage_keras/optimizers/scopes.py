"""Ready lists of patterns that choose which variables of a model are guided."""

# The attention and feed-forward kernels and biases of keras-hub's backbones, LoRA kernels
# included: what the authors of SAGE guide. Embeddings, normalisation, pooler and head stay out.
# The sublayer between block and kernel keeps out what is merely numbered, such as Whisper's
# `conv_layer_1/kernel`.
TRANSFORMER_BLOCKS = (
    r"(?:layer|block)_\d+/.+/(?:kernel|bias|lora_kernel_[ab])$",
    r"transformer_(?:en|de)coder(?:_\d+)?/.+/(?:kernel|bias|lora_kernel_[ab])$",
)
