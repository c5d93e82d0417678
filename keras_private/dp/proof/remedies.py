"""What to do about a value in which examples are mixed."""

from __future__ import annotations

KEEP_APART = "Keep every computation within one example, with the batch on axis 0."
USE_KERAS_LOSS = (
    "Use a Keras loss with reduction 'sum', 'sum_over_batch_size' or 'none'; for masked sequences pass "
    "sample_weight instead of a mask; leave out loss scaling and batch centring."
)


def remedy_for(reason: str, default: str = KEEP_APART) -> str:
    """The way out for the cause that a MIXED fact names."""
    if "BatchNorm" in reason or "batch_norm" in reason:
        return "Replace BatchNormalization by GroupNormalization: model = keras_private.fix(model)."
    if "TensorList" in reason or "While" in reason:
        return "Unroll recurrent layers (unroll=True), or freeze them."
    if "nested function" in reason:
        return (
            "Use keras_private.make_private, which inlines tf.functions while tracing, unroll recurrent layers "
            "(unroll=True), and do not set jit_compile."
        )
    return default
