"""Works out, for the traced training step, how every tensor depends on the private examples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Optional

import tensorflow as tf

from ..._backends import graph as tf_graph
from . import elementwise, linear, reductions, shapes, sources
from .dims import BATCH, Dim
from .facts import Fact, Kind
from .registry import RULES, Context, all_mixed, without_rows
from .steering import settled
from .values import as_dims, broadcast_gradient_axes, evaluate, static_value

NOT_FOLLOWED = "of a nested function is not followed"
RULE_MODULES = (elementwise, linear, reductions, shapes, sources)


class StepProof:
    """Facts about the tensors of one FuncGraph.

    Guarantees:
        - Deny by default: an operation without a rule that sees data is MIXED.
        - Facts are of the operations that run, the backward pass included, not of layers or names.
        - Shapes count as public, except the size of the batch axis.

    Args:
        graph: The graph of the traced training step.
        arguments: What is known of placeholders that are no captures, by name; by default they hold rows of data.
    """

    def __init__(self, graph: tf.Graph, arguments: Optional[dict[str, Fact]] = None) -> None:
        self.graph = graph
        self._arguments = arguments or {}
        self.context = Context(batch=_batch_size(graph))
        self._facts: dict[str, list[Fact]] = {}
        self._captures = tf_graph.captures_by_placeholder(graph)
        self._declared = tf_graph.declared_rows(graph)
        self._outer: Optional[StepProof] = None

    def fact(self, tensor: tf.Tensor) -> Fact:
        """The fact about `tensor`, working out its ancestors first."""
        for op in self._waiting(tensor.op):
            self._facts[op.name] = self._transfer(op)
        return self._facts[tensor.op.name][tensor.value_index]

    def _waiting(self, last: tf.Operation) -> Iterator[tf.Operation]:
        """Ancestors of `last` without facts, each after its own ancestors."""
        stack = [(last, False)]
        entered: set[str] = set()
        while stack:
            op, finished = stack.pop()
            if op.name in self._facts:
                continue
            if finished:
                yield op
            elif op.name not in entered:
                entered.add(op.name)
                stack.append((op, True))
                stack.extend((tensor.op, False) for tensor in op.inputs)

    def _transfer(self, op: tf.Operation) -> list[Fact]:
        if op.type == "Placeholder":
            return [self._placeholder(op.outputs[0])]
        inputs = []
        for tensor in op.inputs:
            known = self._facts.get(tensor.op.name)
            # Only a loop of TensorFlow 1 control flow can reach an operation before its input.
            inputs.append(known[tensor.value_index] if known else all_mixed(op, "is part of a loop")[0])
        if op.name in self._declared:
            return [sources.data_rows(op.outputs[0], self.context)]
        if op.type == "BroadcastGradientArgs":
            return self._broadcast_gradient_args(op, inputs)
        results = settled(op, inputs, self.context)
        if results is None:
            rule = RULES.get(op.type, self._without_rule)
            results = rule(op, inputs, self.context)
        return self._with_value(op, inputs, results)

    def _without_rule(self, op: tf.Operation, inputs: list[Fact], context: Context) -> list[Fact]:
        hides = "hides what it does with examples in a nested function"
        if tf_graph.is_stateful(op):
            how = hides if tf_graph.is_function_call(op) else "reads or keeps state that the proof does not see"
            return all_mixed(op, how)
        done = without_rows(op, inputs, context)
        if done is not None:
            return done
        if tf_graph.is_function_call(op):
            return all_mixed(op, hides)
        return all_mixed(op, "has no rule that shows what it does with the batch axis")

    def _with_value(self, op: tf.Operation, inputs: list[Fact], results: list[Fact]) -> list[Fact]:
        if not results or any(result.is_row or result.is_mixed for result in results):
            return results
        values = evaluate(op, inputs)
        if op.type not in ("Shape", "ShapeN"):
            values[0] = values[0] if values[0] is not None else static_value(op.outputs[0])
        return [_valued(result, value) for result, value in zip(results, values)]

    def _broadcast_gradient_args(self, op: tf.Operation, inputs: list[Fact]) -> list[Fact]:
        if any(fact.value is None for fact in inputs):
            return all_mixed(op, "compares shapes that are not known while tracing")
        try:
            axes = broadcast_gradient_axes(*(list(fact.value.reshape(-1)) for fact in inputs))
        except ValueError:
            return all_mixed(op, "compares shapes that are not known while tracing")
        return [Fact(Kind.PUBLIC, value=as_dims(reduced)) for reduced in axes]

    def _placeholder(self, tensor: tf.Tensor) -> Fact:
        external = self._captures.get(tensor.name)
        if external is not None:
            if tf_graph.is_concrete(external) or tensor.dtype in (tf.resource, tf.variant):
                dims = self.context.static_dims(tensor)
                return Fact(Kind.PUBLIC, dims=dims, value=static_value(external))
            return self._outer_proof(external.graph).fact(external)
        if tensor.name in self._arguments:
            return self._arguments[tensor.name]
        if tf_graph.is_nested(self.graph):
            return Fact(Kind.MIXED, reason=f"argument '{tensor.name}' {NOT_FOLLOWED}")
        return sources.data_rows(tensor, self.context)

    def _outer_proof(self, graph: tf.Graph) -> StepProof:
        if self._outer is None:
            self._outer = StepProof(graph)
            if self._outer.context.batch != self.context.batch and self.context.batch == Dim.symbol(BATCH):
                self.context.batch = self._outer.context.batch
        return self._outer


def _valued(fact: Fact, value: Any) -> Fact:
    """`fact` with a symbolic value, which tells whether the batch size is in it."""
    if value is None:
        return fact
    depends_on_size = any(dim.has_batch for dim in value.reshape(-1))
    return replace(fact, kind=Kind.SIZE if depends_on_size else Kind.PUBLIC, value=value)


def _batch_size(graph: tf.Graph) -> Dim:
    """The static batch size when all data agrees on one, else the batch symbol."""
    sizes = {
        tensor.shape[0]
        for tensor in _data_tensors(graph)
        if tensor.dtype not in (tf.resource, tf.variant) and tensor.shape.rank
    }
    if len(sizes) == 1:
        size = sizes.pop()
        if size is not None:
            return Dim.of(size)
    return Dim.symbol(BATCH)


def _data_tensors(graph: tf.Graph) -> Iterable[tf.Tensor]:
    captures = tf_graph.captures_by_placeholder(graph)
    for op in graph.get_operations():
        is_argument = op.type == "Placeholder" and op.outputs[0].name not in captures
        if is_argument or op.type.startswith("IteratorGetNext"):
            yield from op.outputs
