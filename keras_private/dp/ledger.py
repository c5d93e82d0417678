"""The record of privacy charges, in memory or in a file, that never shows less than was spent."""

from __future__ import annotations

import os
import weakref
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Optional, Union

from ..errors import LedgerError, PrivacyError
from .accounting import UNKNOWN, ZERO_OUT, Charge
from .ledger_file import DurableDocument

_opened: weakref.WeakValueDictionary[str, Ledger] = weakref.WeakValueDictionary()


@dataclass(frozen=True)
class Session:
    """One fit with one optimizer.

    Attributes:
        identity: Names the optimizer.
        base: The optimizer's steps_done when the session began.
        reserved: Steps charged to this session: at least as many as ran.
        settled: Whether `reserved` is what ran.
        noise_multiplier, sampling_probability, sampler, adjacency, noise_coordinates: As in `Charge`.
        expected_batch_size: The divisor of the optimizer.
        num_examples: Size of the sampled data, None if unknown.
    """

    identity: str
    base: int
    reserved: int
    settled: bool
    noise_multiplier: float
    sampling_probability: Optional[float]
    sampler: str
    adjacency: str
    noise_coordinates: int
    expected_batch_size: float
    num_examples: Optional[int]

    @property
    def charge(self) -> Charge:
        return Charge(
            self.noise_multiplier,
            self.reserved,
            self.sampling_probability,
            self.sampler,
            self.adjacency,
            self.noise_coordinates,
        )


class Ledger:
    """All charges against one data set, as sessions that only ever add up.

    Guarantees:
        - It never under-reports: steps are reserved, durably, before they may run, and a reservation is lowered
          only by `settle`, to what ran. After a crash at any point the reserved steps stay charged.
        - Sessions add: a second optimizer, a cloned model, another batch size or a restored checkpoint opens a
          session of its own and lowers none.
        - A file that is missing although the optimizer has trained, truncated, altered, foreign to the optimizer
          or behind it is refused with `LedgerError`, never reset.
        - Without a file, steps that an optimizer did outside any session are charged without amplification.

    Not guaranteed: steps that run without a PrivacyBudget after restoring a checkpoint older than the ledger are
    not seen; nor is an older copy of the whole file put back together with an older checkpoint.
    """

    def __init__(self, document: Optional[DurableDocument]) -> None:
        self._document = document
        self._sessions: list[Session] = []
        self.holder: Any = None
        if document is not None:
            self._sessions = [_session(document.path, entry) for entry in document.sessions or []]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        raise TypeError("Ledger is final.")

    @classmethod
    def open(cls, path: Union[str, os.PathLike[str], None]) -> Ledger:
        """Opens the ledger in the file `path` for this process alone; with None, one in memory.

        Raises:
            LedgerError: The file is in use, truncated, altered or not a ledger; or its folder does not exist.
        """
        if path is None:
            return cls(None)
        document = DurableDocument(os.fspath(path))
        try:
            ledger = cls(document)
        except BaseException:
            document.close()
            raise
        _opened[document.path] = ledger
        return ledger

    @classmethod
    def held(cls, path: Union[str, os.PathLike[str]]) -> Optional[Ledger]:
        """The open ledger of this process in the file `path`, if there is one."""
        ledger = _opened.get(os.path.realpath(os.fspath(path)))
        return None if ledger is None or ledger.closed else ledger

    @property
    def path(self) -> Optional[str]:
        return None if self._document is None else self._document.path

    @property
    def closed(self) -> bool:
        return self._document is not None and self._document.closed

    @property
    def sequence(self) -> int:
        """How often the file was written; 0 in memory."""
        return 0 if self._document is None else self._document.sequence

    @property
    def sessions(self) -> tuple[Session, ...]:
        return tuple(self._sessions)

    def close(self) -> None:
        """Lets others open the file. A ledger in memory stays usable."""
        if self._document is not None:
            self._document.close()
        self.holder = None

    def charges(self) -> tuple[Charge, ...]:
        """Everything recorded, reserved steps included."""
        return tuple(session.charge for session in self._sessions if session.reserved)

    def charges_of(self, optimizer: Any) -> tuple[Charge, ...]:
        """Everything recorded, and the steps of `optimizer` that no session recorded.

        Raises:
            LedgerError: The ledger is a file that does not cover the optimizer's steps.
        """
        outside = self._outside(optimizer)
        return self.charges() + ((outside.charge,) if outside is not None else ())

    def start(self, optimizer: Any, charge: Charge, num_examples: Optional[int] = None) -> int:
        """Begins a session without steps; durable when it returns.

        Args:
            optimizer: Gives identity, steps_done and expected_batch_size.
            charge: What one step costs; its `steps` are ignored.
            num_examples: Size of the sampled data.

        Returns:
            The number by which `reserve` and `settle` know the session.

        Raises:
            LedgerError: The file is missing, foreign or behind the optimizer, or cannot be written.
        """
        outside = self._outside(optimizer)
        session = _of(optimizer, int(optimizer.steps_done), charge, num_examples)
        sessions = [*self._sessions, *([outside] if outside is not None else []), session]
        self._save(sessions)
        return len(sessions) - 1

    def reserve(self, session: int, steps: int) -> int:
        """Charges `steps` more steps to a session, durably, before they run; returns all it has reserved."""
        old = self._sessions[session]
        if steps < 0:
            raise LedgerError(f"{steps} steps cannot be reserved.", expected="0 or more", remedy="Use settle.")
        self._put(session, replace(old, reserved=old.reserved + int(steps), settled=False))
        return self._sessions[session].reserved

    def settle(self, session: int, steps_done_in_session: int) -> None:
        """Ends a session: lowers its reservation to the steps that ran.

        Raises:
            LedgerError: More ran than was reserved. They are recorded all the same.
        """
        old = self._sessions[session]
        self._put(session, replace(old, reserved=int(steps_done_in_session), settled=True))
        if steps_done_in_session > old.reserved:
            raise LedgerError(
                f"{steps_done_in_session} steps ran where {old.reserved} were reserved.",
                expected="no step without a reservation",
                remedy="All of them are charged now; do not train this optimizer outside model.fit.",
            )

    def adopt(self, file: Ledger) -> None:
        """Makes a ledger in memory show what the file that now governs the optimizer shows."""
        self._save(list(file.sessions))

    def require_cover_of(self, memory: Ledger) -> None:
        """Refuses a file that knows less of any optimizer than this process does: an older copy put back.

        Raises:
            LedgerError: It does.
        """
        for identity in {session.identity for session in memory.sessions}:
            here, there = (
                sum(session.reserved for session in ledger.sessions if session.identity == identity)
                for ledger in (self, memory)
            )
            if here < there:
                raise LedgerError(
                    f"ledger {self.path} is behind: it holds {here} steps of optimizer {identity}, this process "
                    f"knows of {there}.",
                    expected="the ledger as this process last saw it",
                    remedy="Put the newest copy back.",
                )

    def _put(self, session: int, entry: Session) -> None:
        sessions = list(self._sessions)
        sessions[session] = entry
        self._save(sessions)

    def _save(self, sessions: list[Session]) -> None:
        if self._document is not None:
            self._document.write([asdict(session) for session in sessions])
        self._sessions = sessions

    def _outside(self, optimizer: Any) -> Optional[Session]:
        """The steps of an optimizer that no session covers, as a session; refused where the ledger is a file."""
        done, identity = int(optimizer.steps_done), optimizer.identity
        covered = max((s.base + s.reserved for s in self._sessions if s.identity == identity), default=None)
        if done <= (covered or 0):
            return None
        if self._document is not None:
            raise _not_covered(self._document, identity, done, covered)
        coordinates = int(optimizer.noise_coordinates)
        charge = Charge(float(optimizer.noise_multiplier), 0, None, UNKNOWN, ZERO_OUT, coordinates)
        outside = _of(optimizer, covered or 0, charge, None)
        return replace(outside, reserved=done - (covered or 0), settled=True)


