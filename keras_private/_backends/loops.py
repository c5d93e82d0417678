"""The tf.while_loops whose bodies are being traced: TensorFlow hands out a condition only with the finished loop."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
from tensorflow.python.ops import while_v2

from ..errors import BackendError


@dataclass(frozen=True)
class TracedLoop:
    """A tf.while_loop on this thread's stack whose body is being traced.

    Attributes:
        condition: The graph of its condition; its output is the decision.
        initial: The initial value of each loop variable, by the name of the placeholder that stands for it there.
    """

    condition: Any
    initial: dict[str, tf.Tensor]


def loops_being_traced() -> Iterator[TracedLoop]:
    """From the innermost outwards.

    Raises:
        BackendError: TensorFlow's while_loop is not the one this package knows.
    """
    code = inspect.unwrap(while_v2.while_loop).__code__
    if not all(name in code.co_varnames + code.co_cellvars for name in ("cond_graph", "loop_vars")):
        raise BackendError(
            f"tf.while_loop of TensorFlow {tf.__version__} is not the one this package knows.",
            expected="TensorFlow 2.14",
            remedy="Install tensorflow==2.14.1.",
        )
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is code and "cond_graph" in frame.f_locals:
            yield _read(frame.f_locals["cond_graph"], frame.f_locals["loop_vars"])
        frame = frame.f_back  # type: ignore[assignment]


def _read(condition: Any, loop_vars: Any) -> TracedLoop:
    captured = {placeholder.name for _, placeholder in condition.captures}
    arguments = [tensor for tensor in condition.inputs if tensor.name not in captured]
    return TracedLoop(
        condition,
        {
            argument.name: value
            for argument, value in zip(arguments, tf.nest.flatten(loop_vars, expand_composites=True))
        },
    )
