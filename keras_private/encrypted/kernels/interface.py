"""The interface of the kernels. Tensors are int64, the ring of integers modulo 2^64, unless said otherwise."""

from __future__ import annotations

import abc
from typing import Any

import tensorflow as tf

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]


class Kernels(abc.ABC):
    """Deterministic functions of tensors: a party's work between two messages.

    F_T(key, nonce, n) is the ChaCha20 keystream (RFC 8439, block 0 on) as n little-endian words of type T; keys are
    uint8 [32], nonces uint8 [12]. n/s is nonce n with its last byte set to s.

    The bilinear kernels compute mask + B(x0, y0 + y1) + B(x1, y0): the summand that a holder of two shares of each
    factor can compute of B(x, y). `mask` has the shape of the result.

    Guarantees, locked by tests/encrypted/kernels for every implementation:
      * All arithmetic is modulo 2^64, exactly, in any shape, none of whose sizes need be known while tracing.
      * Implementations agree bit for bit, so that parties may run different ones.
    """

    name: str = ""

    @abc.abstractmethod
    def keystream(self, key: tf.Tensor, nonce: tf.Tensor, shape: Any, dtype: tf.DType = tf.int64) -> tf.Tensor:
        """F, in `shape`; dtype int8, int16, int32 or int64."""

    @abc.abstractmethod
    def zero_mask(
        self, key_a: tf.Tensor, key_b: tf.Tensor, nonce: tf.Tensor, shape: Any, dtype: tf.DType = tf.int64
    ) -> tf.Tensor:
        """F(key_a) - F(key_b)."""

    @abc.abstractmethod
    def zero_mask_bits(
        self, key_a: tf.Tensor, key_b: tf.Tensor, nonce: tf.Tensor, shape: Any, dtype: tf.DType
    ) -> tf.Tensor:
        """F(key_a) ^ F(key_b)."""

    @abc.abstractmethod
    def product(self, x0: tf.Tensor, x1: tf.Tensor, y0: tf.Tensor, y1: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """Elementwise; all five of one shape."""

    @abc.abstractmethod
    def matmul(
        self,
        x0: tf.Tensor,
        x1: tf.Tensor,
        y0: tf.Tensor,
        y1: tf.Tensor,
        mask: tf.Tensor,
        transpose_a: bool = False,
        transpose_b: bool = False,
    ) -> tf.Tensor:
        """Matrices."""

    @abc.abstractmethod
    def matmul_public(
        self, x: tf.Tensor, y: tf.Tensor, transpose_a: bool = False, transpose_b: bool = False
    ) -> tf.Tensor:
        """One matrix product."""

    @abc.abstractmethod
    def conv2d(
        self,
        x0: tf.Tensor,
        x1: tf.Tensor,
        w0: tf.Tensor,
        w1: tf.Tensor,
        mask: tf.Tensor,
        strides: Pair,
        padding: Padding,
        dilations: Pair,
    ) -> tf.Tensor:
        """x [n, h, w, c], filter [kh, kw, c, o]; padding ((top, bottom), (left, right))."""

    @abc.abstractmethod
    def conv2d_public(self, x: tf.Tensor, w: tf.Tensor, strides: Pair, padding: Padding, dilations: Pair) -> tf.Tensor:
        """One convolution."""

    @abc.abstractmethod
    def conv2d_input(
        self,
        w0: tf.Tensor,
        w1: tf.Tensor,
        g0: tf.Tensor,
        g1: tf.Tensor,
        mask: tf.Tensor,
        input_size: Pair,
        strides: Pair,
        padding: Padding,
        dilations: Pair,
    ) -> tf.Tensor:
        """Gradient of conv2d with respect to x, of size [n, *input_size, c], from g of conv2d's output shape."""

    @abc.abstractmethod
    def conv2d_filter(
        self,
        x0: tf.Tensor,
        x1: tf.Tensor,
        g0: tf.Tensor,
        g1: tf.Tensor,
        mask: tf.Tensor,
        filter_size: Pair,
        strides: Pair,
        padding: Padding,
        dilations: Pair,
    ) -> tf.Tensor:
        """Gradient of conv2d with respect to the filter, [*filter_size, c, o]."""

    @abc.abstractmethod
    def depthwise(
        self,
        x0: tf.Tensor,
        x1: tf.Tensor,
        w0: tf.Tensor,
        w1: tf.Tensor,
        mask: tf.Tensor,
        strides: Pair,
        padding: Padding,
        dilations: Pair,
    ) -> tf.Tensor:
        """Filter [kh, kw, c, m]; channel c * m_count + m of the output."""

    @abc.abstractmethod
    def depthwise_public(
        self, x: tf.Tensor, w: tf.Tensor, strides: Pair, padding: Padding, dilations: Pair
    ) -> tf.Tensor:
        """One depthwise convolution."""

    @abc.abstractmethod
    def depthwise_input(
        self,
        w0: tf.Tensor,
        w1: tf.Tensor,
        g0: tf.Tensor,
        g1: tf.Tensor,
        mask: tf.Tensor,
        input_size: Pair,
        strides: Pair,
        padding: Padding,
        dilations: Pair,
    ) -> tf.Tensor:
        """Gradient with respect to x."""

    @abc.abstractmethod
    def depthwise_filter(
        self,
        x0: tf.Tensor,
        x1: tf.Tensor,
        g0: tf.Tensor,
        g1: tf.Tensor,
        mask: tf.Tensor,
        filter_size: Pair,
        strides: Pair,
        padding: Padding,
        dilations: Pair,
    ) -> tf.Tensor:
        """Gradient with respect to the filter, [*filter_size, c, m]."""

    @abc.abstractmethod
    def and_words(self, x0: tf.Tensor, x1: tf.Tensor, y0: tf.Tensor, y1: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """mask ^ (x0 & y0) ^ (x0 & y1) ^ (x1 & y0); any signed integer type."""

    @abc.abstractmethod
    def carry_leaf(
        self, a0: tf.Tensor, a1: tf.Tensor, b0: tf.Tensor, b1: tf.Tensor, mask: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Generating and propagating bits of a + b, words shared by exclusive or.

        Each word is shifted left by one, so that the carry out of it is the carry into bit 63, and its bit j moves to
        place rev(j), the number whose six bits are those of j reversed. Neighbours (2m + 1, 2m) then stand in the upper
        and the lower half, in the same place; and so on after each joining.

        Returns:
            g = mask ^ (a & b), one summand, and p = a ^ b for both of the party's shares; int64 [n].
        """

    @abc.abstractmethod
    def carry_level(self, width: int, x0: tf.Tensor, x1: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """Joins pairs: G' = G_hi ^ (P_hi & G_lo), P' = P_hi & P_lo, one summand, masked.

        Containers of `width` bits of G and as many of P: 64: int64 [2, n], rows G and P; 32: int64 P << 32 | G; 16:
        int32; 8: int16; 4: int8; 2: int8, P << 2 | G; 1: int8, G alone. Bits above are zero. The input has `width`,
        the result width / 2; mask has the shape and type of the result.
        """

    @abc.abstractmethod
    def trunc_dealer(
        self, key0: tf.Tensor, key2: tf.Tensor, nonce: tf.Tensor, shape: Any, bits: int
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """With r = F(key0, n/1) + F(key2, n/1): (r >> bits) - F(key0, n/2), (msb(r) << 64 - bits) - F(key0, n/3)."""

    @abc.abstractmethod
    def trunc_mask(self, z2: tf.Tensor, key2: tf.Tensor, nonce: tf.Tensor) -> tf.Tensor:
        """z2 + F(key2, n/0)."""

    @abc.abstractmethod
    def trunc_open0(self, z0: tf.Tensor, z2m: tf.Tensor, key0: tf.Tensor, nonce: tf.Tensor) -> tf.Tensor:
        """z0 + z2m + F(key0, n/1) + 2^62."""

    @abc.abstractmethod
    def trunc_open1(self, z1: tf.Tensor, key2: tf.Tensor, nonce: tf.Tensor) -> tf.Tensor:
        """z1 - F(key2, n/0) + F(key2, n/1)."""

    @abc.abstractmethod
    def trunc_close0(self, c0: tf.Tensor, c1: tf.Tensor, key0: tf.Tensor, nonce: tf.Tensor, bits: int) -> tf.Tensor:
        """With c = c0 + c1: (c >> bits) - 2^(62 - bits) - F(key0, n/2) + [c < 2^63] F(key0, n/3) - F(key0, n/4)."""

    @abc.abstractmethod
    def trunc_close1(
        self,
        c0: tf.Tensor,
        c1: tf.Tensor,
        a1: tf.Tensor,
        m1: tf.Tensor,
        key2: tf.Tensor,
        nonce: tf.Tensor,
        bits: int,
    ) -> tf.Tensor:
        """-a1 + [c < 2^63] m1 - F(key2, n/4)."""
