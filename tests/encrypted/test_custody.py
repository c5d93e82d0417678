"""What one party keeps: who may open it, what is derived from it, and when it is overwritten."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from keras_private.chain import Form, Stored
from keras_private.encrypted.custody import Shelf, source_history
from keras_private.encrypted.operations import OPEN
from keras_private.errors import AccessError, ConfigurationError, OverflowPreflightError, PartiesError

FORM = Form((4,), 16, 8.0)


def kept(shelf, number, owner="alice", readers=("alice",), keeper="connection", form=FORM):
    stored = Stored(f"{number:032x}", form, (owner,), readers, source_history(owner, f"{number:032x}"))
    pair = (np.arange(form.size).reshape(form.shape) + number, np.ones(form.shape, np.int64))
    shelf.keep(stored, pair, keeper)
    return stored


def test_it_keeps_copies_and_gives_them_back():
    shelf = Shelf()
    given = (np.arange(4), np.arange(4) + 10)
    stored = Stored("0" * 32, FORM, ("alice",), ("alice",), "")
    shelf.keep(stored, given, "connection")
    given[0][:] = 99
    with shelf.using([stored.id]) as (pair,):
        assert pair[0].tolist() == [0, 1, 2, 3] and pair[1].tolist() == [10, 11, 12, 13]
    assert shelf.look(stored.id) is stored and len(shelf) == 1
    with pytest.raises(ConfigurationError, match="taken"):
        shelf.keep(stored, given, "connection")


@pytest.mark.parametrize("how", ["drop", "leave", "clear", "sweep"])
def test_shares_are_overwritten(how):
    shelf = Shelf(lifetime=0.0 if how == "sweep" else 100.0)
    stored = kept(shelf, 1)
    pair = shelf._holdings[stored.id].pair
    {
        "drop": lambda: shelf.drop([stored.id], "connection"),
        "leave": lambda: shelf.leave("connection"),
        "clear": shelf.clear,
        "sweep": shelf.sweep,
    }[how]()
    assert not np.any(pair[0]) and not np.any(pair[1]) and len(shelf) == 0 and shelf.room == shelf.limit
    with pytest.raises(PartiesError, match="What to do"):
        shelf.look(stored.id)


def test_shares_that_a_run_is_reading_are_overwritten_after_it():
    shelf = Shelf()
    stored = kept(shelf, 1)
    with shelf.using([stored.id]) as (pair,):
        shelf.clear()
        assert np.any(pair[0])
        with pytest.raises(PartiesError):
            shelf.look(stored.id)
    assert not np.any(pair[0]) and not np.any(pair[1])


def test_values_whose_time_is_over_are_not_used_even_before_they_are_swept():
    shelf = Shelf(lifetime=-1.0)
    stored = kept(shelf, 1)
    with pytest.raises(PartiesError):
        shelf.using([stored.id]).__enter__()


def test_only_its_keeper_drops_a_value():
    shelf = Shelf()
    stored = kept(shelf, 1)
    shelf.drop([stored.id, "f" * 32], "another connection")
    shelf.leave("another connection")
    assert shelf.look(stored.id) is stored


def test_memory_is_limited():
    shelf = Shelf(limit=200)
    first = kept(shelf, 1)
    assert shelf.room == 200 - 64
    kept(shelf, 2), kept(shelf, 3)
    with pytest.raises(ConfigurationError, match="64 bytes"):
        kept(shelf, 4)
    with pytest.raises(ConfigurationError):
        shelf.planned("relu", {}, [first.id], "4" * 32, "alice")
    shelf.drop([first.id], "connection")
    kept(shelf, 4)


def test_results_have_all_owners_and_common_readers():
    shelf = Shelf()
    one = kept(shelf, 1, "alice", ("alice", "bob", "eve"))
    other = kept(shelf, 2, "bob", ("eve", "bob"))
    call, result = shelf.planned("add", {}, [one.id, other.id], "a" * 32, "zoe")
    assert call.name == "add" and result.form == Form((4,), 16, 16.0)
    assert result.owners == ("alice", "bob") and result.readers == ("bob", "eve")
    assert result.history == f"add(alice:{one.id}, bob:{other.id})"
    with pytest.raises(OverflowPreflightError):
        wide = kept(shelf, 3, form=Form((4,), 16, 2.0**40))
        shelf.planned("multiply", {}, [wide.id, one.id], "b" * 32, "alice")


def test_long_histories_become_a_digest():
    shelf = Shelf()
    stored = kept(shelf, 1)
    long = dataclasses.replace(stored, id="c" * 32, history="x" * 5000)
    shelf.keep(long, (np.zeros(4), np.zeros(4)), "connection")
    history = shelf.planned("add", {}, [long.id, long.id], "d" * 32, "alice")[1].history
    assert len(history) < 150 and "sha256" in history


def test_only_readers_open():
    shelf = Shelf()
    stored = kept(shelf, 1, "alice", ("bob",))
    assert shelf.planned(OPEN, {}, [stored.id], "a" * 32, "bob")[0].name == OPEN
    for name in ("alice", "eve", ""):
        with pytest.raises(AccessError, match="What to do"):
            shelf.planned(OPEN, {}, [stored.id], "a" * 32, name)


def test_a_value_is_released_when_every_owner_has_consented():
    shelf = Shelf()
    one, other = kept(shelf, 1, "alice", ("alice",)), kept(shelf, 2, "bob", ("bob",))
    _, result = shelf.planned("less", {}, [one.id, other.id], "a" * 32, "alice")
    shelf.keep(result, (np.zeros(4), np.zeros(4)), "connection")
    assert shelf.release(result.id, "alice", ["alice", "eve"]).readers == ()
    assert shelf.release(result.id, "alice", ["alice"]).readers == ()
    assert shelf.release(result.id, "bob", ["alice", "bob"]).readers == ("alice",)
    assert shelf.release(result.id, "alice", ["bob"]).readers == ("alice", "bob")
    for value, name in ((result, "eve"), (one, "bob")):
        with pytest.raises(AccessError):
            shelf.release(value.id, name, [name])
    # What it was computed from is as it was, and so is what is computed from it and them.
    assert shelf.look(one.id).readers == ("alice",)
    assert shelf.planned("multiply", {}, [result.id, one.id], "b" * 32, "bob")[1].readers == ("alice",)
