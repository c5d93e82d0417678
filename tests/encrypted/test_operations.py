"""The catalogue of operations of the tensor chain against NumPy, and the embedded parties."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as drawn

import keras_private as kp
from keras_private.chain import Form
from keras_private.encrypted.embedded import EmbeddedShelves, shelves_of
from keras_private.encrypted.fixed_point import FixedPoint
from keras_private.encrypted.kernels import choose
from keras_private.encrypted.operations import CATALOGUE, OPEN, Call
from keras_private.encrypted.parties import EMBEDDED, EmbeddedParties
from keras_private.errors import ConfigurationError, EncodingError, OverflowPreflightError
from keras_private.random import secure_source
from tests.contracts.chain_runtime import ChainRuntimeContract

UNIT = 2.0**-16
few = settings(
    max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)
many = settings(few, max_examples=60)
shapes = drawn.array_shapes(min_dims=0, max_dims=3, min_side=1, max_side=4)


def numbers(shape, seed, scale=4.0):
    """On the grid of 16 bits, so that encoding is exact."""
    return np.round(np.random.default_rng(seed).uniform(-scale, scale, shape) / UNIT) * UNIT


class TestEmbeddedRuntime(ChainRuntimeContract):
    @pytest.fixture(scope="class")
    @classmethod
    def cluster(cls):
        return None

    def test_each_party_has_a_store_of_its_own_with_its_own_pair(self):
        private = kp.encrypt(np.arange(100.0), name="alice")
        held = [shelf._find(private.pointers[0].id).pair for shelf in shelves_of(EMBEDDED).shelves]
        for place in range(3):
            assert np.array_equal(held[place][1], held[(place + 1) % 3][0])
            assert held[place][1] is not held[(place + 1) % 3][0]
        with np.errstate(over="ignore"):
            total = held[0][0] + held[1][0] + held[2][0]
        assert np.array_equal(total, np.arange(100) << 16)
        assert not any(np.array_equal(pair[0], total) for pair in held)

    def test_the_drawing_says_that_it_is_a_simulation(self):
        assert "SIMULATION" in str(kp.encrypt(1.0)) and "SIMULATION" in kp.encrypt(1.0)._repr_html_()

    def test_one_program_for_one_form(self):
        shelves = EmbeddedShelves(EmbeddedParties())
        ids = [shelves.put([(np.zeros(3, np.int64),) * 2] * 3, Form((3,), 16, bound), "a", ("a",)) for bound in (1, 2)]
        for each in ids:
            shelves.compute("a", "relu", {}, [each.id])
        assert len(shelves._traced) == 1


# Each operation.


@few
@given(shapes, st.integers(0, 99))
def test_sums_and_products_of_equal_shapes(shape, seed):
    x, y = numbers(shape, seed), numbers(shape, seed + 1)
    a, b = kp.encrypt(x), kp.encrypt(y)
    for found, expected in ((a + b, x + y), (a - b, x - y), (-a, -x)):
        assert np.array_equal(found.reveal(), expected)
    np.testing.assert_allclose((a * b).reveal(), x * y, atol=1.5 * UNIT)


@few
@given(drawn.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=3), st.integers(0, 99))
def test_broadcasting(pair, seed):
    (one, other), _ = pair.input_shapes, pair.result_shape
    x, y = numbers(one, seed), numbers(other, seed + 1)
    assume(x.size and y.size)
    a, b = kp.encrypt(x), kp.encrypt(y)
    assert np.array_equal((a + b).reveal(), x + y)
    np.testing.assert_allclose((a * b).reveal(), x * y, atol=1.5 * UNIT)
    assert np.array_equal((a < b).reveal(), x < y)


@few
@given(st.tuples(*[st.integers(1, 5)] * 3), st.integers(0, 99))
def test_matrix_products(sizes, seed):
    m, k, n = sizes
    x, y = numbers((m, k), seed), numbers((k, n), seed + 1)
    np.testing.assert_allclose((kp.encrypt(x) @ kp.encrypt(y)).reveal(), x @ y, atol=1.5 * UNIT)


@few
@given(shapes, st.integers(0, 99))
def test_comparisons_are_exact_at_equality_too(shape, seed):
    x = np.random.default_rng(seed).integers(-3, 4, shape) / 4
    y = np.random.default_rng(seed + 1).integers(-3, 4, shape) / 4
    a, b = kp.encrypt(x), kp.encrypt(y)
    assert np.array_equal((a < b).reveal(), x < y) and np.array_equal((a > b).reveal(), x > y)
    assert np.array_equal((a <= b).reveal(), x <= y) and np.array_equal((a >= b).reveal(), x >= y)


@pytest.mark.parametrize("number", [0, 0.25, -0.5, 1 / 3, 1e-9, -1e-9, 700.123])
def test_comparisons_with_numbers_are_exact(number):
    x = np.array([-0.5, -UNIT, 0.0, UNIT, 0.25, np.floor(700.123 / UNIT) * UNIT, 1 / 3])
    x = np.round(x / UNIT) * UNIT
    a = kp.encrypt(x)
    assert np.array_equal((a < number).reveal(), x < number) and np.array_equal((number < a).reveal(), number < x)
    assert np.array_equal((a <= number).reveal(), x <= number) and np.array_equal((number <= a).reveal(), number <= x)


@pytest.mark.parametrize("number", [0, 1, -3, 0.5, -0.125, 1 / 3, 1e-3, -123.456, 1e-6])
def test_products_and_sums_with_numbers(number):
    x = numbers((7,), 3, 100.0)
    a = kp.encrypt(x)
    np.testing.assert_allclose((a * number).reveal(), x * number, atol=1.01 * UNIT, rtol=2.0**-20)
    np.testing.assert_allclose((number * a).reveal(), x * number, atol=1.01 * UNIT, rtol=2.0**-20)
    np.testing.assert_allclose((a + number).reveal(), x + number, atol=UNIT / 2)
    np.testing.assert_allclose((number - a).reveal(), number - x, atol=UNIT / 2)
    if number:
        np.testing.assert_allclose((a / number).reveal(), x / number, atol=1.01 * UNIT, rtol=2.0**-20)


def test_bits_take_part_in_arithmetic():
    x = np.array([1.0, -2.0, 3.0])
    positive = kp.encrypt(x) > 0
    assert positive.dtype == "bool" and positive.fraction == 0
    assert (positive * kp.encrypt(x)).reveal().tolist() == [1, 0, 3]
    assert (positive + positive).reveal().tolist() == [2, 0, 2]
    assert (positive * 0.5).reveal().tolist() == [0.5, 0, 0.5] and (1 - positive).reveal().tolist() == [0, 1, 0]
    assert (positive + 0.25).reveal().tolist() == [1.25, 0.25, 1.25]
    assert abs(positive.mean().reveal() - 2 / 3) < 2 * UNIT and positive.sum().reveal() == 2
    assert np.allclose(positive.sigmoid().reveal(), 1 / (1 + np.exp(-np.array([1.0, 0, 1]))), atol=1e-4)
    assert positive.relu().reveal().tolist() == [1, 0, 1] and positive[0].reveal().dtype == bool


INDEX = st.one_of(
    st.integers(-3, 2),
    st.none(),
    st.just(Ellipsis),
    st.builds(
        slice,
        st.none() | st.integers(-3, 3),
        st.none() | st.integers(-3, 3),
        st.none() | st.sampled_from([1, 2, -1]),
    ),
)


@settings(few, max_examples=25)
@given(st.lists(INDEX, max_size=3))
@example([slice(None, None, -1), -1])
@example([])
def test_indexing(index):
    x = numbers((3, 3, 3), 5)
    key = tuple(index)
    try:
        expected = x[key]
    except IndexError:
        with pytest.raises(ConfigurationError):
            kp.encrypt(x)[key]
        return
    found = kp.encrypt(x)[key]
    assert found.shape == expected.shape and np.array_equal(found.reveal(), expected)


@few
@given(drawn.array_shapes(min_dims=1, max_dims=3, max_side=4), st.data())
def test_sums_and_means_over_axes(shape, data):
    axes = data.draw(st.none() | st.lists(st.integers(-len(shape), len(shape) - 1), min_size=1, max_size=3))
    axes = None if axes is None else tuple({axis % len(shape) for axis in axes})
    keepdims = data.draw(st.booleans())
    x = numbers(shape, 1)
    a = kp.encrypt(x)
    assert np.array_equal(a.sum(axes, keepdims).reveal(), x.sum(axes, keepdims=keepdims))
    np.testing.assert_allclose(
        a.mean(axes, keepdims).reveal(), x.mean(axes, keepdims=keepdims), atol=2 * UNIT, rtol=2.0**-19
    )


def test_shapes_are_changed():
    x = numbers((2, 3, 4), 2)
    a = kp.encrypt(x)
    for shape in ((24,), (4, 6), (-1, 2), (2, 3, 4, 1)):
        assert np.array_equal(a.reshape(shape).reveal(), x.reshape(shape))
        assert np.array_equal(a.reshape(*shape).reveal(), x.reshape(shape))
    assert np.array_equal(a.T.reveal(), x.T) and np.array_equal(a[0, 0, 0].reshape(()).reveal(), x[0, 0, 0])


@settings(few, max_examples=4)
@given(drawn.array_shapes(max_dims=2, max_side=3), st.sampled_from([8, 16, 20, 24]))
def test_relu_and_sigmoid(shape, fraction):
    x = np.round(numbers(shape, 9, 30.0) * 2.0**8) * 2.0**-8
    a = kp.encrypt(x, fraction=fraction)
    assert np.array_equal(a.relu().reveal(), np.maximum(x, 0))
    np.testing.assert_allclose(a.sigmoid().reveal(), 1 / (1 + np.exp(-x)), atol=2.0**-fraction + 2e-6)


def test_every_operation_of_the_catalogue_has_a_spelling():
    a, b = kp.encrypt(np.ones((2, 2))), kp.encrypt(np.ones((2, 2)))
    found = [a + b, a + 1, a - b, -a, a * b, a * 2, a @ b, a < b, a > b, a <= b, a >= b, a < 1, a <= 1, a > 1, a >= 1]
    found += [a[0], a.reshape(4), a.T, a.sum(), a.mean(), a.relu(), a.sigmoid()]
    assert {each.history.split("(")[0] for each in found} == set(CATALOGUE)


# Bounds.

BINARY = {"add": np.add, "subtract": np.subtract, "multiply": np.multiply, "less": np.less, "greater": np.greater}
UNARY = {
    "relu": lambda x: np.maximum(x, 0),
    "negative": np.negative,
    "sum": lambda x: x.sum(),
    "mean": lambda x: x.mean(),
    "sigmoid": lambda x: 1 / (1 + np.exp(-np.clip(x, -700, 700))),
}
WITH_NUMBER = {
    "multiply_number": np.multiply,
    "add_number": np.add,
    "less_number": np.less,
    "greater_equal_number": np.greater_equal,
}


def extremes(form, seed):
    """Ring elements as large as the bound says, and some between."""
    largest = math.floor(form.bound * 2.0**form.fraction)
    inside = np.random.default_rng(seed).integers(-largest, largest + 1, 1) if largest < 2**62 else [0]
    return np.array([largest, -largest, int(inside[0])], np.int64)


def run_on_ring(name, options, forms, rings):
    """Traced, without the check of inputs that the encoding makes: forms may have any bound below 2^62 in the ring."""
    shelves = EmbeddedShelves(PARTIES)
    shelves._traced = TRACED
    stored = [
        shelves.put(
            [(ring, np.zeros_like(ring)), (np.zeros_like(ring),) * 2, (np.zeros_like(ring), ring)], form, "a", "a"
        )
        for ring, form in zip(rings, forms)
    ]
    result = shelves.compute("a", name, options, [each.id for each in stored])
    _, summands = shelves.run("a", OPEN, {}, [result.id])
    with np.errstate(over="ignore"):
        total = sum((each.numpy() for each in summands[1:]), summands[0].numpy())
    return result.form, np.asarray(total).astype(np.float64) * 2.0**-result.form.fraction


PARTIES = EmbeddedParties()
KEPT = EmbeddedShelves(PARTIES)
TRACED = KEPT._traced
FRACTION = st.sampled_from([0, 3, 16, 24])


@many
@given(st.data())
def test_what_the_bounds_admit_is_right(data):
    """Operands as large as their bounds: the operation is refused, or its result is right and within its bound."""
    name = data.draw(st.sampled_from([*BINARY, *UNARY, *WITH_NUMBER]))
    forms = []
    for _ in range(2 if name in BINARY else 1):
        fraction = data.draw(FRACTION)
        # Up to the ring's end, where most operations have to be refused.
        forms.append(Form((3,), fraction, 2.0 ** data.draw(st.integers(-min(fraction, 2), 61 - fraction))))
    rings = [extremes(form, place) for place, form in enumerate(forms)]
    values = [ring.astype(np.float64) * 2.0**-form.fraction for ring, form in zip(rings, forms)]
    options = {"axes": [0], "keepdims": False} if name in ("sum", "mean") else {}
    if name in WITH_NUMBER:
        magnitude = 2.0 ** data.draw(st.integers(-10, 50))
        options = {"number": data.draw(st.sampled_from([magnitude, -magnitude, magnitude * 1.37, -magnitude / 3]))}
        values.append(np.float64(options["number"]))
    try:
        assert_right(name, options, forms, rings, values)
    except OverflowPreflightError as error:
        assert "could reach" in error.problem
    except ConfigurationError:
        assert name == "sigmoid" and forms[0].fraction >= 24


def assert_right(name, options, forms, rings, values):
    """The result is NumPy's, and within its bound."""
    form, found = run_on_ring(name, options, forms, rings)
    expected = {**BINARY, **UNARY, **WITH_NUMBER}[name](*values)
    unit = 2.0**-form.fraction
    if name in ("less", "greater", "less_number", "greater_equal_number"):
        assert np.array_equal(found, expected)
    else:
        size = max(np.max(np.abs(expected)), form.bound)
        np.testing.assert_allclose(found, expected, atol=1.01 * unit + 2e-6 * (name == "sigmoid") + size * 2.0**-20)
    assert np.all(np.abs(found) <= form.bound * (1 + 2.0**-50))


