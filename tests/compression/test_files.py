"""Sparse files and deltas: every bit comes back, and what is not as it was written is refused."""

import hashlib
import json
import os
import zlib

import keras
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_keras.compression import (
    apply_delta,
    load_sparse,
    prune,
    remove_delta,
    save_delta,
    save_sparse,
)

# Negative zero, the smallest denormal, a quiet NaN with a payload, infinity.
ODD = np.array([0x80000000, 0x00000001, 0x7FC01234, 0x7F800000], dtype="uint32").view("float32")


class Weights(keras.layers.Layer):
    """Variables of many shapes and dtypes."""

    def __init__(self, shapes, **kwargs):
        super().__init__(**kwargs)
        self.shapes = shapes

    def build(self, input_shape):
        for index, (shape, dtype) in enumerate(self.shapes):
            trainable = dtype != "int8"  # as Keras quantizes
            self.add_weight(
                shape=shape, dtype=dtype, name=f"w{index}", trainable=trainable, initializer="zeros"
            )

    def call(self, inputs):
        return inputs


SHAPES = (
    ((300, 4), "float32"),
    ((7, 3, 2), "bfloat16"),
    ((40,), "float16"),
    ((9, 9), "int8"),
    ((), "float32"),
    ((0, 2), "float32"),
)


def model(name="net", shapes=SHAPES):
    net = keras.Sequential([keras.Input((1,)), Weights(shapes, name="weights")], name=name)
    net.build((None, 1))
    return net


ONE, OTHER = model(), model("other")


def bits(net):
    found = []
    for weight in net.weights:
        array = np.ascontiguousarray(keras.ops.convert_to_numpy(weight))
        found.append(array.reshape(-1).view(f"uint{8 * array.dtype.itemsize}").copy())
    return found


def assert_same_bits(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def fill(net, random, share):
    """Values of which the share is zero."""
    for weight in net.weights:
        values = random.normal(size=weight.shape) * 9
        values = np.where(random.random(weight.shape) < share, 0.0, values)
        dtype = weight.dtype
        values = np.asarray(values).astype(getattr(ml_dtypes, dtype, dtype))
        if dtype == "float32" and values.ndim == 2 and len(values):
            values[:2, :2] = ODD.reshape(2, 2)
        weight.assign(values)


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1), share=st.sampled_from([0.0, 0.3, 0.6, 0.9, 1.0]))
def test_sparse_files_give_back_every_bit(tmp_path_factory, seed, share):
    path = tmp_path_factory.mktemp("files") / "sub" / "weights.sparse"
    random = np.random.default_rng(seed)
    fill(ONE, random, share)
    fill(OTHER, random, 0.5)
    save_sparse(ONE, path)
    load_sparse(OTHER, path)
    assert_same_bits(bits(OTHER), bits(ONE))
    assert {weight.dtype for weight in OTHER.weights} == {dtype for _, dtype in SHAPES}


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1), share=st.sampled_from([0.0, 0.02, 0.5, 1.0]))
def test_deltas_go_on_and_off_to_the_bit(tmp_path_factory, seed, share):
    path = tmp_path_factory.mktemp("files") / "task.delta"
    random = np.random.default_rng(seed)
    fill(ONE, random, 0.3)
    base, before = ONE.get_weights(), bits(ONE)
    OTHER.set_weights(base)
    for weight, old in zip(ONE.weights, base):
        changed = random.random(old.shape) < share
        weight.assign(np.where(changed, -old, old).astype(old.dtype))
    tuned = bits(ONE)
    save_delta(ONE, base, path)
    apply_delta(OTHER, path)
    assert_same_bits(bits(OTHER), tuned)
    remove_delta(OTHER, path)
    assert_same_bits(bits(OTHER), before)
    remove_delta(ONE, path)
    assert_same_bits(bits(ONE), before)


def test_they_are_small(tmp_path):
    random = np.random.default_rng(0)
    net, size = model("big", (((512, 512), "float32"),)), 4 * 512 * 512
    base = random.normal(size=(512, 512)).astype("float32") * 0.05
    scores = {net.weights[0].path: np.abs(base)}
    net.set_weights([base])
    prune(net, scores, 0.9)
    save_sparse(net, tmp_path / "sparse")
    assert os.path.getsize(tmp_path / "sparse") < 0.12 * size

    step = random.normal(size=(512, 512)).astype("float32") * 1e-3
    net.set_weights([base + np.where(random.random((512, 512)) < 0.01, step, 0)])
    save_delta(net, [base], tmp_path / "delta")
    # Of 1 % of MiniLM's 22.7 million weights that makes 1.0 MB.
    assert os.path.getsize(tmp_path / "delta") < 4.6 * 0.01 * size / 4


