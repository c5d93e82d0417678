"""What passes between parties in a traced graph, read from the labels of its operations.

Guarantees, each locked by tests/encrypted/test_graph_edges.py:
  * An operation of one party reads another's tensor only where a message named after both delivers it, through
    operations without a label and function calls too.
  * Bodies of calls, loops and branches are walked. One under a party's label is that party's alone.
  * What has no label is a constant, an input, a call of such a body, or passes one tensor on unchanged; in a body also
    what is computed of these, as loop counters are.
  * Whether a body runs is decided by no party's tensor: a secret would show in what is sent.

Not checked: who may read an input of the traced function, and what a party does with its own values in functions that
its operations carry as attributes other than those of calls.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from keras_private._backends.labels import party_of
from keras_private.errors import ConfigurationError

_FREE = ("Placeholder", "Const", "NoOp")
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
_LOOPS = ("While", "StatelessWhile")
_BRANCHES = ("If", "StatelessIf", "Case", "StatelessCase")


@dataclasses.dataclass(frozen=True)
class Edge:
    """One message: a tensor that goes from one party to another.

    Attributes:
        source: Label of the sender.
        target: Label of the receiver.
        name: Of the operation, after those of the calls around it.
        dtype: Of the tensor.
        shape: As known while tracing.
        every_run: It is sent exactly once in each run: not so in loops and branches.
    """

    source: str
    target: str
    name: str
    dtype: Any
    shape: Any
    every_run: bool = True

    @property
    def bytes(self) -> int | None:
        """Of one run; None where that is not known while tracing."""
        count = self.shape.num_elements()
        return None if count is None or not self.every_run else count * self.dtype.size


def cross_edges(concrete: Any) -> list[Edge]:
    """Every message of a traced function, in the order of the graph.

    Raises:
        ConfigurationError: An operation reads another party's tensor other than through a message, an operation that
            should have a party has none, or a party's tensor decides what runs.
    """
    walk = _Walk()
    walk.body(concrete.graph, None, "", True)
    return walk.edges


def rounds(concrete: Any, among: tuple[str, ...]) -> int:
    """The longest chain of messages between the given parties, each waiting for the one before.

    Raises:
        ConfigurationError: As `cross_edges`; or such a message is in a loop, whose iterations only the run counts.
    """
    walk = _Walk(among)
    walk.body(concrete.graph, None, "", True)
    return walk.longest


@dataclasses.dataclass(frozen=True)
class _Held:
    """Who has a tensor (None: whoever reads it), after how many messages."""

    party: str | None = None
    depth: int = 0


class _Walk:
    def __init__(self, among: tuple[str, ...] = ()) -> None:
        self.among = among
        self.edges: list[Edge] = []
        self.longest = 0

    def body(self, graph: Any, given: Sequence[_Held] | None, scope: str, every_run: bool, loop: bool = False) -> Any:
        """Who holds each output, and each output's depth; `given` are the inputs of a body, None of the whole."""
        held: dict[str, _Held] = {}
        if given is not None:
            held.update({tensor.name: each for tensor, each in zip(graph.inputs, given)})
        depths: dict[str, int] = {}
        for operation in graph.get_operations():
            sources = [held[tensor.name] for tensor in operation.inputs]
            before = [each.depth for each in sources] + [depths.get(c.name, 0) for c in operation.control_inputs]
            waited = max(before, default=0)
            if operation.outputs and operation.outputs[0].name in held:
                continue
            party = party_of(operation)
            if party is not None:
                results = [self._at(party, operation, sources, waited, scope, every_run, loop)] * len(operation.outputs)
            elif operation.type in _CALLS + _LOOPS + _BRANCHES:
                results = self._call(operation, sources, scope, every_run, loop)
                results = [_Held(each.party, max(each.depth, waited)) for each in results]
            else:
                results = [_Held(_unlabelled(operation, sources, given is not None), waited)] * len(operation.outputs)
            held.update({tensor.name: each for tensor, each in zip(operation.outputs, results)})
            depths[operation.name] = max([each.depth for each in results] + [waited])
            self.longest = max(self.longest, depths[operation.name])
        return [held[tensor.name] for tensor in graph.outputs]

    def _at(
        self, party: str, operation: Any, sources: list[_Held], waited: int, scope: str, every_run: bool, loop: bool
    ) -> _Held:
        _check_own_bodies(party, operation)
        for tensor, source in zip(operation.inputs, sources):
            if source.party is None or source.party == party:
                continue
            leaf = operation.name.rsplit("/", 1)[-1]
            if operation.type != "Identity" or not leaf.startswith(f"send_{source.party}_to_{party}"):
                raise ConfigurationError(
                    f"{scope}{operation.name} of {party} reads {tensor.name} of {source.party}",
                    expected="a message between them",
                    remedy="use Session.send",
                )
            self.edges.append(Edge(source.party, party, scope + operation.name, tensor.dtype, tensor.shape, every_run))
            if source.party in self.among and party in self.among:
                if loop:
                    raise ConfigurationError(
                        f"{scope}{operation.name} is sent in a loop, whose iterations only the run counts",
                        expected="messages outside of loops",
                        remedy="count the rounds of one iteration",
                    )
                waited += 1
        return _Held(party, waited)

    def _call(self, operation: Any, sources: list[_Held], scope: str, every_run: bool, loop: bool) -> list[_Held]:
        scope = f"{scope}{operation.name}/"
        if operation.type in _CALLS:
            (graph,) = _bodies(operation)
            return list(self.body(graph, sources, scope, every_run, loop))
        if operation.type in _BRANCHES:
            _check_decision(operation, sources[0])
            outcomes = [self.body(graph, sources[1:], scope, False, loop) for graph in _bodies(operation)]
            return [_joined(operation, each) for each in zip(*outcomes)]
        condition, body = _attribute_graph(operation, "cond"), _attribute_graph(operation, "body")
        state = sources
        while True:
            trial = _Walk()
            after = trial.body(body, state, scope, False, True)
            joined = [_joined(operation, pair) for pair in zip(state, after)]
            if [each.party for each in joined] == [each.party for each in state]:
                break
            state = joined
        (decision,) = self.body(condition, state, scope, False, True)
        _check_decision(operation, decision)
        # No message among the counted parties is inside, so that depths after one iteration are those after any.
        return [_joined(operation, pair) for pair in zip(state, self.body(body, state, scope, False, True))]


