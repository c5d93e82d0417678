"""What every secure source must pass: laws, freshness, refusals. Subclass it and give `make_source`.

Each law is tested with a false alarm probability of P_VALUE; tests/random/test_statistics.py shows that the
same statistics at the same sizes reject wrong laws.
"""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from keras_private.errors import ConfigurationError
from keras_private.random import CELLS_PER_SIGMA, SecureSource
from keras_private.random.gaussian_table import bin_weights

P_VALUE = 1e-8
DTYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
# dtype, minval, maxval: no powers of two, ranges past the signed maximum, the modulo's worst, both ends.
BOUNDED = (
    ("int8", -5, 7),
    ("int8", -128, 127),
    ("uint8", 1, 256),
    ("uint8", 0, 10),
    ("int16", -30000, 30001),
    ("uint16", 0, 3 * 2**14),
    ("int32", -(2**31), 2**31 - 1),
    ("uint32", 0, 3 * 2**30),
    ("int64", -3, 4),
    ("int64", -(2**63), 2**63 - 1),
    ("int64", -(2**62), 2**63),
    ("int64", 2**40, 2**40 + 1000),
    ("uint64", 0, 3 * 2**62),
    ("uint64", 1, 2**64),
)


def chi_square_p(observed: np.ndarray, probabilities: np.ndarray) -> float:
    """p-value of counts against probabilities, cells of small expectation merged with their neighbours."""
    expected = probabilities / probabilities.sum() * observed.sum()
    groups = np.floor(np.minimum(np.cumsum(expected) / 50.0, 1e15)).astype(np.int64)
    _, groups = np.unique(groups, return_inverse=True)
    merged_observed, merged_expected = np.bincount(groups, observed), np.bincount(groups, expected)
    statistic = ((merged_observed - merged_expected) ** 2 / merged_expected).sum()
    return float(stats.chi2.sf(statistic, len(merged_expected) - 1))