def test_names_that_keras_counts_need_not_be_the_same(tmp_path):
    def net(units=2):
        return keras.Sequential([keras.Input((2,)), keras.layers.Dense(units)])

    first, second = net(), net()
    assert [one.path for one in first.weights] != [one.path for one in second.weights]
    save_sparse(first, tmp_path / "weights")
    load_sparse(second, tmp_path / "weights")
    assert_same_bits(bits(second), bits(first))
    with pytest.raises(ValueError, match=r"of another model. In the model only: .*kernel \(2, 3\)"):
        load_sparse(net(3), tmp_path / "weights")


def test_what_was_there_stays_until_the_new_file_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "weights"
    path.write_bytes(b"before")

    def no_space(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="no space"):
        save_sparse(ONE, path)
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["weights"]


SMALL = (((6, 4), "float32"), ((5,), "bfloat16"))


@pytest.fixture(scope="module")
def small():
    net = model("small", SMALL)
    fill(net, np.random.default_rng(3), 0.7)
    return net


@pytest.fixture(scope="module")
def written(small, tmp_path_factory):
    """A sparse file and a delta, and the model that loads them."""
    folder = tmp_path_factory.mktemp("written")
    save_sparse(small, folder / "sparse")
    base = [np.zeros_like(one) for one in small.get_weights()]
    save_delta(small, base, folder / "delta")
    other = model("loads", SMALL)
    return folder, other


def readers(net, folder):
    return ((load_sparse, folder / "sparse"), (apply_delta, folder / "delta"))


def test_any_flipped_bit_and_any_missing_end_is_refused(written, tmp_path):
    folder, net = written
    before = bits(net)
    for read, path in readers(net, folder):
        content = path.read_bytes()
        flipped = [
            bytes([*content[:at], content[at] ^ 1 << at % 8, *content[at + 1 :]])
            for at in range(0, len(content), 11)
        ]
        cut = [content[:length] for length in range(0, len(content), 23)]
        for damaged in [*flipped, *cut, content + b"\0", content + content, content[1:]]:
            (tmp_path / "damaged").write_bytes(damaged)
            with pytest.raises(ValueError, match=r"is damaged|is none that"):
                read(net, tmp_path / "damaged")
    assert_same_bits(bits(net), before)


def signed(content):
    return content + hashlib.sha256(content).digest()


def forged(path, change):
    """The file with another header, and a digest that fits."""
    content = path.read_bytes()
    end = 24 + int.from_bytes(content[16:24], "little")
    header = json.loads(content[24:end])
    changed = change(header)
    text = changed if isinstance(changed, bytes) else json.dumps(header).encode()
    return signed(content[:16] + len(text).to_bytes(8, "little") + text + content[end:-32])


def of_first(**values):
    def change(header):
        header["variables"][0].update(values)

    return change


def put(**values):
    return lambda header: header.update(values)


FORGED = {
    "no JSON": (lambda header: b"{", "header cannot be read"),
    "nested without end": (lambda header: b"[" * 200_000, "header cannot be read"),
    "a list": (lambda header: b"[]", "header cannot be read"),
    "no format": (lambda header: header.pop("format"), "header cannot be read"),
    "no variables": (put(variables=[]), "parts are of another length"),
    "variables are none": (put(variables=3), "header cannot be read"),
    "another format": (put(format=2), "is of format 2"),
    "an unknown kind": (put(kind="pickle"), "of another kind: it holds 'pickle'"),
    "a path is a number": (of_first(path=3), "a path is no string"),
    "another path": (of_first(path="net/other"), "is of another model"),
    "another shape": (of_first(shape=[4, 6]), "is of another model"),
    "a negative size": (of_first(shape=[-6, -4]), "a shape is no list of sizes"),
    "a huge shape": (of_first(shape=[2**40, 2**40], count=None), "is of another model"),
    "an unknown dtype": (of_first(dtype="object"), "dtype"),
    "text": (of_first(dtype="string"), "'string' is no dtype"),
    "another dtype": (of_first(dtype="int32"), "holds int32 for"),
    "more elements than there are": (of_first(count=25), "a count is out of range"),
    "fewer elements": (of_first(count=1), "it is of another length"),
    "all elements": (of_first(count=None), "it has positions and needs none"),
    "parts of another length": (of_first(bytes=[3, 3]), "parts are of another length"),
    "a negative length": (of_first(bytes=[-3, 90]), "the length of a part is none"),
}


@pytest.mark.parametrize("name", FORGED)
def test_headers_that_were_made_up_are_refused(written, tmp_path, name):
    folder, net = written
    change, message = FORGED[name]
    before = bits(net)
    (tmp_path / "forged").write_bytes(forged(folder / "sparse", change))
    with pytest.raises(ValueError, match=message):
        load_sparse(net, tmp_path / "forged")
    assert_same_bits(bits(net), before)


