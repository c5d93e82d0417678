"""One rule for each Keras layer that can be computed on shares, forward and backward."""

from keras_private.encrypted.rules import (
    activations,
    convolution,
    dense,
    embedding,
    merging,
    normalization,
    pooling,
    scaling,
    shaping,
)
from keras_private.encrypted.rules.registry import Parameter, Rule, register_rule, rule, rule_of

__all__ = [
    "Parameter",
    "Rule",
    "activations",
    "convolution",
    "dense",
    "embedding",
    "merging",
    "normalization",
    "pooling",
    "register_rule",
    "rule",
    "rule_of",
    "scaling",
    "shaping",
]
