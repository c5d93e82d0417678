"""One party's process: it answers owners and clients, and computes its part of runs with the other two."""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_private.encrypted.cluster.certificates import Identity
from keras_private.encrypted.cluster.config import FILE, ClusterConfig, check_fingerprint
from keras_private.encrypted.cluster.conversations import Conversation
from keras_private.encrypted.cluster.door import Door, bound
from keras_private.encrypted.cluster.links import Links
from keras_private.encrypted.cluster.publications import Publication, Publications
from keras_private.encrypted.cluster.requests import Board, Request
from keras_private.encrypted.cluster.running import Arrivals
from keras_private.encrypted.cluster.scheduling import Scheduler
from keras_private.encrypted.cluster.vault import Vault
from keras_private.encrypted.cluster.wire import Frame, Header
from keras_private.errors import ConfigurationError, PartiesError, PrivacyError, TransportError

LOG = logging.getLogger("keras_private.party")
_MOST_CONNECTIONS = 256
_MOST_OF_ONE = 64
"""Connections of one name; those of parties and owners are not counted."""


class Party:
    """Serves until it is closed.

    Guarantees, each locked by tests/encrypted/cluster:
      * Whoever connects proves a name by a certificate of the cluster's authority; an owner's calls are for owners,
        a client's for clients, a party's for parties.
      * It runs programs that it has traced itself, and sends what they say to whom they say: masked summands of a
        result to the client that asked, and to nobody else.
      * A frame of another size, out of order, or late ends the run with an error for its clients; nothing is revealed.

    Args:
        config: Of the cluster.
        identity: This party's certificate and key.
        listening: A socket that is bound; by default one is bound to the address in `config`.
        delay: Seconds that a request waits for others to run with, while a client is connected that has none here.
        at_once: Runs that may be under way together.
        seconds: The longest that a run may take.
    """

    def __init__(
        self,
        config: ClusterConfig,
        identity: Identity,
        listening: socket.socket | None = None,
        delay: float = 0.002,
        at_once: int = 2,
        seconds: float = 60.0,
    ) -> None:
        self.config, self.identity, self.name = config, identity, identity.name
        names = [each.name for each in config.parties]
        if self.name not in names:
            raise ConfigurationError(f"{self.name!r} is no party", expected=f"one of {names}", remedy="name one")
        check_fingerprint(config, identity)
        self.place = names.index(self.name)
        self.next, self.leader = names[(self.place + 1) % 3], names[0]
        self.seconds = seconds
        self.publications = Publications()
        self.arrivals = Arrivals(lambda: max(self.publications.largest_frame(), self.vault.largest_frame()))
        self.board = Board(self._checked, self._give_up)
        self.links = Links(config, identity, self._on_data, self._on_notice, self._limit, self._on_loss)
        self.vault = Vault(self.name, self.links, self.arrivals, self.tell, seconds)
        self.scheduler = (
            Scheduler(self.links.others, self._largest, self._lead, delay, self._clients, at_once)
            if self.name == self.leader
            else None
        )
        listening = listening or bound(config.party(self.name), FILE)
        self._door = Door(identity, listening, self._admit, lambda wire: Conversation(self, wire).hold(), LOG)

    def serve(self) -> None:
        """Accepts connections until `close`."""
        self._door.serve()

    def close(self) -> None:
        """Ends connections and forgets what was published."""
        self._door.close()
        if self.scheduler is not None:
            self.scheduler.close()
        self.links.close()
        self._door.end_all()
        for publication in self.publications.all():
            self.publications.remove(publication)
        self.vault.close()

    def _admit(self, peer: str, here: list[str]) -> None:
        """One client's connections do not keep others out."""
        trusted = {*self.links.others, *self.config.owners}
        others = [each for each in here if each not in trusted]
        if peer in trusted or (len(others) < _MOST_CONNECTIONS and others.count(peer) < _MOST_OF_ONE):
            return
        raise TransportError(
            f"{peer} has {others.count(peer)} connections of {len(others)}",
            expected=f"at most {_MOST_OF_ONE} of one name, and {_MOST_CONNECTIONS} in all",
            remedy="close some, or wait",
        )

    # What the other parties send.

    def _on_data(self, party: str, frame: Frame) -> None:
        self.arrivals.put(frame.header.key, party, frame.header.number, frame.payload)

    def _limit(self, party: str, header: Header) -> int:
        return self.arrivals.limit(header.key, party, header.number)

    def _on_loss(self, party: str, reason: str) -> None:
        LOG.warning("the connection from %s ended: %s", party, reason)
        self.arrivals.fail_all(f"{party} is gone ({reason})")
        self.links.renew(party)
        self.board.fail_all(_gone(party, reason))
        self.vault.on_loss(_gone(party, reason))

    def _on_notice(self, party: str, facts: dict[str, Any]) -> None:
        kind = facts.get("notice")
        if kind == "order" and party == self.leader:
            threading.Thread(target=self._follow, args=(facts,), name="run", daemon=True).start()
        elif kind == "digest":
            self.board.digest(bytes.fromhex(facts["key"]), facts["client"], bytes.fromhex(facts["digest"]))
        elif kind == "ready" and self.scheduler is not None:
            self.scheduler.there(party, bytes.fromhex(facts["key"]))
        elif kind == "refused":
            self._give_up(
                bytes.fromhex(facts["key"]),
                TransportError(
                    f"{party}: {facts['problem']}",
                    expected="a request that all three parties take",
                    remedy=str(facts.get("remedy", "")),
                ),
                tell=False,
            )
        elif kind == "broken":
            self.arrivals.fail(bytes.fromhex(facts["key"]), f"{party}: {facts['problem']}")
        elif not self.vault.on_notice(party, facts):
            raise TransportError(
                f"{party} sent the notice {kind!r}", expected="one it may send", remedy="check versions"
            )

    # Requests.

    def take(self, request: Request) -> None:
        """A client's request is here: has it checked with the party that holds the same share."""
        self.board.add(request)
        digest = {"notice": "digest", "key": request.key.hex(), "client": request.client}
        try:
            self.links.notice(self.next, {**digest, "digest": request.digest(1).hex()})
        except TransportError as error:
            self._give_up(request.key, error)

    def _checked(self, request: Request) -> None:
        if self.scheduler is not None:
            self.scheduler.here(request)
            return
        try:
            self.links.notice(self.leader, {"notice": "ready", "key": request.key.hex()})
        except TransportError as error:
            self._give_up(request.key, error)

    def _give_up(self, key: bytes, error: PrivacyError, tell: bool = True) -> None:
        self.board.fail(key, error)
        if self.scheduler is not None:
            self.scheduler.forget(key)
        if tell:
            self.tell("refused", key, error)

    def tell(self, notice: str, key: bytes, error: PrivacyError) -> None:
        """Tells the other parties, as far as they can be reached, that they need not wait."""
        for other in self.links.others:
            try:
                facts = {"notice": notice, "key": key.hex(), "problem": error.problem, "remedy": error.remedy}
                self.links.notice(other, facts, time.monotonic() + 2.0)
            except TransportError as unreachable:
                LOG.info("%s", unreachable.problem)

    # Runs.

    def _clients(self) -> list[str]:
        """Of each connection of a client."""
        return [name for name in self._door.names() if name in self.config.clients]

    def _largest(self, publication: str) -> int:
        return max((max(each.programs) for each in self.publications.all() if each.key == publication), default=1)

    def _lead(self, requests: list[Request]) -> None:
        """Orders a run, and takes part in it."""
        named = [[each.key.hex(), each.client, each.rows] for each in requests]
        order = {"publication": requests[0].publication, "requests": named, "run": secrets.token_hex(16)}
        try:
            for other in self.links.others:
                self.links.notice(other, {"notice": "order", "order": order})
        except TransportError as error:
            for request in requests:
                self._give_up(request.key, error)
            return
        self._take_part(order, requests)

    def _follow(self, facts: dict[str, Any]) -> None:
        order = facts["order"]
        requests: list[Request] = []
        try:
            for key, client, rows in order["requests"]:
                requests.append(self.board.find(bytes.fromhex(key), client, rows, order["publication"]))
        except (PrivacyError, KeyError, TypeError, ValueError) as error:
            broken = (
                error
                if isinstance(error, PrivacyError)
                else TransportError("a malformed order", expected="a list of requests", remedy="check versions")
            )
            self.tell("broken", run_key(order), broken)
            return
        self._take_part(order, requests)

    def _take_part(self, order: dict[str, Any], requests: list[Request]) -> None:
        key = run_key(order)
        deadline = min([time.monotonic() + self.seconds, *(each.deadline for each in requests)])
        try:
            named = [each for each in self.publications.all() if each.key == order["publication"] and each.active]
            if not named:
                raise PartiesError(
                    "the model is no longer published here", expected="a published model", remedy="publish it again"
                )
            outputs = self._run(named[0], key, requests, deadline)
        except PrivacyError as error:
            self._break(key, requests, error)
        except (tf.errors.OpError, MemoryError, RuntimeError, ValueError, KeyError) as error:
            LOG.exception("a run failed")
            self._break(key, requests, TransportError(f"an internal {type(error).__name__}", expected="a result"))
        else:
            start = 0
            for request in requests:
                request.finish([output[start : start + request.rows] for output in outputs])
                self.board.remove(request)
                start += request.rows
        finally:
            self.arrivals.close(key)

    def _run(self, publication: Publication, key: bytes, requests: Sequence[Request], deadline: float) -> list[Any]:
        rows = sum(request.rows for request in requests)
        size, program = publication.program_for(rows)
        self.arrivals.open(key, program.sizes)
        inputs = {}
        for place, each in enumerate(publication.inputs):
            for half in range(2):
                parts = [request.pairs[place][half] for request in requests]
                if rows < size:
                    parts.append(np.zeros(each.shares(size - rows), np.int64))
                whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
                inputs[6 * place + 2 * self.place + half] = tf.convert_to_tensor(whole)
        found = program.run(key, {at: inputs[at] for at in program.graph.inputs}, self.arrivals, self.links, deadline)
        with publication.lock:
            publication.runs += 1
            publication.requests += len(requests)
            publication.rows += rows
        return [found[at].numpy() for at in sorted(found)]

    def _break(self, key: bytes, requests: Sequence[Request], error: PrivacyError) -> None:
        LOG.warning("a run was broken off: %s", error.problem)
        self.tell("broken", key, error)
        for request in requests:
            self.board.fail(request.key, error)


def run_key(order: dict[str, Any]) -> bytes:
    """Of a run: parties that were given different orders speak of different runs, and none of them goes on."""
    return hashlib.sha256(json.dumps(order, sort_keys=True).encode()).digest()[:16]


def _gone(party: str, reason: str) -> TransportError:
    return TransportError(
        f"{party} is gone: {reason}", expected="three parties that live on", remedy="restart it and publish again"
    )