def test_parts_that_were_made_up_are_refused(written, tmp_path):
    folder, net = written
    before = bits(net)
    content = (folder / "sparse").read_bytes()
    end = 24 + int.from_bytes(content[16:24], "little")
    header = json.loads(content[24:end])
    gaps = header["variables"][0]["bytes"][0]
    count = header["variables"][0]["count"]
    beyond = np.zeros(count, "uint32")
    beyond[-1] = 24
    whole = content[end : end + gaps]
    parts = [
        (
            "a position is beyond its end",
            zlib.compress(beyond.view("uint8").reshape(-1, 4).T.tobytes()),
        ),
        ("it is of another length", zlib.compress(bytes(10**7))),  # unpacked no further than needed
        ("it is of another length", whole + bytes(3)),
        ("it is of another length", whole[:-4]),  # its values are there, and its end is not
        ("cannot be read", b"\x00" * gaps),
    ]
    for message, part in parts:
        made_up = content[:end] + part + content[end + gaps :]

        def change(header, part=part):
            header["variables"][0]["bytes"][0] = len(part)

        (tmp_path / "parts").write_bytes(signed(made_up[:-32]))
        (tmp_path / "forged").write_bytes(forged(tmp_path / "parts", change))
        with pytest.raises(ValueError, match=message):
            load_sparse(net, tmp_path / "forged")
    assert_same_bits(bits(net), before)


def test_each_kind_has_its_reader(written, tmp_path):
    folder, net = written
    with pytest.raises(ValueError, match=r"holds 'delta', and not .* Read it with `apply_delta`"):
        load_sparse(net, folder / "delta")
    with pytest.raises(ValueError, match="Read it with `load_sparse`"):
        remove_delta(net, folder / "sparse")
    net.save_weights(tmp_path / "foreign.weights.h5")
    with pytest.raises(ValueError, match="is none that `save_sparse` wrote"):
        load_sparse(net, tmp_path / "foreign.weights.h5")
    with pytest.raises(FileNotFoundError):
        apply_delta(net, tmp_path / "missing")


def test_a_delta_is_of_one_base(written, small):
    folder, net = written
    delta = folder / "delta"
    net.set_weights([np.zeros_like(one) for one in net.get_weights()])
    with pytest.raises(ValueError, match="is not applied"):
        remove_delta(net, delta)
    apply_delta(net, delta)
    with pytest.raises(ValueError, match="was applied already"):
        apply_delta(net, delta)
    assert_same_bits(bits(net), bits(small))
    net.weights[1].assign(net.weights[1] + 1)
    before = bits(net)
    for change in (apply_delta, remove_delta):
        with pytest.raises(ValueError, match="of other weights than the model has"):
            change(net, delta)
    assert_same_bits(bits(net), before)


@pytest.mark.parametrize(
    ("base", "kind", "message"),
    [
        ("weights", TypeError, "`base` must be a `keras.Model` or what its `get_weights"),
        ([np.zeros((6, 4), "float32")], ValueError, "`base` has 1 weights, and the model"),
        (
            [np.zeros((4, 6), "float32"), np.zeros(5, ml_dtypes.bfloat16)],
            ValueError,
            r"shape \(4, 6\) and the dtype float32 for 'small/weights/w0'",
        ),
        (
            [np.zeros((6, 4), "float32"), np.zeros(5, "float16")],
            ValueError,
            "the dtype float16 for 'small/weights/w1'",
        ),
    ],
)
def test_a_base_of_another_architecture_is_refused(small, tmp_path, base, kind, message):
    with pytest.raises(kind, match=message):
        save_delta(small, base, tmp_path / "delta")
    assert os.listdir(tmp_path) == []


def test_paths_that_are_no_files_are_refused(small, tmp_path):
    with pytest.raises(ValueError, match=r"`path` must be the path of a file.* is a folder"):
        save_sparse(small, tmp_path)
    with pytest.raises(TypeError, match="`path` must be the path of a file"):
        save_sparse(small, 3)
    with pytest.raises(ValueError, match="is not built"):
        save_sparse(keras.Sequential([keras.layers.Dense(1)]), tmp_path / "weights")


def test_a_quantized_model_comes_back(tmp_path):
    def net():
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)], name="net")

    first, second = net(), net()
    for one in (first, second):
        one.quantize("int8")
    save_sparse(first, tmp_path / "weights")
    load_sparse(second, tmp_path / "weights")
    assert first.layers[0]._kernel.dtype == "int8"
    assert_same_bits(bits(second), bits(first))
