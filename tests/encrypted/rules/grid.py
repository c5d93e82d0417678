"""Numbers whose products and sums a fixed point holds exactly, so that results on shares equal Keras's to the bit.

Weights are multiples of 1/2, inputs of 1: zeros and ties are frequent, and derivatives there have to agree too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.encrypted.programs import in_keras, on_shares


def inputs_on_grid(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-2, 3, shape).astype(np.float32)


def put_on_grid(model: Any, seed: int) -> Any:
    draw = np.random.default_rng(seed)
    for variable in model.weights:
        variable.assign(draw.integers(-2, 3, variable.shape) / 2.0)
    return model


def assert_equal(model: Any, inputs: list[np.ndarray], seed: int = 0) -> None:
    """Outputs and all gradients equal those of Keras, up to float32's rounding in Keras."""
    shapes = model.output_shape if isinstance(model.output_shape, list) else [model.output_shape]
    seeds = [inputs_on_grid(seed + 7, len(inputs[0]), *shape[1:]).astype(np.float64) for shape in shapes]
    expected, wanted = in_keras(model, inputs, seeds)
    found, gradients = on_shares(model, inputs, seeds)
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        largest = np.max(np.abs(wanted[name]), initial=1.0)
        np.testing.assert_allclose(gradient, wanted[name], atol=1e-6 * largest, err_msg=name)
