"""Pads, key files, and parties that answer once."""

from __future__ import annotations

import hashlib
import os
import pathlib
import signal
import struct
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
import tensorflow as tf
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from keras_private.errors import AggregationError, ConfigurationError, LedgerError
from keras_private.federated.aggregators.masking import keys, pads
from keras_private.federated.aggregators.masking.journal import Journal
from keras_private.federated.aggregators.masking.parties import PadParty, Request, simulated_parties
from keras_private.random import secure_source
from keras_private.random.portable import PortableSource

SESSION = bytes(range(16))


def of_openssl(key: bytes, session: bytes, number: int, nonce: bytes, words: int) -> np.ndarray:
    """The same pad by another implementation; its 16 bytes are counter and nonce, as in RFC 8439."""
    for each in (session, struct.pack("<q", number) + nonce[:4] + b"rnd\0"):
        key = Cipher(ChaCha20(key, each), None).encryptor().update(bytes(32))
    stream = Cipher(ChaCha20(key, bytes(4) + nonce[4:]), None).encryptor().update(bytes(8 * words))
    return np.frombuffer(stream, "<i8")


def tensor(value: bytes) -> tf.Tensor:
    return tf.constant(list(value), tf.uint8)


@pytest.mark.parametrize("source", ["stock", "best"])
@pytest.mark.parametrize("words", [1, 7, 8, 1000])
def test_pads_are_chacha20_as_openssl_has_it(source, words):
    found = PortableSource(stock_ops_only=True) if source == "stock" else secure_source()
    draw = np.random.default_rng(words)
    for _ in range(3):
        key, session, nonce = draw.bytes(32), draw.bytes(16), draw.bytes(16)
        number = int(draw.integers(0, 2**40))
        pad = pads.pad(found, tensor(key), tensor(session), number, tensor(nonce), words)
        np.testing.assert_array_equal(pad, of_openssl(key, session, number, nonce, words))


@pytest.mark.parametrize("words", [1, 9, 16384, 16385, 50000])
def test_what_a_client_adds_is_the_sum_of_its_pads_as_openssl_has_them(words):
    """More than one pass over the blocks included, and a graph whose inputs come when it runs."""
    draw = np.random.default_rng(words)

    @tf.function(autograph=False)
    def added(own, session, number, nonce):
        return pads.sum_of_pads(own, session, number, nonce, words)

    for _ in range(2):
        own, session, nonce = [draw.bytes(32) for _ in range(2)], draw.bytes(16), draw.bytes(16)
        number = int(draw.integers(0, 2**62))
        found = added(tf.stack([tensor(key) for key in own]), tensor(session), tf.constant(number, tf.int64),
                      tensor(nonce))  # fmt: skip
        with np.errstate(over="ignore"):
            expected = sum(of_openssl(key, session, number, nonce, words) for key in own)
        np.testing.assert_array_equal(found, expected)


def test_every_part_of_the_name_changes_the_pad():
    source = secure_source()
    base = (b"k" * 32, SESSION, 5, b"n" * 16)
    others = [
        (b"K" + b"k" * 31, *base[1:]),
        (base[0], b"x" + SESSION[1:], *base[2:]),
        (*base[:2], 6, base[3]),
        *((*base[:3], b"n" * at + b"N" + b"n" * (15 - at)) for at in range(16)),
    ]
    found = [
        pads.pad(source, tensor(k), tensor(s), n, tensor(o), 50).numpy().tobytes() for k, s, n, o in [base, *others]
    ]
    assert len(set(found)) == 20


def test_two_runs_of_one_graph_draw_two_nonces():
    drawn = tf.function(pads.fresh_nonce)
    found = {drawn().numpy().tobytes() for _ in range(50)}
    assert len(found) == 50


def test_hexadecimal_digits():
    text = os.urandom(16).hex()
    assert bytes(pads.bytes_of(tf.constant(text)).numpy()) == bytes.fromhex(text)
    # Nothing else names a session: two texts for one would be two names for one pad.
    for other in (text[:-1], text + "0", text[:-1] + "G", text[:-1] + "A", " " + text[1:], text[:-1] + "\0", ""):
        with pytest.raises(tf.errors.InvalidArgumentError, match="32 hexadecimal digits"):
            pads.bytes_of(tf.constant(other))