def _unlabelled(operation: Any, sources: list[_Held], inside: bool) -> str | None:
    """Who has the outputs of an operation without a label."""
    if operation.type in _FREE or not sources:
        return None
    if operation.type == "Identity":
        # What a traced function returns is an Identity of it.
        return sources[0].party
    if inside and all(each.party is None for each in sources):
        return None
    raise ConfigurationError(
        f"{operation.name} ({operation.type}) belongs to no party", expected="a label", remedy="create it in Session.at"
    )


def _joined(operation: Any, outcomes: Sequence[_Held]) -> _Held:
    parties = {each.party for each in outcomes} - {None}
    if len(parties) > 1:
        raise ConfigurationError(
            f"a result of {operation.name} belongs to {' or '.join(sorted(map(str, parties)))}",
            expected="one party, whichever branch or iteration it comes from",
            remedy="send it to the same party in each",
        )
    return _Held(parties.pop() if parties else None, max(each.depth for each in outcomes))


def _check_decision(operation: Any, decision: _Held) -> None:
    if decision.party is not None:
        raise ConfigurationError(
            f"a tensor of {decision.party} decides what {operation.name} runs",
            expected="a decision that every party makes for itself",
            remedy="compute it of constants, sizes and public inputs",
        )


def _check_own_bodies(party: str, operation: Any) -> None:
    for graph in _bodies(operation):
        for inner in graph.get_operations():
            if party_of(inner) not in (None, party):
                raise ConfigurationError(
                    f"{operation.name} of {party} runs {inner.name} of {party_of(inner)}",
                    expected="operations of one party, or a call without a label",
                    remedy="make the call outside of Session.at",
                )
            _check_own_bodies(party, inner)


def _bodies(operation: Any) -> list[Any]:
    """Of calls, loops and branches."""
    if operation.type in _CALLS:
        return [_attribute_graph(operation, "f")]
    if operation.type in _LOOPS:
        return [_attribute_graph(operation, each) for each in ("cond", "body")]
    if operation.type in ("If", "StatelessIf"):
        return [_attribute_graph(operation, each) for each in ("then_branch", "else_branch")]
    if operation.type in _BRANCHES:
        return [_graph_named(operation, each.name) for each in operation.get_attr("branches")]
    return []


def _attribute_graph(operation: Any, attribute: str) -> Any:
    return _graph_named(operation, operation.get_attr(attribute).name)


def _graph_named(operation: Any, name: str) -> Any:
    graph = operation.graph
    while graph is not None:
        function = graph._get_function(name)
        if function is not None:
            return function.graph
        graph = getattr(graph, "outer_graph", None)
    raise ConfigurationError(
        f"the body {name} of {operation.name} is not to be found",
        expected="a function traced in this process",
        remedy="look at the function before it is saved or cut",
    )