@pytest.mark.parametrize("fraction", [0, 16])
@pytest.mark.parametrize("name", [*BINARY, *UNARY, *WITH_NUMBER])
def test_the_largest_operands_that_are_admitted_give_right_results(name, fraction):
    """Bounds are doubled until the operation is refused: the last one that was not is right."""
    options = {"axes": [0], "keepdims": False} if name in ("sum", "mean") else {}
    options = {"number": 44.3} if name in WITH_NUMBER else options
    admitted = None
    for exponent in range(64 - fraction):
        forms = [Form((3,), fraction, 2.0**exponent), Form((3,), 16, 32.0)][: 2 if name in BINARY else 1]
        try:
            Call.of(name, options, forms).result()
        except OverflowPreflightError:
            break
        admitted = forms
        if exponent + fraction == 61:
            # Larger ones are no values: they cannot be put there or computed.
            assert name in ("negative", "relu")
            break
    rings = [extremes(form, place) for place, form in enumerate(admitted)]
    values = [ring.astype(np.float64) * 2.0**-form.fraction for ring, form in zip(rings, admitted)]
    assert_right(name, options, admitted, rings, [*values, *([options["number"]] if name in WITH_NUMBER else [])])


def test_the_bound_of_a_product_is_that_of_the_fixed_point():
    limit = FixedPoint(16).product_bound
    for forms, name in (([Form((2,), 16, 2.0**10)] * 2, "multiply"), ([Form((2, 2), 16, 2.0**10)] * 2, "matmul")):
        count = 2 if name == "matmul" else 1
        bound = limit / count / 2**10
        Call.of(name, {}, [forms[0], Form(forms[1].shape, 16, bound * 0.999)]).result()
        with pytest.raises(OverflowPreflightError, match="before truncation"):
            Call.of(name, {}, [forms[0], Form(forms[1].shape, 16, bound)]).result()