def test_other_text_names_no_session_where_assertions_were_stripped(monkeypatch):
    monkeypatch.setattr(tf.debugging, "Assert", lambda *_: None)
    text = os.urandom(16).hex()
    assert bytes(pads.bytes_of(tf.constant(text)).numpy()) == bytes.fromhex(text)
    with pytest.raises(tf.errors.InvalidArgumentError):
        pads.bytes_of(tf.constant(text[:-1] + "G"))


def test_key_files(tmp_path):
    masters = [b"0" * 32, b"1" * 32]
    keys.write_client_keys(tmp_path / "keys", ["anna", "bert"], masters)
    for name in ("anna", "bert"):
        for party in (0, 1):
            path = tmp_path / "keys" / f"{name}.party{party}.key"
            assert path.stat().st_mode & 0o777 == 0o600
            expected = hashlib.blake2b(
                name.encode(), digest_size=32, key=masters[party], person=f"pad party {party}".encode()
            ).digest()
            assert path.read_bytes() == expected
    assert len({path.read_bytes() for path in (tmp_path / "keys").iterdir()}) == 4
    for names in (["../x"], ["a/b"], [""], [".hidden"], ["x" * 200]):
        with pytest.raises(ConfigurationError, match="file's name"):
            keys.write_client_keys(tmp_path / "other", names, masters)
    assert not (tmp_path / "other").exists()
    with pytest.raises(ConfigurationError, match="two of 32 bytes"):
        keys.write_client_keys(tmp_path / "other", ["a"], [b"0" * 32])


def request(names="abc", number=1, words=9, session=SESSION, nonce=0, **changed) -> Request:
    clients = tuple((name, hashlib.md5(f"{name}{number}{nonce}".encode()).digest()) for name in names)
    return Request(**{"session": session.hex(), "number": number, "words": words, "clients": clients,
                      "answered": words, **changed})  # fmt: skip


def answered(both, asked, other=None):
    other = asked if other is None else other
    proofs = [both[0].propose(asked), both[1].propose(other)]
    return both[0].answer(asked, proofs[1]), both[1].answer(other, proofs[0])


def test_answers_are_the_negated_sums_of_pads():
    both, masters = simulated_parties(2)
    asked = request()
    for party, answer in enumerate(answered(both, asked)):
        with np.errstate(over="ignore"):
            expected = -sum(
                of_openssl(keys.client_key(masters[party], party, name), SESSION, 1, nonce, 9)
                for name, nonce in asked.clients
            )
        np.testing.assert_array_equal(answer, expected)


def test_parties_that_are_asked_different_things_answer_neither():
    for other in (request("ab"), request(nonce=1), request(words=8), request(noise=2.0**22), request(number=2)):
        both, _ = simulated_parties(2)
        with pytest.raises(AggregationError, match="not asked the same"):
            answered(both, request(), other)
        with pytest.raises(AggregationError, match="not asked the same"):
            both[1].answer(other, both[0].propose(request()))
    both, _ = simulated_parties(2)
    # A coordinator cannot make the proof itself, nor use a party's own.
    asked = request()
    proof = both[0].propose(asked)
    for forged in (proof, asked.digest(), bytes(32), b""):
        with pytest.raises(AggregationError, match="not asked the same"):
            both[0].answer(asked, forged)
    answered(both, asked)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (request("a"), "1 clients are fewer than 2"),
        (request("aab"), "named twice"),
        (request(words=5, answered=6), "malformed"),
        (request(answered=0), "malformed"),
        (request(session=b"short"), "malformed"),
        (request(clients=(("a", b"n"), ("b", b"m"))), "another length"),
        (request(clients=(("a", b"n" * 16), ("b", b"n" * 16))), "named twice"),
    ],
)
def test_requests_that_are_refused(asked, message):
    both, _ = simulated_parties(2)
    with pytest.raises(AggregationError, match=message):
        both[0].propose(asked)
    with pytest.raises(AggregationError, match=message):
        both[0].answer(asked, b"")


