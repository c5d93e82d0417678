"""The contract's statistics, at the contract's sizes, reject wrong laws."""

from __future__ import annotations

import importlib.util
import pathlib
import sys

import numpy as np
import pytest

_PATH = pathlib.Path(__file__).parents[1] / "contracts" / "secure_source.py"
_SPEC = importlib.util.spec_from_file_location("keras_private_secure_source_contract", _PATH)
contract = importlib.util.module_from_spec(_SPEC)
sys.modules.setdefault(_SPEC.name, contract)
_SPEC.loader.exec_module(contract)

P = contract.P_VALUE


@pytest.fixture()
def plain() -> np.random.Generator:
    return np.random.default_rng(7)  # A fixed seed: these are tests of statistics, not of a source.


def test_bucket_statistic_rejects_modulo_bias(plain: np.random.Generator) -> None:
    size = 3 * 2**62
    words = plain.integers(0, 2**64, 60_000, np.uint64, endpoint=False)
    assert contract.bucket_p(words % np.uint64(size), 0, size) < P
    assert contract.bucket_p(plain.integers(0, size, 60_000, np.uint64), 0, size) > P


def test_bucket_statistic_rejects_modulo_bias_of_32_bits(plain: np.random.Generator) -> None:
    size = 3 * 2**30
    words = plain.integers(0, 2**32, 60_000, np.uint64)
    assert contract.bucket_p(words % np.uint64(size), 0, size) < P


def test_bucket_statistic_rejects_a_missing_end(plain: np.random.Generator) -> None:
    assert contract.bucket_p(plain.integers(0, 9, 60_000), 0, 10) < P
    assert contract.bucket_p(plain.integers(-128, 0, 60_000), -128, 127) < P


def test_byte_statistic_rejects_the_constant_of_tfe_0_9_1() -> None:
    # Its seeded int8 sampler returns -128 throughout (FACTS.md).
    constant = np.full(50_000, -128, np.int8).view(np.uint8)
    assert contract.chi_square_p(np.bincount(constant, minlength=256), np.ones(256)) < P


def test_byte_statistic_rejects_a_weak_bit(plain: np.random.Generator) -> None:
    octets = plain.integers(0, 256, 50_000, np.uint8) | (plain.random(50_000) < 0.05).astype(np.uint8)
    assert contract.chi_square_p(np.bincount(octets, minlength=256), np.ones(256)) < P


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_cell_statistic_rejects_a_wrong_deviation(plain: np.random.Generator, factor: float) -> None:
    values = plain.standard_normal(1_000_000)
    assert contract.cells_p(np.floor(values * 2**20).astype(np.int64)) > P
    assert contract.cells_p(np.floor(values * factor * 2**20).astype(np.int64)) < P


def test_low_bit_statistic_rejects_a_coarse_float(plain: np.random.Generator) -> None:
    # A float16 normal: its bins are right, its low bits betray the format.
    values = plain.standard_normal(1_000_000)
    for law, accepted in ((values, True), (values.astype(np.float16).astype(np.float64), False)):
        cells = np.floor(law * 2**20).astype(np.int64)
        assert (contract.chi_square_p(np.bincount(cells & 63, minlength=64), np.ones(64)) > P) == accepted


def test_cell_statistic_rejects_a_clipped_tail_and_another_law(plain: np.random.Generator) -> None:
    clipped = np.clip(plain.standard_normal(1_000_000), -3.5, 3.5)
    assert contract.cells_p(np.floor(clipped * 2**20).astype(np.int64)) < P
    laplace = plain.laplace(0, np.sqrt(0.5), 1_000_000)
    assert contract.cells_p(np.floor(laplace * 2**20).astype(np.int64)) < P


def test_correlation_statistic_rejects_a_repeating_stream(plain: np.random.Generator) -> None:
    values = plain.standard_normal(400_000)
    mixed = values[64:] + 0.02 * values[:-64]
    assert contract.correlation_p(mixed[:-64], mixed[64:]) < P
    assert contract.correlation_p(values[:-64], values[64:]) > P