def test_bounds_follow_the_operations():
    a, b = kp.encrypt(np.ones((2, 3)), bound=4), kp.encrypt(np.ones((2, 3)), bound=8)
    assert (a + b).bound == (a - b).bound == 12 and (a < b).bound == 1 and a.sum().bound == 24
    assert (a @ b.T).bound == 96 + UNIT and (a * -0.5).bound == 2 + UNIT and a.relu().bound == 4
    assert (a[0].reshape(3, 1).T).bound == 4
    with pytest.raises(EncodingError):
        kp.encrypt(4.5, bound=4)


# Descriptions from outside.


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("nothing", {}),
        (OPEN, {"more": 1}),
        ("relu", {"axis": 1}),
        ("sum", {}),
        ("sum", {"axes": "all", "keepdims": False}),
        ("sum", {"axes": [0, 0], "keepdims": False}),
        ("sum", {"axes": [True], "keepdims": False}),
        ("sum", {"axes": [0], "keepdims": 1}),
        ("mean", {"axes": [5], "keepdims": False}),
        ("reshape", {"shape": [2.0, 3]}),
        ("reshape", {"shape": [-2, -3]}),
        ("reshape", {"shape": [-1, -1]}),
        ("reshape", {"shape": "6"}),
        ("index", {"index": 0}),
        ("index", {"index": [{"a": 1}]}),
        ("index", {"index": [[1, 2]]}),
        ("index", {"index": [[0, 1, 0]]}),
        ("index", {"index": [True]}),
        ("index", {"index": ["new"] * 20}),
        ("index", {"index": [0, 0, 0]}),
        ("add_number", {"number": "1"}),
        ("add_number", {"number": math.inf}),
        ("multiply_number", {"number": math.nan}),
        ("add_number", {"number": True}),
        ("add", {}),
        ("matmul", {}),
    ],
)
def test_malformed_descriptions_are_refused_with_a_typed_error(name, options):
    with pytest.raises(ConfigurationError, match="What to do"):
        Call.of(name, options, [Form((2, 3), 16, 1.0)]).result()


def test_equal_calls_are_equal_and_bounds_are_no_part_of_the_program():
    one = Call.of("sum", {"axes": [0], "keepdims": False}, [Form((2,), 16, 1.0)])
    other = Call.of("sum", json.loads('{"keepdims": false, "axes": [0]}'), [Form((2,), 16, 2.0)])
    assert one != other and one.program == other.program and hash(one.program) == hash(other.program)


def test_a_function_that_does_not_keep_its_form_is_refused(monkeypatch):
    wrong = CATALOGUE["transpose"]
    monkeypatch.setitem(CATALOGUE, "negative", type(wrong)(1, (), CATALOGUE["negative"].form, wrong.run))
    with pytest.raises(ConfigurationError, match="report"):
        Call.of("negative", {}, [Form((2, 3), 16, 1.0)]).trace(choose(), secure_source())