def _of(optimizer: Any, base: int, charge: Charge, num_examples: Optional[int]) -> Session:
    return Session(
        identity=str(optimizer.identity),
        base=base,
        reserved=0,
        settled=False,
        noise_multiplier=float(charge.noise_multiplier),
        sampling_probability=charge.sampling_probability,
        sampler=charge.sampler,
        adjacency=charge.adjacency,
        noise_coordinates=int(charge.noise_coordinates),
        expected_batch_size=float(optimizer.expected_batch_size),
        num_examples=num_examples,
    )


def _session(path: str, entry: dict[str, Any]) -> Session:
    try:
        session = Session(**entry)
        whole = (session.base, session.reserved, session.num_examples or 0, session.noise_coordinates)
        right = (
            set(entry) == {field.name for field in fields(Session)}
            and all(type(number) is int and number >= 0 for number in whole)
            and type(session.settled) is bool
            and isinstance(session.identity, str)
            and session.charge.steps == session.reserved
        )
    except (TypeError, ValueError, PrivacyError) as error:
        raise _unreadable(path, entry) from error
    if not right:
        raise _unreadable(path, entry)
    return session


def _unreadable(path: str, entry: Any) -> LedgerError:
    return LedgerError(
        f"ledger {path} holds a session that cannot be read: {entry!r}.",
        expected="the sessions that this version of keras_private writes",
        remedy="Restore the ledger from a backup made after the last training.",
    )


def _not_covered(document: DurableDocument, identity: str, done: int, covered: Optional[int]) -> LedgerError:
    if document.sessions is None:
        problem = f"ledger {document.path} is missing, but the optimizer has already done {done} steps."
    elif covered is None:
        problem = f"ledger {document.path} is foreign: it knows no optimizer {identity}, which did {done} steps."
    else:
        problem = f"ledger {document.path} is behind: it covers {covered} of the optimizer's {done} steps."
    return LedgerError(
        problem,
        expected="the ledger that was used from this optimizer's first step on",
        remedy="Name that file, or restore it from a backup made after the last training; if the steps ran "
        "without a ledger, start again from fresh weights.",
    )