def bucket_p(values: np.ndarray, minval: int, maxval: int) -> float:
    """p-value of uniformity over [minval, maxval), by at most 96 buckets of exactly known sizes."""
    size = maxval - minval
    count = min(size, 96)
    edges = [minval + (size * i) // count for i in range(count + 1)]
    # Shifted to unsigned, so that numpy compares exactly over the whole 64-bit range.
    offsets = (values.astype(np.uint64) - np.uint64(minval % 2**64)).astype(np.uint64)
    limits = np.array([edge - minval for edge in edges[1:-1]], np.uint64)
    observed = np.bincount(np.searchsorted(limits, offsets, side="right"), minlength=count)
    return chi_square_p(observed, np.diff(np.array([float(edge - minval) for edge in edges])))


def cells_p(cells: np.ndarray) -> float:
    """p-value of |Z|'s bin counts against the exact bin probabilities."""
    magnitude = np.where(cells >= 0, cells, -cells - 1)
    weights = np.array([float(weight) for weight in bin_weights()])
    return chi_square_p(np.bincount(magnitude >> 12, minlength=len(weights)), weights)


def normal_p(values: np.ndarray) -> float:
    """Kolmogorov-Smirnov p-value against the standard normal law."""
    return float(stats.kstest(values, "norm", method="asymp").pvalue)


def correlation_p(a: np.ndarray, b: np.ndarray) -> float:
    """p-value of no linear correlation."""
    return float(2 * stats.norm.sf(abs(np.corrcoef(a, b)[0, 1]) * np.sqrt(len(a))))


class SecureSourceContract:
    """Inherit as `class TestX(SecureSourceContract)`."""

    def make_source(self) -> SecureSource:
        raise NotImplementedError

    @pytest.fixture()
    def source(self) -> SecureSource:
        return self.make_source()

    # Laws

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_full_range_bytes_are_uniform(self, source: SecureSource, dtype: str) -> None:
        drawn = source.uniform_full([50_000], dtype).numpy()
        assert drawn.dtype == dtype and drawn.shape == (50_000,)
        octets = drawn.view(np.uint8).reshape(50_000, -1)
        for column in octets.T:
            assert chi_square_p(np.bincount(column, minlength=256), np.ones(256)) > P_VALUE
        assert chi_square_p(np.bincount(octets.ravel(), minlength=256), np.ones(256)) > P_VALUE

    @pytest.mark.parametrize(("dtype", "minval", "maxval"), BOUNDED)
    def test_bounded_range_is_uniform(
        self, source: SecureSource, dtype: str, minval: int, maxval: int
    ) -> None:
        drawn = source.uniform([60_000], minval, maxval, dtype).numpy()
        assert drawn.dtype == dtype
        assert minval <= int(drawn.min()) and int(drawn.max()) < maxval
        assert bucket_p(drawn, minval, maxval) > P_VALUE
        if maxval - minval <= 1000:
            assert {int(value) for value in drawn} == set(range(minval, maxval))

    def test_range_of_one_value(self, source: SecureSource) -> None:
        assert np.array_equal(source.uniform([5], -7, -6, tf.int32), [-7] * 5)
        assert np.array_equal(source.uniform([5], 2**63 - 1, 2**63, tf.int64), [2**63 - 1] * 5)

    def test_gaussian_is_standard_normal_and_not_nearly(self, source: SecureSource) -> None:
        values = source.gaussian([50_000], dtype=tf.float64).numpy()
        assert normal_p(values) > P_VALUE
        assert normal_p(0.9 * values) < P_VALUE and normal_p(1.1 * values) < P_VALUE
        assert normal_p(source.gaussian([50_000], stddev=3.0, dtype=tf.float32).numpy() / 3.0) > P_VALUE

    def test_gaussian_cells_have_the_exact_bin_probabilities(self, source: SecureSource) -> None:
        cells = source.gaussian_cells([1_000_000]).numpy()
        assert cells.dtype == np.int64
        assert cells_p(cells) > P_VALUE
        negative = int((cells < 0).sum())
        assert stats.binomtest(negative, cells.size).pvalue > P_VALUE
        # Within a bin the low bits are nearly uniform: their exact slope is below 2^-4 per bin.
        assert chi_square_p(np.bincount(cells & 63, minlength=64), np.ones(64)) > P_VALUE

    def test_gaussian_tail_has_its_mass(self, source: SecureSource) -> None:
        values = source.gaussian([1_000_000], dtype=tf.float64).numpy()
        for limit in (3.0, 4.0):
            beyond, probability = int((np.abs(values) > limit).sum()), 2 * stats.norm.sf(limit)
            assert stats.binomtest(beyond, values.size, probability).pvalue > P_VALUE

    def test_draws_are_independent(self, source: SecureSource) -> None:
        values = source.gaussian([400_000], dtype=tf.float64).numpy()
        words = source.uniform_full([400_000], tf.int64).numpy().astype(np.float64)
        for lag in (1, 2, 16, 64, 1024):
            assert correlation_p(values[:-lag], values[lag:]) > P_VALUE
            assert correlation_p(np.abs(values[:-lag]), np.abs(values[lag:])) > P_VALUE
            assert correlation_p(words[:-lag], words[lag:]) > P_VALUE
        assert len(np.unique(words)) == len(words)

    def test_added_noise_has_its_mean_and_variance(self, source: SecureSource) -> None:
        x = np.full([50_000], 3.0, np.float32)
        noisy = source.add_gaussian_noise(x, cell=2.0 * 2.0**-20, scale=0.5).numpy()
        assert noisy.dtype == np.float32
        assert normal_p((noisy.astype(np.float64) - 1.5) / 1.0) > P_VALUE
        assert normal_p((noisy.astype(np.float64) - 1.5) / 0.9) < P_VALUE

    def test_added_noise_lies_on_the_grid(self, source: SecureSource) -> None:
        x = np.linspace(-0.37, 0.41, 20_000, dtype=np.float32)
        # Cells of 2^-20 and outputs below 16: float32 holds every odd multiple of half a cell.
        noisy = source.add_gaussian_noise(x, cell=2.0**-20, scale=2.0**-3).numpy().astype(np.float64)
        positions = noisy / 2.0**-23 - 0.5
        small = np.abs(positions) < 2**22
        assert small.sum() > 15_000
        assert np.array_equal(positions[small], np.round(positions[small]))

    def test_added_noise_takes_non_finite_input(self, source: SecureSource) -> None:
        x = tf.constant([np.nan, np.inf, -np.inf, 3e38], tf.float32)
        noisy = source.add_gaussian_noise(x, cell=2.0**-52).numpy()
        assert abs(noisy[0]) < 1e-8
        np.testing.assert_allclose(noisy[1:], [1.0, -1.0, 1.0], atol=1e-8)

    # Freshness

    def _all_fresh(self, drawn: list[np.ndarray]) -> None:
        assert len({value.tobytes() for value in drawn}) == len(drawn)

    def _draws(self, source: SecureSource) -> list[tf.Tensor]:
        zeros = tf.zeros([8])
        return [
            source.uniform_full([8], tf.int64),
            source.uniform([8], 0, 10**15, tf.int64),
            source.gaussian_cells([8]),
            tf.bitcast(source.add_gaussian_noise(zeros, 2.0**-20), tf.int32),
        ]

    def test_two_draws_and_two_runs_of_one_graph_differ(self, source: SecureSource) -> None:
        @tf.function
        def twice() -> list[tf.Tensor]:
            return self._draws(source) + self._draws(source)

        runs = [[value.numpy() for value in twice()] for _ in range(2)]
        self._all_fresh([value for run in runs for value in run])

    def test_loop_iterations_differ(self, source: SecureSource) -> None:
        @tf.function
        def loop(steps: tf.Tensor) -> list[tf.Tensor]:
            rows = [tf.TensorArray(tf.int64, size=steps) for _ in range(2)]
            for i in tf.range(steps):
                rows[0] = rows[0].write(i, source.uniform_full([8], tf.int64))
                rows[1] = rows[1].write(i, source.gaussian_cells([8]))
            return [each.stack() for each in rows]

        runs = [loop(tf.constant(5)) for _ in range(2)]
        self._all_fresh([row for run in runs for table in run for row in table.numpy()])

    def test_a_graph_holds_no_draw(self, source: SecureSource) -> None:
        @tf.function
        def draw() -> tf.Tensor:
            return source.uniform_full([64], tf.uint8)

        concrete = draw.get_concrete_function()
        text = concrete.graph.as_graph_def().SerializeToString()
        drawn = concrete().numpy().tobytes()
        assert drawn not in text and draw().numpy().tobytes() != drawn

    def test_dynamic_and_static_shapes(self, source: SecureSource) -> None:
        @tf.function(input_signature=[tf.TensorSpec([None], tf.int32)])
        def dynamic(shape: tf.Tensor) -> tuple[tf.Tensor, ...]:
            return (
                source.uniform_full(shape, tf.int8),
                source.uniform(shape, 0, 9),
                source.gaussian_cells(shape),
            )

        for shape in ([], [0], [3, 0, 2], [2, 5], [70_001]):
            assert all(value.shape == shape for value in dynamic(tf.constant(shape, tf.int32)))

        @tf.function
        def static() -> tf.Tensor:
            value = source.gaussian([2, 3])
            assert value.shape == [2, 3] and source.uniform_full([4], tf.int16).shape == [4]
            return value

        assert static().shape == [2, 3]

    def test_dataset_elements_differ(self, source: SecureSource) -> None:
        data = tf.data.Dataset.range(4).map(lambda _: source.uniform_full([4], tf.int64))
        self._all_fresh([value.numpy() for value in data] + [value.numpy() for value in data])

    def test_a_checkpoint_restored_twice_gives_different_draws(self, source: SecureSource, tmp_path) -> None:
        class Holder(tf.Module):
            def __init__(self) -> None:
                super().__init__()
                self.source = source
                self.weight = tf.Variable(1.0)

        holder = Holder()
        path = tf.train.Checkpoint(holder=holder).save(str(tmp_path / "state"))
        names = {name for name, _ in tf.train.list_variables(path)}
        assert {name for name in names if "OBJECT_GRAPH" not in name} == {
            "holder/weight/.ATTRIBUTES/VARIABLE_VALUE",
            "save_counter/.ATTRIBUTES/VARIABLE_VALUE",
        }
        drawn = []
        for _ in range(2):
            restored = Holder()
            tf.train.Checkpoint(holder=restored).restore(path).assert_consumed()
            drawn.append(restored.source.uniform_full([8], tf.int64).numpy())
        self._all_fresh(drawn)

    def test_a_saved_model_loaded_twice_gives_different_draws(self, source: SecureSource, tmp_path) -> None:
        module = tf.Module()
        module.draw = tf.function(lambda: source.uniform_full([8], tf.int64), input_signature=[])
        tf.saved_model.save(module, str(tmp_path))
        self._all_fresh([tf.saved_model.load(str(tmp_path)).draw().numpy() for _ in range(2)])

    # Refusals

    @pytest.mark.parametrize("dtype", ["float32", "bool", "string", "nonsense", None])
    def test_other_dtypes_are_refused(self, source: SecureSource, dtype: object) -> None:
        with pytest.raises(ConfigurationError, match=r"(?s)Expected: int8.*What to do"):
            source.uniform_full([2], dtype)
        with pytest.raises(ConfigurationError):
            source.uniform([2], 0, 2, dtype)

    @pytest.mark.parametrize("shape", [[-1], [[1, 2]], ["a"], 3.5, [1.5], None, tf.TensorShape([None])])
    def test_other_shapes_are_refused(self, source: SecureSource, shape: object) -> None:
        for draw in (source.gaussian_cells, source.gaussian, lambda s: source.uniform_full(s, tf.int8)):
            with pytest.raises(ConfigurationError):
                draw(shape)

    @pytest.mark.parametrize(
        ("minval", "maxval", "dtype"),
        [(3, 3, "int32"), (4, 3, "int32"), (-129, 3, "int8"), (0, 258, "uint8")],
    )
    def test_empty_or_unholdable_ranges_are_refused(
        self, source: SecureSource, minval: int, maxval: int, dtype: str
    ) -> None:
        with pytest.raises(ConfigurationError):
            source.uniform([2], minval, maxval, dtype)

    @pytest.mark.parametrize(("minval", "maxval"), [(3, 3), (4, 3), (5, -5)])
    def test_empty_tensor_ranges_are_refused_when_run(
        self, source: SecureSource, minval: int, maxval: int
    ) -> None:
        draw = tf.function(lambda low, high: source.uniform([2], low, high, tf.int32))
        with pytest.raises(tf.errors.InvalidArgumentError):
            draw(tf.constant(minval), tf.constant(maxval))

    def test_noise_arguments_are_checked(self, source: SecureSource) -> None:
        x = tf.zeros([2])
        for cell in (0.0, -1.0, float("nan"), float("inf"), 2.0**-140):
            with pytest.raises(ConfigurationError):
                source.add_gaussian_noise(x, cell)
            with pytest.raises(tf.errors.InvalidArgumentError):
                source.add_gaussian_noise(x, tf.constant(cell, tf.float64))
        with pytest.raises(ConfigurationError):
            source.add_gaussian_noise(x, 1.0, scale=float("inf"))
        with pytest.raises(tf.errors.InvalidArgumentError):
            source.add_gaussian_noise(x, 1e200, scale=1e200)
        with pytest.raises(ConfigurationError, match="float32"):
            source.add_gaussian_noise(tf.zeros([2], tf.float64), 1.0)
        assert CELLS_PER_SIGMA == 2**20

    # Keyed expansion

    def test_expand_gives_the_vectors_of_rfc_8439(self, source: SecureSource) -> None:
        key = tf.constant(list(range(32)), tf.uint8)
        # 2.3.2
        nonce = tf.constant(list(bytes.fromhex("000000090000004a00000000")), tf.uint8)
        block = (
            "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
            "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e"
        )
        assert source.expand(key, 64, nonce, counter=1).numpy().tobytes().hex() == block
        # 2.4.2
        nonce = tf.constant(list(bytes.fromhex("000000000000004a00000000")), tf.uint8)
        plaintext = (
            b"Ladies and Gentlemen of the class of '99: If I could offer you "
            b"only one tip for the future, sunscreen would be it."
        )
        stream = source.expand(key, len(plaintext), nonce, counter=1).numpy()
        ciphertext = (
            "6e2e359a2568f98041ba0728dd0d6981e97e7aec1d4360c20a27afccfd9fae0b"
            "f91b65c5524733ab8f593dabcd62b3571639d624e65152ab8f530c359f0861d8"
            "07ca0dbf500d6a6156a38e088a22b65e52bc514d16ccf806818ce91ab7793736"
            "5af90bbf74a35be6b40b8eedf2785e42874d"
        )
        assert (stream ^ np.frombuffer(plaintext, np.uint8)).tobytes().hex() == ciphertext

    def test_expand_continues_by_counter_and_stops_at_the_last_block(self, source: SecureSource) -> None:
        key, nonce = tf.range(32), tf.range(12)
        key, nonce = tf.cast(key, tf.uint8), tf.cast(nonce, tf.uint8)
        whole = source.expand(key, 200, nonce, 2**32 - 4).numpy()
        assert np.array_equal(whole[128:], source.expand(key, 72, nonce, 2**32 - 2).numpy())
        assert source.expand(key, 0, nonce).shape == [0]
        for size, counter in ((129, 2**32 - 2), (-1, 0), (1, -1), (1, 2**32), (2**62, 0)):
            with pytest.raises(tf.errors.InvalidArgumentError):
                source.expand(key, size, nonce, counter)
        with pytest.raises(ConfigurationError):
            source.expand(key[:16], 1, nonce)
        with pytest.raises(ConfigurationError):
            source.expand(key, 1, tf.zeros([8], tf.uint8))
        with pytest.raises(ConfigurationError):
            source.expand(tf.zeros([32], tf.int32), 1, nonce)