def test_a_party_is_bound_by_what_it_proposed():
    both, _ = simulated_parties(2)
    first, other = request("abc"), request("ab")
    proofs = [party.propose(first) for party in both]
    for party in both:
        with pytest.raises(AggregationError, match="asked with another list"):
            party.propose(other)
    with pytest.raises(AggregationError, match="asked with another list"):
        both[0].answer(other, proofs[1])
    both[0].answer(first, proofs[1])
    with pytest.raises(AggregationError, match="was answered"):
        both[0].answer(first, proofs[1])
    with pytest.raises(AggregationError, match="was not proposed"):
        both[1].answer(request(number=2), b"")


def test_a_party_has_a_minimum_of_noise():
    party = PadParty(0, b"m" * 32, b"b" * 32, journal=None, min_noise=2.0**22)
    for noise in (0.0, 2.0**21, float("nan")):
        with pytest.raises(AggregationError, match="noise of"):
            party.propose(request(noise=noise))
    party.propose(request(noise=2.0**22))


def test_many_threads_get_one_answer():
    for _ in range(3):
        both, _ = simulated_parties(2)
        asked = request(noise=2.0**22)
        proofs = [party.propose(asked) for party in both]
        found: list[object] = []

        def ask(found=found, party=both[0], proof=proofs[1], asked=asked):
            try:
                found.append(party.answer(asked, proof))
            except AggregationError as error:
                found.append(error)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(isinstance(each, np.ndarray) for each in found) == 1


def test_a_list_and_then_the_list_without_one_is_refused_across_restarts(tmp_path):
    master, between = b"m" * 32, b"b" * 32

    def party(index):
        return PadParty(index, master, between, journal=tmp_path / f"party{index}")

    both = party(0), party(1)
    answered(both, request("abc"))
    for each in both:
        each.close()
    again = party(0), party(1)
    for asked in (request("ab"), request("abc"), request("abc", nonce=7)):
        with pytest.raises(AggregationError, match="was answered"):
            again[0].propose(asked)
    replayed = request("abc", number=2, clients=request("ab").clients)
    with pytest.raises(AggregationError, match="a nonce was used"):
        again[1].propose(replayed)
    answered(again, request("ab", number=2))
    with pytest.raises(LedgerError, match="is in use"):
        party(0)


def test_a_journal_that_cannot_be_written_answers_nothing(tmp_path, monkeypatch):
    party, other = (PadParty(index, b"m" * 32, b"b" * 32, journal=tmp_path / str(index)) for index in (0, 1))
    asked = request()
    proof = other.propose(asked)
    party.propose(asked)
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        party.answer(asked, proof)
    monkeypatch.undo()
    with pytest.raises(OSError, match="start the party again"):
        party.answer(asked, proof)


def test_a_party_that_was_closed_answers_nothing(tmp_path):
    party, other = (PadParty(index, b"m" * 32, b"b" * 32, journal=tmp_path / str(index)) for index in (0, 1))
    asked = request()
    party.propose(asked)
    proof = other.propose(asked)
    party.close()
    with pytest.raises(OSError, match="closed"):
        party.answer(asked, proof)
    assert (tmp_path / "0").read_bytes() == b""


def test_a_party_knows_what_it_was_asked():
    both, _ = simulated_parties(2)
    asked = request()
    where = (asked.session, asked.number)
    assert not both[0].agrees(*where, asked.digest())
    proofs = [party.propose(asked) for party in both]
    assert both[0].agrees(*where, asked.digest()) and not both[0].agrees(*where, request("ab").digest())
    assert not both[0].agrees(asked.session, 2, asked.digest())
    both[0].answer(asked, proofs[1])
    assert both[0].agrees(*where, asked.digest())


@pytest.mark.parametrize("damage", ["flip", "swap", "drop first", "not text"])
def test_an_altered_journal_is_refused(tmp_path, damage):
    path = tmp_path / "journal"
    journal = Journal(path)
    for number in range(3):
        journal.record(SESSION.hex(), number, [bytes([number]) * 16])
    journal.close()
    lines = path.read_bytes().splitlines(keepends=True)
    if damage == "flip":
        lines[1] = lines[1].replace(b"01", b"02", 1)
    elif damage == "swap":
        lines[0], lines[1] = lines[1], lines[0]
    elif damage == "drop first":
        lines = lines[1:]
    else:
        lines[0] = b"\xff\xfe\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(LedgerError, match="was altered"):
        Journal(path)


