"""Both implementations of the kernels against sums of products in numpy, whose uint64 wraps as the ring does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_private import native
from keras_private.encrypted.kernels import Kernels, PortableKernels
from keras_private.errors import BackendError

SOME = settings(max_examples=25, deadline=None)
WORDS = {tf.int8: np.uint8, tf.int16: np.uint16, tf.int32: np.uint32, tf.int64: np.uint64}
CONTAINERS = {64: tf.int64, 32: tf.int64, 16: tf.int32, 8: tf.int16, 4: tf.int8, 2: tf.int8, 1: tf.int8}
# RFC 8439, A.1, test vector 1.
FIRST_BLOCK = bytes.fromhex(
    "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
    "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
)


def load_native() -> Kernels | None:
    try:
        native.load()
    except BackendError:
        return None
    from keras_private.encrypted.kernels.native import NativeKernels

    return NativeKernels()


NATIVE = load_native()
ALL = [PortableKernels()] if NATIVE is None else [PortableKernels(), NATIVE]

each_kernels = pytest.mark.parametrize("kernels", ALL, ids=lambda kernels: kernels.name)
needs_native = pytest.mark.skipif(NATIVE is None, reason="the native operations are not built")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def words(generator: np.random.Generator, shape: Any, dtype: tf.DType = tf.int64) -> tf.Tensor:
    unsigned = WORDS[dtype]
    drawn = generator.integers(0, np.iinfo(unsigned).max, size=shape, dtype=unsigned, endpoint=True)
    return tf.constant(np.asarray(drawn).view(dtype.as_numpy_dtype))


def several(generator: np.random.Generator, count: int, shape: Any, dtype: tf.DType = tf.int64) -> list[tf.Tensor]:
    return [words(generator, shape, dtype) for _ in range(count)]


def key(generator: np.random.Generator) -> tf.Tensor:
    return tf.constant(generator.integers(0, 256, 32).astype(np.uint8))


def nonce(generator: np.random.Generator, last: int = 0) -> tf.Tensor:
    return tf.constant([*generator.integers(0, 256, 11), last], tf.uint8)


def ring(tensor: Any) -> np.ndarray:
    array = np.asarray(tensor)
    return array.view(WORDS[tf.as_dtype(array.dtype)]) if array.dtype.kind == "i" else array


def same(result: tf.Tensor, expected: np.ndarray) -> None:
    assert result.dtype == tf.as_dtype(f"int{8 * expected.dtype.itemsize}")
    np.testing.assert_array_equal(ring(result), expected)


def bilinear(run: Any, x: list[tf.Tensor], y: list[tf.Tensor], mask: tf.Tensor) -> np.ndarray:
    (x0, x1), (y0, y1) = (map(ring, each) for each in (x, y))
    return ring(mask) + run(x0, y0 + y1) + run(x1, y0)


def matrix_product(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.matmul(x, y) if x.shape[1] else np.zeros((x.shape[0], y.shape[1]), np.uint64)


# Streams.


@each_kernels
def test_keystream_is_chacha20_of_rfc_8439(kernels):
    zeros = tf.zeros([32], tf.uint8), tf.zeros([12], tf.uint8)
    for dtype, unsigned in WORDS.items():
        expected = np.frombuffer(FIRST_BLOCK, np.dtype(unsigned).newbyteorder("<"))
        same(kernels.keystream(*zeros, [len(expected)], dtype), expected.astype(unsigned))


@needs_native
@SOME
@given(
    shape=st.lists(st.integers(0, 7), max_size=3) | st.sampled_from([[2047], [2048], [4097], [3, 50_001]]),
    dtype=st.sampled_from(list(WORDS)),
    seed=st.integers(0, 999),
)
def test_native_streams_equal_portable(shape, dtype, seed):
    generator = rng(seed)
    keys, number = [key(generator), key(generator)], nonce(generator, last=3)
    portable = PortableKernels()
    first, second = (ring(portable.keystream(each, number, shape, dtype)) for each in keys)
    assert first.shape == tuple(shape)
    same(NATIVE.keystream(keys[0], number, shape, dtype), first)
    same(NATIVE.zero_mask(*keys, number, shape, dtype), first - second)
    same(NATIVE.zero_mask_bits(*keys, number, shape, dtype), first ^ second)


@each_kernels
def test_zero_masks_of_three_parties_cancel(kernels):
    generator = rng()
    keys, number = [key(generator) for _ in range(3)], nonce(generator)
    pairs = [(keys[i], keys[(i + 1) % 3]) for i in range(3)]
    masks = [ring(kernels.zero_mask(*pair, number, [1000])) for pair in pairs]
    assert not (masks[0] + masks[1] + masks[2]).any() and len(np.unique(masks)) == 3000
    bits = [ring(kernels.zero_mask_bits(*pair, number, [1000], tf.int16)) for pair in pairs]
    assert not (bits[0] ^ bits[1] ^ bits[2]).any() and bits[0].any()


# Elementwise products.


@each_kernels
@SOME
@given(shape=st.lists(st.integers(0, 9), max_size=3) | st.just([70_001]), seed=st.integers(0, 999))
def test_product(kernels, shape, seed):
    x0, x1, y0, y1, mask = several(rng(seed), 5, shape)
    same(kernels.product(x0, x1, y0, y1, mask), bilinear(np.multiply, [x0, x1], [y0, y1], mask))


@each_kernels
@SOME
@given(
    shape=st.lists(st.integers(0, 9), max_size=3) | st.just([90_001]),
    dtype=st.sampled_from(list(WORDS)),
    seed=st.integers(0, 999),
)
def test_and_words(kernels, shape, dtype, seed):
    five = several(rng(seed), 5, shape, dtype)
    x0, x1, y0, y1, mask = map(ring, five)
    same(kernels.and_words(*five), mask ^ (x0 & y0) ^ (x0 & y1) ^ (x1 & y0))


# Matrices.

sizes = st.integers(0, 40) | st.sampled_from([1, 7, 8, 9, 15, 16, 17, 127, 128, 129, 260])


@st.composite
def matrices(draw: st.DrawFn) -> tuple[list[tf.Tensor], list[tf.Tensor], tf.Tensor, bool, bool]:
    rows, depth, columns = draw(sizes), draw(sizes), draw(sizes)
    transposed = draw(st.booleans()), draw(st.booleans())
    generator = rng(draw(st.integers(0, 999)))
    left = (depth, rows) if transposed[0] else (rows, depth)
    right = (columns, depth) if transposed[1] else (depth, columns)
    return several(generator, 2, left), several(generator, 2, right), words(generator, (rows, columns)), *transposed


@each_kernels
@settings(SOME, max_examples=40)
@given(case=matrices())
def test_matmul(kernels, case):
    x, y, mask, transpose_a, transpose_b = case

    def run(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return matrix_product(a.T if transpose_a else a, b.T if transpose_b else b)

    same(kernels.matmul(*x, *y, mask, transpose_a, transpose_b), bilinear(run, x, y, mask))
    same(kernels.matmul_public(x[0], y[0], transpose_a, transpose_b), run(ring(x[0]), ring(y[0])))


@needs_native
@pytest.mark.parametrize(
    "rows, depth, columns",
    [(300, 700, 600), (3, 20_000, 5), (2000, 9, 3), (1, 500, 1000), (64, 4000, 64), (5, 100, 900)],
    ids=str,
)
def test_large_products_by_every_tile_of_the_processor(rows, depth, columns):
    x, y = several(rng(), 2, (rows, depth)), several(rng(1), 2, (depth, columns))
    mask = words(rng(2), (rows, columns))
    expected = bilinear(matrix_product, x, y, mask)
    ops = native.load()
    run = ops.keras_private_ring_matmul
    same(run(x, y, [mask]), expected)
    tile = 1
    while True:
        try:
            result = run(x, y, [mask], tile=tile)
        except tf.errors.InvalidArgumentError as error:
            assert "tiles" in str(error)
            break
        same(result, expected)
        tile += 1


# Convolutions.


def places(size: int, taps: int, stride: int, pads: tuple[int, int], dilation: int) -> int:
    return (size + sum(pads) - (taps - 1) * dilation - 1) // stride + 1


@st.composite
def windows(draw: st.DrawFn) -> dict[str, Any]:
    pair = lambda low, most: (draw(st.integers(low, most)), draw(st.integers(low, most)))  # noqa: E731
    taps, strides, dilations = pair(1, 4), pair(1, 3), pair(1, 3)
    padding = pair(0, 3), pair(0, 3)
    reach = [(t - 1) * d + 1 - sum(p) for t, d, p in zip(taps, dilations, padding)]
    size = tuple(draw(st.integers(max(need, 1), max(need, 1) + 7)) for need in reach)
    window = {"strides": strides, "padding": padding, "dilations": dilations}
    out = tuple(places(*of_axis) for of_axis in zip(size, taps, strides, padding, dilations))
    channels, filters = draw(st.integers(1, 5)), draw(st.integers(1, 5) | st.sampled_from([8, 17]))
    batch = draw(st.sampled_from([0, 1, 2, 3]))
    return {
        "window": window,
        "taps": taps,
        "size": size,
        "x": (batch, *size, channels),
        "w": (*taps, channels, filters),
        "g": (batch, *out, filters),
        "deep_w": (*taps, channels, min(filters, 3)),
        "deep_g": (batch, *out, channels * min(filters, 3)),
        "seed": draw(st.integers(0, 999)),
    }


def patches(x: np.ndarray, case: dict[str, Any]) -> np.ndarray:
    """[n, oh, ow, kh, kw, c], one place of the window at a time."""
    window, (height, width) = case["window"], case["taps"]
    padded = np.pad(x, [(0, 0), *window["padding"], (0, 0)])
    rows, columns = case["g"][1:3]
    out = np.zeros((x.shape[0], rows, columns, height, width, x.shape[3]), np.uint64)
    for y in range(height):
        for z in range(width):
            top, left = y * window["dilations"][0], z * window["dilations"][1]
            seen = padded[:, top :: window["strides"][0], left :: window["strides"][1]]
            out[:, :, :, y, z] = seen[:, :rows, :columns]
    return out


def scattered(cut: np.ndarray, case: dict[str, Any]) -> np.ndarray:
    """The transpose of `patches`, place by place."""
    window, (height, width) = case["window"], case["size"]
    (top, bottom), (left, right) = window["padding"]
    out = np.zeros((cut.shape[0], height + top + bottom, width + left + right, cut.shape[-1]), np.uint64)
    for row in range(cut.shape[1]):
        for column in range(cut.shape[2]):
            for y in range(cut.shape[3]):
                for z in range(cut.shape[4]):
                    at = row * window["strides"][0] + y * window["dilations"][0]
                    across = column * window["strides"][1] + z * window["dilations"][1]
                    out[:, at, across] += cut[:, row, column, y, z]
    return out[:, top : top + height, left : left + width]


def split(g: np.ndarray, case: dict[str, Any]) -> np.ndarray:
    return g.reshape(*g.shape[:3], *case["deep_w"][2:])


REFERENCES = {
    "conv2d": ("x", "w", "g", lambda x, w, case: np.einsum("nhwyzc,yzco->nhwo", patches(x, case), w)),
    "conv2d_input": (
        "w", "g", "x", lambda w, g, case: scattered(np.einsum("nhwo,yzco->nhwyzc", g, w), case)
    ),
    "conv2d_filter": ("x", "g", "w", lambda x, g, case: np.einsum("nhwyzc,nhwo->yzco", patches(x, case), g)),
    "depthwise": (
        "x", "deep_w", "deep_g",
        lambda x, w, case: np.einsum("nhwyzc,yzcm->nhwcm", patches(x, case), w).reshape(case["deep_g"]),
    ),
    "depthwise_input": (
        "deep_w", "deep_g", "x",
        lambda w, g, case: scattered(np.einsum("nhwcm,yzcm->nhwyzc", split(g, case), w), case),
    ),
    "depthwise_filter": (
        "x", "deep_g", "deep_w",
        lambda x, g, case: np.einsum("nhwyzc,nhwcm->yzcm", patches(x, case), split(g, case)),
    ),
}  # fmt: skip


@each_kernels
@pytest.mark.parametrize("name", list(REFERENCES))
@SOME
@given(case=windows())
def test_convolutions(kernels, name, case):
    first, second, result, naive = REFERENCES[name]
    generator = rng(case["seed"])
    x, y = several(generator, 2, case[first]), several(generator, 2, case[second])
    mask = words(generator, case[result])
    size = {"input": [case["size"]], "filter": [case["taps"]]}.get(name.split("_")[-1], [])
    expected = bilinear(lambda a, b: naive(a, b, case), x, y, mask)
    same(getattr(kernels, name)(*x, *y, mask, *size, **case["window"]), expected)
    if not size:
        public = getattr(kernels, f"{name}_public")(x[0], y[0], **case["window"])
        same(public, naive(ring(x[0]), ring(y[0]), case))


@needs_native
@pytest.mark.parametrize("name", list(REFERENCES))
def test_convolutions_large_enough_for_threads(name):
    window = {"strides": (2, 1), "padding": ((2, 1), (0, 2)), "dilations": (1, 2)}
    taps, size, channels, filters = (5, 3), (29, 31), 6, 12
    out = tuple(places(*of_axis) for of_axis in zip(size, taps, (2, 1), window["padding"], (1, 2)))
    case = {"window": window, "taps": taps, "size": size, "x": (17, *size, channels), "w": (*taps, channels, filters)}
    case |= {"g": (17, *out, filters), "deep_w": (*taps, channels, 2), "deep_g": (17, *out, channels * 2)}
    first, second, result, naive = REFERENCES[name]
    x, y, mask = several(rng(), 2, case[first]), several(rng(1), 2, case[second]), words(rng(2), case[result])
    size_of = {"input": [size], "filter": [taps]}.get(name.split("_")[-1], [])
    got = getattr(NATIVE, name)(*x, *y, mask, *size_of, **window)
    same(got, bilinear(lambda a, b: naive(a, b, case), x, y, mask))


# The tree of carries.


@needs_native
@SOME
@given(width=st.sampled_from([64, 32, 16, 8, 4, 2]), count=st.integers(0, 70), seed=st.integers(0, 999))
def test_native_carries_equal_portable(width, count, seed):
    generator, portable = rng(seed), PortableKernels()
    five = several(generator, 5, [count])
    for mine, expected in zip(NATIVE.carry_leaf(*five), portable.carry_leaf(*five)):
        same(mine, ring(expected))
    pair = several(generator, 2, [2, count] if width == 64 else [count], CONTAINERS[width])
    mask = words(generator, [count], CONTAINERS[width // 2])
    same(NATIVE.carry_level(width, *pair, mask), ring(portable.carry_level(width, *pair, mask)))


@each_kernels
@SOME
@given(count=st.sampled_from([0, 1, 5, 200]), seed=st.integers(0, 999))
def test_tree_gives_the_carry_into_the_sign(kernels, count, seed):
    generator = rng(seed)
    a, b = (ring(words(generator, [count])).copy() for _ in range(2))
    if count > 4:
        # The longest chains of carries, and none.
        a[:4] = [2**63 - 1, 2**64 - 1, 2**62, 0]
        b[:4] = [1, 1, 2**62, 2**63]
    keys = [key(generator) for _ in range(3)]

    def shared(secret: np.ndarray) -> list[np.ndarray]:
        first, second = (ring(words(generator, [count])) for _ in range(2))
        return [first, second, secret ^ first ^ second]

    def pair(shares: list[Any], party: int) -> list[tf.Tensor]:
        return [tf.constant(ring(shares[(party + i) % 3]).view(np.int64)) for i in range(2)]

    def masks(step: int, dtype: tf.DType) -> list[tf.Tensor]:
        number = tf.constant([step] + 11 * [0], tf.uint8)
        return [kernels.zero_mask_bits(keys[i], keys[(i + 1) % 3], number, [count], dtype) for i in range(3)]

    a_shares, b_shares = shared(a), shared(b)
    leaves = [
        kernels.carry_leaf(*pair(a_shares, i), *pair(b_shares, i), mask) for i, mask in enumerate(masks(0, tf.int64))
    ]
    for party in range(3):
        np.testing.assert_array_equal(leaves[party][2], leaves[(party + 1) % 3][1])
    containers = [tf.stack([leaf[0], leaf[1]]) for leaf in leaves]
    for width in (64, 32, 16, 8, 4, 2):
        fresh = masks(width, CONTAINERS[width // 2])
        containers = [kernels.carry_level(width, containers[i], containers[(i + 1) % 3], fresh[i]) for i in range(3)]
    carry = ring(containers[0] ^ containers[1] ^ containers[2])
    assert all((ring(each) < 2).all() for each in containers)
    below = np.uint64(2**63 - 1)
    np.testing.assert_array_equal(carry, ((a & below) + (b & below)) >> np.uint64(63))
    np.testing.assert_array_equal((a >> np.uint64(63)) ^ (b >> np.uint64(63)) ^ carry, (a + b) >> np.uint64(63))


# Truncation.


@each_kernels
@SOME
@given(bits=st.sampled_from([2, 16, 17, 28, 40, 61]), count=st.sampled_from([0, 1, 333]), seed=st.integers(0, 999))
def test_truncation_is_right_to_one_unit(kernels, bits, count, seed):
    generator = rng(seed)
    x = generator.integers(-(2**62) + 1, 2**62, count)
    if count > 4:
        x[:5] = [0, -1, 1, 2**62 - 1, -(2**62) + 1]
    key0, key2 = key(generator), key(generator)
    z = [ring(words(generator, [count])) for _ in range(2)]
    z0, z1, z2 = (tf.constant(each.view(np.int64)) for each in (*z, x.view(np.uint64) - z[0] - z[1]))
    number = nonce(generator)
    a1, m1 = kernels.trunc_dealer(key0, key2, number, [count], bits)
    c0 = kernels.trunc_open0(z0, kernels.trunc_mask(z2, key2, number), key0, number)
    c1 = kernels.trunc_open1(z1, key2, number)
    u = kernels.trunc_close0(c0, c1, key0, number, bits), kernels.trunc_close1(c0, c1, a1, m1, key2, number, bits)
    fourth = tf.concat([number[:11], [tf.constant(4, tf.uint8)]], 0)
    shares = [*u, *(kernels.keystream(each, fourth, [count]) for each in (key0, key2))]
    total = sum(map(ring, shares), np.zeros(count, np.uint64)).view(np.int64)
    assert set(np.unique(total - (x >> bits))) <= {0, 1}


@needs_native
@SOME
@given(
    bits=st.sampled_from([2, 16, 62]),
    shape=st.sampled_from([[], [0], [3, 5], [2048], [20_001]]),
    seed=st.integers(0, 999),
)
def test_native_truncation_equals_portable(bits, shape, seed):
    generator = rng(seed)
    first, second, number = key(generator), key(generator), nonce(generator)
    z = several(generator, 4, shape)

    def steps(kernels: Kernels) -> list[tf.Tensor]:
        return [
            *kernels.trunc_dealer(first, second, number, shape, bits),
            kernels.trunc_mask(z[0], second, number),
            kernels.trunc_open0(z[0], z[1], first, number),
            kernels.trunc_open1(z[0], second, number),
            kernels.trunc_close0(z[0], z[1], first, number, bits),
            kernels.trunc_close1(*z, second, number, bits),
        ]

    for mine, expected in zip(steps(NATIVE), steps(PortableKernels())):
        same(mine, ring(expected))


# Graphs.


@each_kernels
def test_works_with_unknown_sizes_and_leaves_its_inputs_alone(kernels):
    """In a graph a result may take the place of a mask that no one else reads; of others it may not."""
    unknown = tf.TensorSpec([None, None], tf.int64)

    @tf.function(input_signature=[unknown] * 5, autograph=False)
    def run(x0: tf.Tensor, x1: tf.Tensor, y0: tf.Tensor, y1: tf.Tensor, mask: tf.Tensor) -> Any:
        fresh = mask + 1
        read = mask + 2
        return (
            kernels.matmul(x0, x1, y0, y1, fresh),
            kernels.matmul(x0, x1, y0, y1, read) + read,
            kernels.product(read, read, read, read, read),
            kernels.matmul(x0, x1, y0, y1, mask),
            mask,
        )

    x, y, mask = several(rng(), 2, (30, 40)), several(rng(1), 2, (40, 20)), words(rng(2), (30, 20))
    plain = bilinear(matrix_product, x, y, mask)
    results = run(*x, *y, mask)
    read = ring(mask) + np.uint64(2)
    expected = [plain + np.uint64(1), plain + np.uint64(2) + read, read + read * read * np.uint64(3), plain, ring(mask)]
    for result, right in zip(results, expected):
        same(result, right)


@needs_native
def test_static_shapes_are_inferred():
    seen = {}
    window = {"strides": (2, 1), "padding": ((1, 0), (0, 1)), "dilations": (1, 1)}
    images, filters = tf.TensorSpec([None, 9, 8, 3], tf.int64), tf.TensorSpec([3, 2, 3, 4], tf.int64)

    @tf.function(input_signature=[images, filters, tf.TensorSpec([None, 7], tf.int64)], autograph=False)
    def run(x: tf.Tensor, w: tf.Tensor, flat: tf.Tensor) -> None:
        keys, number = [tf.zeros([32], tf.uint8)] * 2, tf.zeros([12], tf.uint8)
        unknown = tf.TensorShape(None)
        blurred = tf.raw_ops.PlaceholderWithDefault(input=flat, shape=unknown)
        g = NATIVE.conv2d_public(x, w, **window)
        seen["conv2d"] = g.shape
        seen["input"] = NATIVE.conv2d_input(w, w, g, g, x, (9, 8), **window).shape
        seen["filter"] = NATIVE.conv2d_filter(x, x, g, g, w, (3, 2), **window).shape
        seen["depthwise"] = NATIVE.depthwise_public(x, w, **window).shape
        seen["matmul"] = NATIVE.matmul_public(flat, tf.zeros([7, 5], tf.int64)).shape
        seen["product"] = NATIVE.product(blurred, blurred, flat, blurred, blurred).shape
        seen["leaf"] = NATIVE.carry_leaf(*[flat] * 5)[2].shape
        seen["level"] = NATIVE.carry_level(32, flat, flat, tf.cast(blurred, tf.int32)).shape
        seen["keystream"] = NATIVE.keystream(keys[0], number, tf.shape(flat)).shape
        seen["dealer"] = NATIVE.trunc_dealer(*keys, number, [4, 5], 16)[1].shape
        seen["close"] = NATIVE.trunc_close1(flat, blurred, flat, flat, keys[0], number, 16).shape

    run.get_concrete_function()
    assert {name: shape.as_list() for name, shape in seen.items()} == {
        "conv2d": [None, 4, 8, 4],
        "input": [None, 9, 8, 3],
        "filter": [3, 2, 3, 4],
        "depthwise": [None, 4, 8, 12],
        "matmul": [None, 5],
        "product": [None, 7],
        "leaf": [None, 7],
        "level": [None, 7],
        "keystream": [None, 7],
        "dealer": [4, 5],
        "close": [None, 7],
    }


# Refusals.

ZEROS = tf.zeros([32], tf.uint8), tf.zeros([12], tf.uint8)
WINDOW = {"strides": (1, 1), "padding": ((0, 0), (0, 0)), "dilations": (1, 1)}


def z(*shape: int, dtype: tf.DType = tf.int64) -> tf.Tensor:
    return tf.zeros(shape, dtype)


BAD = {
    "keystream, key": lambda k: k.keystream(ZEROS[0][:31], ZEROS[1], [3]),
    "keystream, nonce": lambda k: k.keystream(ZEROS[0], ZEROS[1][:11], [3]),
    "keystream, shape": lambda k: k.keystream(*ZEROS, [3, -1]),
    "keystream, too long": lambda k: k.keystream(*ZEROS, [2**40]),
    "zero_mask, too long": lambda k: k.zero_mask(ZEROS[0], *ZEROS, [2**40]),
    "zero_mask, key": lambda k: k.zero_mask(ZEROS[0], ZEROS[0][:5], ZEROS[1], [3]),
    "product, mask": lambda k: k.product(z(3), z(3), z(3), z(3), z(4)),
    "product, factor": lambda k: k.product(z(3), z(3), z(1), z(3), z(3)),
    "and_words": lambda k: k.and_words(z(3), z(3), z(3), z(2), z(3)),
    "carry_leaf": lambda k: k.carry_leaf(z(3), z(3), z(3), z(2), z(3)),
    "carry_level, rows": lambda k: k.carry_level(64, z(3, 5), z(3, 5), z(5)),
    "carry_level, scalar": lambda k: k.carry_level(64, z(), z(), z()),
    "carry_level, mask": lambda k: k.carry_level(64, z(2, 5), z(2, 5), z(4)),
    "carry_level, shares": lambda k: k.carry_level(32, z(5), z(4), z(5, dtype=tf.int32)),
    "carry_level, container": lambda k: k.carry_level(16, z(5), z(5), z(5, dtype=tf.int32)),
    "carry_level, width": lambda k: k.carry_level(3, z(5), z(5), z(5)),
    "matmul, rank": lambda k: k.matmul(z(3), z(3), z(3, 4), z(3, 4), z(4)),
    "matmul, depth": lambda k: k.matmul(z(2, 3), z(2, 3), z(4, 5), z(4, 5), z(2, 5)),
    "matmul, transposed": lambda k: k.matmul(z(2, 3), z(2, 3), z(3, 5), z(3, 5), z(2, 5), True),
    "matmul, shares": lambda k: k.matmul(z(2, 3), z(1, 3), z(3, 5), z(3, 5), z(2, 5)),
    "matmul, mask": lambda k: k.matmul(z(2, 3), z(2, 3), z(3, 5), z(3, 5), z(5, 2)),
    "matmul, too large": lambda k: k.matmul_public(z(2**40, 0), z(0, 2**40)),
    "conv2d, rank": lambda k: k.conv2d_public(z(4, 4, 1), z(2, 2, 1, 1), **WINDOW),
    "conv2d, channels": lambda k: k.conv2d_public(z(1, 4, 4, 2), z(2, 2, 1, 1), **WINDOW),
    "conv2d, stride": lambda k: k.conv2d_public(z(1, 4, 4, 1), z(2, 2, 1, 1), **{**WINDOW, "strides": (0, 1)}),
    "conv2d, padding": lambda k: k.conv2d_public(
        z(1, 4, 4, 1), z(2, 2, 1, 1), **{**WINDOW, "padding": ((-1, 0), (0, 0))}
    ),
    "conv2d, mask": lambda k: k.conv2d(*[z(1, 4, 4, 1)] * 2, *[z(2, 2, 1, 1)] * 2, z(1, 4, 4, 1), **WINDOW),
    "conv2d_input, gradient": lambda k: k.conv2d_input(
        *[z(2, 2, 1, 1)] * 2, *[z(1, 4, 3, 1)] * 2, z(1, 4, 4, 1), (4, 4), **WINDOW
    ),
    "conv2d_input, filters": lambda k: k.conv2d_input(
        *[z(2, 2, 1, 1)] * 2, *[z(1, 3, 3, 2)] * 2, z(1, 4, 4, 1), (4, 4), **WINDOW
    ),
    "conv2d_filter, gradient": lambda k: k.conv2d_filter(
        *[z(1, 4, 4, 1)] * 2, *[z(1, 9, 9, 1)] * 2, z(2, 2, 1, 1), (2, 2), **WINDOW
    ),
    "conv2d_filter, batch": lambda k: k.conv2d_filter(
        *[z(1, 4, 4, 1)] * 2, *[z(2, 3, 3, 1)] * 2, z(2, 2, 1, 1), (2, 2), **WINDOW
    ),
    "depthwise, channels": lambda k: k.depthwise_public(z(1, 4, 4, 2), z(2, 2, 1, 1), **WINDOW),
    "depthwise_input, gradient": lambda k: k.depthwise_input(
        *[z(2, 2, 2, 1)] * 2, *[z(1, 3, 3, 1)] * 2, z(1, 4, 4, 2), (4, 4), **WINDOW
    ),
    "depthwise_filter, channels": lambda k: k.depthwise_filter(
        *[z(1, 4, 4, 2)] * 2, *[z(1, 3, 3, 3)] * 2, z(2, 2, 2, 1), (2, 2), **WINDOW
    ),
    "trunc_dealer, bits": lambda k: k.trunc_dealer(ZEROS[0], *ZEROS, [3], 63),
    "trunc_dealer, no bits": lambda k: k.trunc_dealer(ZEROS[0], *ZEROS, [3], 0),
    "trunc_mask, key": lambda k: k.trunc_mask(z(3), ZEROS[0][:3], ZEROS[1]),
    "trunc_open0": lambda k: k.trunc_open0(z(3), z(4), *ZEROS),
    "trunc_close0": lambda k: k.trunc_close0(z(3), z(), *ZEROS, 16),
    "trunc_close1": lambda k: k.trunc_close1(z(3), z(3), z(3), z(2), *ZEROS, 16),
}


@needs_native
@pytest.mark.parametrize("name", list(BAD))
def test_what_does_not_fit_is_an_error(name):
    # Eagerly the kernel itself refuses: no shape function runs before it.
    with pytest.raises(tf.errors.InvalidArgumentError):
        BAD[name](NATIVE)


@needs_native
@pytest.mark.parametrize("name", [name for name in BAD if name.split(",")[0] not in ("keystream", "zero_mask")])
def test_what_does_not_fit_is_an_error_of_the_graph(name):
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        tf.function(lambda: BAD[name](NATIVE), autograph=False)()
