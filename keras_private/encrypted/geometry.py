"""Windows over images: sizes and padding, as Python numbers."""

from __future__ import annotations

import dataclasses
from typing import Any

from keras_private.encrypted.kernels.interface import Padding, Pair


@dataclasses.dataclass(frozen=True)
class Windows:
    """A filter or pool of `size` moved over images of size `image`."""

    image: Pair
    size: Pair
    strides: Pair
    padding: Padding
    dilations: Pair = (1, 1)

    @property
    def places(self) -> Pair:
        """How many windows there are along both axes."""
        counts = []
        for axis in range(2):
            reach = (self.size[axis] - 1) * self.dilations[axis] + 1
            counts.append((self.image[axis] + sum(self.padding[axis]) - reach) // self.strides[axis] + 1)
        return counts[0], counts[1]

    @property
    def options(self) -> dict[str, Any]:
        """The kernels' arguments."""
        return {"strides": self.strides, "padding": self.padding, "dilations": self.dilations}


def padded(kind: str, image: Pair, size: Pair, strides: Pair, dilations: Pair = (1, 1)) -> Windows:
    """Windows with padding "valid", "same" or "causal" (along the last axis), as Keras places it."""
    sides: list[Pair] = []
    for axis in range(2):
        reach = (size[axis] - 1) * dilations[axis] + 1
        if kind == "same":
            total = max((-(-image[axis] // strides[axis]) - 1) * strides[axis] + reach - image[axis], 0)
            sides.append((total // 2, total - total // 2))
        else:
            sides.append((reach - 1, 0) if kind == "causal" and axis == 1 else (0, 0))
    return Windows(image, size, strides, (sides[0], sides[1]), dilations)
