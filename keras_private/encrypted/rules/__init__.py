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
    standardizing,
)
from keras_private.encrypted.rules.registry import Parameter, Rule, penalties_of, register_rule, rule, rule_of

__all__ = [
    "Parameter",
    "Rule",
    "activations",
    "convolution",
    "dense",
    "embedding",
    "merging",
    "normalization",
    "penalties_of",
    "pooling",
    "register_rule",
    "rule",
    "rule_of",
    "scaling",
    "shaping",
    "standardizing",
]
