"""What can be computed with private tensors, in the spelling of NumPy and Python."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

from keras_private.chain.checks import axes_of, exposed, index_as_json, number_of, whole
from keras_private.chain.links import Link
from keras_private.errors import ConfigurationError

Self = TypeVar("Self", bound="Operators")


class Operators(Link):
    """Operators and methods, each of which gives a new chain. Abstract: PrivateTensor is the one that has a runtime."""

    __slots__ = ()
    dtype: str

    def _compute(self: Self, operation: str, others: Sequence[Any] = (), dtype: str = "", **options: Any) -> Self:
        """Has the parties compute."""
        raise NotImplementedError

    def _indexed(self: Self, index: Any, given: Any) -> Self:
        """Elements by a public index, `given` in its form as JSON."""
        raise NotImplementedError

    def _binary(self: Self, name: str, other: Any, dtype: str = "") -> Self:
        if isinstance(other, Operators):
            return self._compute(name, [other], dtype)
        return self._compute(f"{name}_number", (), dtype, number=number_of(other, name))

    # NumPy leaves operators to this class.
    __array_ufunc__ = None

    def __add__(self: Self, other: Any) -> Self:
        return self._binary("add", other)

    __radd__ = __add__

    def __sub__(self: Self, other: Any) -> Self:
        if isinstance(other, Operators):
            return self._compute("subtract", [other])
        return self._binary("add", -number_of(other, "subtract"))

    def __rsub__(self: Self, other: Any) -> Self:
        return (-self)._binary("add", other)

    def __neg__(self: Self) -> Self:
        return self._compute("negative")

    def __mul__(self: Self, other: Any) -> Self:
        return self._binary("multiply", other)

    __rmul__ = __mul__

    def __truediv__(self: Self, other: Any) -> Self:
        number = number_of(other, "divide")
        if number == 0 or not math.isfinite(1 / number):
            raise ConfigurationError(f"a division by {number}", expected="a number, not 0", remedy="check it")
        return self._binary("multiply", 1 / number)

    def __matmul__(self: Self, other: Any) -> Self:
        if not isinstance(other, Operators):
            raise ConfigurationError(
                f"a matrix product with {type(other).__name__}", expected="a PrivateTensor", remedy="kp.encrypt it"
            )
        return self._compute("matmul", [other])

    def __lt__(self: Self, other: Any) -> Self:
        return self._binary("less", other, "bool")

    def __le__(self: Self, other: Any) -> Self:
        return self._binary("less_equal", other, "bool")

    def __gt__(self: Self, other: Any) -> Self:
        return self._binary("greater", other, "bool")

    def __ge__(self: Self, other: Any) -> Self:
        return self._binary("greater_equal", other, "bool")

    def __getitem__(self: Self, index: Any) -> Self:
        """Elements, rows or slices; indices are public. Before `send` it is done in this process."""
        return self._indexed(index, index_as_json(index))

    def reshape(self: Self, *shape: Any) -> Self:
        """The same elements in another shape, of which one size may be -1."""
        sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
        return self._compute("reshape", (), self.dtype, shape=[whole(each, "a size") for each in sizes])

    def transpose(self: Self) -> Self:
        """Axes in the opposite order."""
        return self._compute("transpose", (), self.dtype)

    @property
    def T(self: Self) -> Self:
        """`transpose()`."""
        return self.transpose()

    def sum(self: Self, axis: Any = None, keepdims: bool = False) -> Self:
        """Over all axes, or those given."""
        return self._compute("sum", axes=axes_of(axis, self.shape), keepdims=bool(keepdims))

    def mean(self: Self, axis: Any = None, keepdims: bool = False) -> Self:
        """Over all axes, or those given."""
        return self._compute("mean", axes=axes_of(axis, self.shape), keepdims=bool(keepdims))

    def relu(self: Self) -> Self:
        """max(x, 0), exactly."""
        return self._compute("relu")

    def sigmoid(self: Self) -> Self:
        """1 / (1 + e^-x)."""
        return self._compute("sigmoid")

    def __len__(self) -> int:
        if not self.shape:
            raise ConfigurationError("len of a scalar", expected="at least one axis", remedy="use shape")
        return self.shape[0]

    # Iteration would be one operation for each element.
    __iter__ = None

    def __bool__(self) -> NoReturn:
        raise exposed("used as a condition")

    def __float__(self) -> NoReturn:
        raise exposed("turned into a number")

    __int__ = __index__ = __complex__ = __float__