def written(path, rounds=3, head=None):
    journal = Journal(path, head)
    for number in range(rounds):
        journal.record(SESSION.hex(), number, [bytes([number]) * 16])
    journal.close()
    return path.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("left", [0, 1, 2, None])
def test_a_journal_from_which_whole_lines_were_cut_is_refused(tmp_path, left, elsewhere):
    path, head = tmp_path / "journal", None
    if elsewhere:
        (tmp_path / "disk").mkdir()
        head = tmp_path / "disk" / "head"
    lines = written(path, head=head)
    assert (head or tmp_path / "journal.head").stat().st_mode & 0o777 == 0o600
    if left is None:
        path.unlink()
    else:
        path.write_bytes(b"".join(lines[:left]))
    with pytest.raises(LedgerError, match=r"was altered: .*head knows of 3 answers"):
        Journal(path, head)
    path.write_bytes(b"".join(lines))
    Journal(path, head).close()


@pytest.mark.parametrize(("content", "message"), [(None, "is missing"), ("3", "damaged"), ("3 abc", "knows of 3")])
def test_a_journal_whose_head_is_gone_or_another_is_refused(tmp_path, content, message):
    path = tmp_path / "journal"
    written(path)
    head = tmp_path / "journal.head"
    head.unlink() if content is None else head.write_text(content)
    with pytest.raises(LedgerError, match=message):
        Journal(path)


@pytest.mark.parametrize("rounds", [0, 2])
def test_a_kill_between_a_line_and_the_head_keeps_the_line(tmp_path, monkeypatch, rounds):
    path = tmp_path / "journal"
    written(path, rounds)
    journal = Journal(path)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "_write_head", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(OSError, match="full"):
            journal.record(SESSION.hex(), 7, [b"n" * 16])
    with pytest.raises(OSError, match="start the party again"):
        journal.record(SESSION.hex(), 8, [b"m" * 16])
    journal.close()
    again = Journal(path)
    assert again.has_round(SESSION.hex(), 7) and again.has_nonce(b"n" * 16) and not again.has_round(SESSION.hex(), 8)
    again.record(SESSION.hex(), 8, [b"m" * 16])
    again.close()
    Journal(path).close()


def test_an_unfinished_line_is_dropped(tmp_path):
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.record(SESSION.hex(), 1, [b"n" * 16])
    journal.close()
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:30])
    journal = Journal(path)
    assert path.read_bytes() == whole
    assert journal.has_round(SESSION.hex(), 1)
    assert journal.has_nonce(b"n" * 16)
    journal.record(SESSION.hex(), 2, [b"m" * 16])
    journal.close()
    Journal(path).close()


def test_an_answer_that_was_seen_is_remembered_after_a_kill(tmp_path):
    code = textwrap.dedent("""
        import sys, time
        from tests.federated.test_masking import PadParty, request
        both = [PadParty(i, b"m" * 32, b"b" * 32, journal=f"{sys.argv[1]}/{i}") for i in (0, 1)]
        asked = request()
        both[0].propose(asked)
        both[0].answer(asked, both[1].propose(asked))
        print("answered", flush=True)
        time.sleep(60)
    """)
    root = pathlib.Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=root
    )
    assert process.stdout.readline() == "answered\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait(30)
    process.stdout.close()
    party = PadParty(0, b"m" * 32, b"b" * 32, journal=tmp_path / "0")
    with pytest.raises(AggregationError, match="was answered"):
        party.propose(request("ab"))


def test_parties_that_cannot_be():
    for arguments in (
        (2, b"m" * 32, b"b" * 32),
        (0, b"m", b"b" * 32),
        (0, b"m" * 32, b"b"),
        (0, b"m" * 32, b"b" * 32, 1),
    ):
        with pytest.raises(ConfigurationError, match="Party"):
            PadParty(*arguments, journal=None)
