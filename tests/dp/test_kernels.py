"""The kernels against plain TensorFlow and float64 numpy, natively and by stock operations."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keras_private import native
from keras_private.dp import kernels
from keras_private.dp.kernels import ConvGeometry, Layout
from keras_private.errors import BackendError

FEW = settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
NORM_BOUND = 1e-12

needs_native = pytest.mark.skipif(not kernels.available(), reason="the native operations are not built")


@pytest.fixture(params=["native", "stock"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs a test natively and by stock operations."""
    if request.param == "native" and not kernels.available():
        pytest.skip("the native operations are not built")
    if request.param == "native":
        yield request.param
        return
    with stock():
        yield request.param


def stock():
    return mock.patch.object(native, "load", side_effect=BackendError("not built"))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def floats(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return rng(seed).normal(size=shape).astype(np.float32)


def output_size(
    size: int, kernel: int, stride: int, dilation: int, padding: str, pads: tuple[int, int]
) -> int:
    if padding == "SAME":
        return -(-size // stride)
    return max((size + sum(pads) - (kernel - 1) * dilation - 1) // stride + 1, 0)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[tf.Tensor, tf.Tensor, ConvGeometry, Layout]:
    """Images and output gradients of any convolution that Conv2D takes, with at least one output."""
    pair = lambda most: (draw(st.integers(1, most)), draw(st.integers(1, most)))  # noqa: E731
    kernel, strides, dilations = pair(5), pair(3), pair(3)
    padding = draw(st.sampled_from(["SAME", "VALID", "EXPLICIT"]))
    pads = tuple(draw(st.integers(0, 3)) for _ in range(4)) if padding == "EXPLICIT" else ()
    before, after = draw(st.sampled_from([(1, 1), (1, 1), (3, 1), (1, 2), (2, 3)]))
    batch = draw(st.integers(1, 4))
    channels, filters = draw(st.integers(1, 9)), draw(st.sampled_from([1, 3, 8, 9, 16, 17, 32, 40, 50]))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations)]
    sizes = [draw(st.integers(1 if padding == "SAME" else need, need + 9)) for need in reach]
    outputs = [
        output_size(*of_axis[:4], padding, of_axis[4])
        for of_axis in zip(sizes, kernel, strides, dilations, [pads[:2], pads[2:]])
    ]
    entries, seed = before * batch * after, draw(st.integers(0, 1000))
    images = tf.constant(floats((entries, *sizes, channels), seed))
    right = tf.constant(floats((entries, *outputs, filters), seed + 1))
    return (
        images,
        right,
        ConvGeometry(kernel, strides, dilations, padding, pads),
        Layout(before, batch, after),
    )


def naive(images: tf.Tensor, right: tf.Tensor, geometry: ConvGeometry, layout: Layout) -> np.ndarray:
    """One example at a time, one place of the kernel at a time, in float64."""
    (height, width), channels, filters = geometry.kernel_size, images.shape[3], right.shape[3]
    rows, columns = right.shape[1:3]
    pads = geometry.explicit_paddings or (0, 0, 0, 0)
    if geometry.padding == "SAME":
        totals = [
            max((out - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
            for out, stride, kernel, dilation, size in zip(
                (rows, columns), geometry.strides, geometry.kernel_size, geometry.dilations, images.shape[1:3]
            )
        ]
        pads = [part for total in totals for part in (total // 2, total - total // 2)]
    padded = np.pad(np.asarray(images, np.float64), [(0, 0), tuple(pads[:2]), tuple(pads[2:]), (0, 0)])
    right64 = np.asarray(right, np.float64)
    result = np.zeros((layout.batch, height, width, channels, filters))
    for entry in range(images.shape[0]):
        example = entry // layout.after % layout.batch
        for y in range(height):
            for x in range(width):
                top, left = y * geometry.dilations[0], x * geometry.dilations[1]
                seen = padded[entry, top :: geometry.strides[0], left :: geometry.strides[1]][:rows, :columns]
                result[example, y, x] += np.einsum("yxc,yxp->cp", seen, right64[entry])
    return result.reshape(layout.batch, -1, filters)


@FEW
@given(case=convolutions())
def test_convolution_equals_naive_sums_and_norms_are_of_what_is_returned(way, case):
    gradients, norms = kernels.conv2d_example_gradients(*case)
    expected = naive(*case)
    np.testing.assert_allclose(gradients, expected, rtol=1e-5, atol=1e-5 * (1 + np.abs(expected).max()))
    assert norms.dtype == tf.float64
    np.testing.assert_allclose(norms, np.sum(np.asarray(gradients, np.float64) ** 2, (1, 2)), rtol=NORM_BOUND)
    np.testing.assert_array_equal(kernels.conv2d_example_norms(*case), norms)


@needs_native
@FEW
@given(case=convolutions())
def test_native_equals_stock(case):
    gradients, norms = kernels.conv2d_example_gradients(*case)
    with stock():
        stock_gradients, stock_norms = kernels.conv2d_example_gradients(*case)
    scale = 1 + np.abs(stock_gradients).max()
    np.testing.assert_allclose(gradients, stock_gradients, rtol=1e-5, atol=1e-5 * scale)
    np.testing.assert_allclose(norms, stock_norms, rtol=1e-4)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("size, channels, filters, kernel, stride", [(28, 1, 16, 8, 2), (13, 16, 32, 4, 2)])
def test_convolution_equals_gradient_tape(way, padding, size, channels, filters, kernel, stride):
    images = tf.constant(floats((3, size, size, channels)))
    weights = tf.Variable(floats((kernel, kernel, channels, filters), 1))
    with tf.GradientTape() as tape:
        losses = tf.reduce_sum(tf.sin(tf.nn.conv2d(images, weights, stride, padding)), axis=[1, 2, 3])
    expected = tape.jacobian(losses, weights)
    right = tf.cos(tf.nn.conv2d(images, weights, stride, padding))
    geometry = ConvGeometry((kernel, kernel), (stride, stride), padding=padding)
    gradients, _ = kernels.conv2d_example_gradients(images, right, geometry, Layout(1, 3, 1))
    expected = tf.reshape(expected, [3, -1, filters])
    np.testing.assert_allclose(gradients, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


# Several bands, panels and chunks of positions: nothing of it fits into one pass.
@pytest.mark.parametrize("layout", [Layout(1, 2, 1), Layout(2, 1, 1)])
@pytest.mark.parametrize(
    "shape, filters, kernel, padding",
    [
        ((150, 130, 7), 5, (5, 3), "SAME"),
        ((9, 8, 96), 130, (3, 3), "SAME"),
        ((1, 4000, 20), 33, (1, 9), "VALID"),
    ],
)
def test_large_convolutions(way, shape, filters, kernel, padding, layout):
    images = tf.constant(floats((2, *shape)))
    out = shape[:2] if padding == "SAME" else (shape[0] - kernel[0] + 1, shape[1] - kernel[1] + 1)
    case = images, tf.constant(floats((2, *out, filters), 1)), ConvGeometry(kernel, padding=padding), layout
    gradients, norms = kernels.conv2d_example_gradients(*case)
    expected = naive(*case)
    np.testing.assert_allclose(gradients, expected, rtol=1e-5, atol=2e-6 * np.abs(expected).max())
    np.testing.assert_allclose(norms, np.sum(np.asarray(gradients, np.float64) ** 2, (1, 2)), rtol=NORM_BOUND)
    np.testing.assert_array_equal(kernels.conv2d_example_norms(*case), norms)


def benchmark_case(batch: int = 7) -> tuple[np.ndarray, np.ndarray, ConvGeometry, Layout]:
    images, right = floats((batch, 13, 13, 16)), floats((batch, 5, 5, 32), 1)
    return images, right, ConvGeometry((4, 4), (2, 2)), Layout(1, batch, 1)


@needs_native
def test_an_example_does_not_depend_on_its_batch_or_on_vector_width():
    images, right, geometry, _ = benchmark_case()
    gradients, norms = kernels.conv2d_example_gradients(images, right, geometry, Layout(1, 7, 1))
    for i in (0, 3, 6):
        alone, norm = kernels.conv2d_example_gradients(
            images[i : i + 1], right[i : i + 1], geometry, Layout(1, 1, 1)
        )
        np.testing.assert_array_equal(alone[0], gradients[i])
        np.testing.assert_array_equal(norm[0], norms[i])
    for filters in (
        1,
        4,
        8,
        11,
        24,
    ):  # Other registers, other tiles, padded columns: the same sums, bit for bit.
        some, _ = kernels.conv2d_example_gradients(images, right[..., :filters], geometry, Layout(1, 7, 1))
        np.testing.assert_array_equal(some, gradients[..., :filters])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("side", ["images", "output gradient"])
def test_non_finite_values_reach_their_own_norm_only(way, side, value):
    images, right, geometry, layout = benchmark_case()
    gradients, norms = kernels.conv2d_example_gradients(images, right, geometry, layout)
    (images if side == "images" else right)[3, 2, 2, 5] = value
    changed, changed_norms = kernels.conv2d_example_gradients(images, right, geometry, layout)
    others = np.arange(7) != 3
    np.testing.assert_array_equal(changed.numpy()[others], gradients.numpy()[others])
    np.testing.assert_array_equal(changed_norms.numpy()[others], norms.numpy()[others])
    norm = changed_norms.numpy()[3]
    # A float64 norm does not overflow where squares of float32 would.
    assert 1e59 < norm < np.inf if value == 1e30 else not np.isfinite(norm)
    np.testing.assert_array_equal(
        kernels.conv2d_example_norms(images, right, geometry, layout), changed_norms
    )


@pytest.mark.parametrize("layout", [Layout(1, 0, 1), Layout(0, 3, 1), Layout(2, 0, 2), Layout(1, 3, 0)])
def test_convolution_without_entries_gives_zeros(way, layout):
    geometry = ConvGeometry((4, 4), (2, 2))
    images, right = tf.zeros([0, 13, 13, 2]), tf.zeros([0, 5, 5, 3])
    gradients, norms = kernels.conv2d_example_gradients(images, right, geometry, layout)
    assert gradients.shape == (layout.batch, 32, 3) and norms.shape == (layout.batch,)
    assert not np.any(gradients) and not np.any(norms)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float64])
def test_other_types(way, dtype):
    images, right, geometry, layout = benchmark_case()
    images, right = tf.cast(images, dtype), tf.cast(right, dtype)
    gradients, norms = kernels.conv2d_example_gradients(images, right, geometry, layout)
    assert (
        gradients.dtype == (tf.float64 if dtype == tf.float64 else tf.float32) and norms.dtype == tf.float64
    )
    expected = naive(tf.cast(images, tf.float64), tf.cast(right, tf.float64), geometry, layout)
    np.testing.assert_allclose(gradients, expected, rtol=1e-5, atol=1e-4)


def test_in_a_function_with_sizes_known_at_run_time_only(way):
    images, right, geometry, layout = benchmark_case(6)

    @tf.function(input_signature=[tf.TensorSpec(None, tf.float32)] * 2 + [tf.TensorSpec([], tf.int32)] * 3)
    def run(images, right, before, batch, after):
        images = tf.ensure_shape(images, [None, None, None, 16])
        right = tf.ensure_shape(right, [None, None, None, 32])
        return kernels.conv2d_example_gradients(images, right, geometry, Layout(before, batch, after))

    for layout in (Layout(1, 6, 1), Layout(3, 2, 1), Layout(1, 3, 2)):
        gradients, _ = run(images, right, *layout)
        np.testing.assert_allclose(gradients, naive(images, right, geometry, layout), rtol=1e-5, atol=1e-4)


@needs_native
def test_static_shapes():
    geometry = ConvGeometry((4, 2))
    found = []

    @tf.function(input_signature=[tf.TensorSpec([None, 9, 9, 5]), tf.TensorSpec([None, 6, 8, 3])])
    def trace(images, right):
        found.extend(
            kernels.conv2d_example_gradients(images, right, geometry, Layout(1, tf.shape(images)[0], 1))
        )
        found.append(kernels.conv2d_example_norms(images, right, geometry, Layout(1, 4, 1)))

    trace.get_concrete_function()
    assert [tensor.shape.as_list() for tensor in found] == [[None, 40, 3], [None], [4]]


@given(
    st.integers(0, 20),
    st.sampled_from([0, 1, 5, 255, 256, 257, 1024, 3001]),
    st.integers(0, 2**20),
    st.data(),
)
@FEW
def test_masked_weighted_sum(way, batch, size, dropped, data):
    rows, weights = floats((batch, size)).astype(np.float64), floats((batch,), 1)
    keep = np.array([dropped >> i & 1 == 0 for i in range(batch)], dtype=bool)
    expected = weights[keep].astype(np.float64) @ rows[keep]
    spoilt, spoilt_weights = rows.astype(np.float32), weights.copy()
    spoilt[~keep] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf, 3e38]))
    spoilt_weights[~keep] = data.draw(st.sampled_from([np.nan, np.inf, 3e38]))
    result = kernels.masked_weighted_sum(tf.constant(spoilt), tf.constant(spoilt_weights), tf.constant(keep))
    assert result.shape == (size,)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


@needs_native
def test_masked_weighted_sum_is_rounded_once():
    # In float32 the small terms vanish beside the large ones one after another.
    rows = np.full((4097, 300), 2.0**-13, np.float32)
    rows[0] = 2.0**11
    total = kernels.masked_weighted_sum(rows, np.ones(4097, np.float32), np.ones(4097, bool))
    np.testing.assert_array_equal(total, np.full(300, 2.0**11 + 0.5, np.float32))


@FEW
@given(st.integers(0, 4), st.integers(0, 30), st.integers(1, 70), st.sampled_from([1, 7, 8, 16, 33]))
def test_outer_example_gradients(way, batch, positions, rows, columns):
    left, right = floats((batch, positions, rows)), floats((batch, positions, columns), 1)
    gradients, norms = kernels.outer_example_gradients(left, right)
    expected = np.einsum("itd,itp->idp", left.astype(np.float64), right.astype(np.float64))
    np.testing.assert_allclose(gradients, expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(norms, np.sum(np.asarray(gradients, np.float64) ** 2, (1, 2)), rtol=NORM_BOUND)


@FEW
@given(st.integers(0, 9), st.integers(0, 70), st.sampled_from([0.0, np.nan, np.inf, 1e30]))
def test_row_squared_norms(way, batch, size, value):
    rows = floats((batch, size))
    rows[batch // 2 :, size // 2 :] *= 1e15
    if value and rows.size:
        rows[0, -1] = value
    with np.errstate(invalid="ignore"):
        expected = np.sum(rows.astype(np.float64) ** 2, 1)
    np.testing.assert_allclose(kernels.row_squared_norms(rows), expected, rtol=NORM_BOUND)


@needs_native
@pytest.mark.parametrize(
    "change, message",
    [
        ({"images": np.zeros((7, 13, 13), np.float32)}, "must (have 4 dimensions|be rank 4)|must be rank 4"),
        (
            {"out_backprop": np.zeros((7, 6, 5, 32), np.float32)},
            "has 6 rows, but VALID padding .* gives 5",
        ),
        ({"out_backprop": np.zeros((7, 5, 4, 32), np.float32)}, "out_backprop has 4 columns"),
        ({"out_backprop": np.zeros((6, 5, 5, 32), np.float32)}, "entries each, got 7 and 6"),
        ({"layout": [1, 6, 1]}, "before \\* batch \\* after = 1 \\* 6 \\* 1 entries each, got 7 and 7"),
        ({"layout": [-1, -7, 1]}, "entries each|must be >= -1|must be non-negative"),
        ({"layout": [1, 7]}, "rank|before, batch, after"),
        ({"kernel_size": [4]}, "kernel_size must be 2 numbers"),
        ({"strides": [0, 1]}, "strides must be in \\[1"),
        ({"dilations": [1, 1, 1]}, "dilations must be 2 numbers"),
        ({"padding": "EXPLICIT"}, "explicit_paddings must be 4 numbers"),
        ({"padding": "EXPLICIT", "explicit_paddings": [0, 0, 0, -1]}, "explicit_paddings must be in \\[0"),
        ({"padding": "FULL"}, "padding"),
    ],
)
def test_wrong_arguments_are_refused(change, message):
    images, right, geometry, layout = benchmark_case()
    arguments = {
        "images": images,
        "out_backprop": right,
        "layout": list(layout),
        "kernel_size": geometry.kernel_size,
        "strides": geometry.strides,
        "dilations": geometry.dilations,
        "padding": geometry.padding,
    }
    with pytest.raises((tf.errors.InvalidArgumentError, ValueError), match=message):
        native.load().keras_private_conv2d_example_gradients(**{**arguments, **change})


@needs_native
def test_wrong_shapes_of_rows_are_refused():
    ops = native.load()
    with pytest.raises(tf.errors.InvalidArgumentError, match="weights and keep"):
        ops.keras_private_masked_weighted_sum(
            gradients=tf.zeros([3, 2]), weights=tf.zeros([2]), keep=[True] * 3
        )
    with pytest.raises(tf.errors.InvalidArgumentError, match="left must be"):
        ops.keras_private_outer_example_gradients(left=tf.zeros([3, 2, 4]), right=tf.zeros([3, 1, 4]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="rows must be a matrix"):
        ops.keras_private_row_squared_norms(rows=tf.zeros([3]))


def test_a_library_without_these_operations_is_not_used():
    with mock.patch.object(native, "load", return_value=object()):
        assert not kernels.available()
        kernels.row_squared_norms(tf.ones([2, 3]))
