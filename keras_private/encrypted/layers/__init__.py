"""Keras layers whose heavy part three parties compute on shares, inside an ordinary model and an ordinary fit."""

from keras_private.encrypted.layers.activation import EncryptedActivation
from keras_private.encrypted.layers.convolution import EncryptedConv2D, EncryptedDepthwiseConv2D
from keras_private.encrypted.layers.dense import EncryptedDense
from keras_private.encrypted.layers.embedding import EncryptedEmbedding

__all__ = [
    "EncryptedActivation",
    "EncryptedConv2D",
    "EncryptedDense",
    "EncryptedDepthwiseConv2D",
    "EncryptedEmbedding",
]
