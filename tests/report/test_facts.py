"""Facts of every report: where figures belong, and which hosts are this machine."""

from __future__ import annotations

import datetime
import socket
import types

import pytest

import keras_private
from keras_private.report import facts


def history(epochs, **figures):
    return types.SimpleNamespace(epoch=list(epochs), history=figures)


def series(*histories, **options):
    return {each.name: dict(zip(each.x, each.y)) for each in facts.series_of(histories, **options)}


def test_figures_stand_at_their_epochs_counted_from_one():
    assert series(history([0, 1, 2], loss=[3, 2, 1])) == {"loss": {1.0: 3.0, 2.0: 2.0, 3.0: 1.0}}
    assert series(None, history([], loss=[3, 2])) == {"loss": {1.0: 3.0, 2.0: 2.0}}


@pytest.mark.parametrize(
    "epochs, frequency", [(range(10), 3), (range(9), 2), (range(5, 12), 2), (range(4, 40), 7), (range(3), 1)]
)
def test_validation_stands_at_the_epochs_that_its_frequency_divides(epochs, frequency):
    asked = [epoch + 1 for epoch in epochs if (epoch + 1) % frequency == 0]
    assert series(history(epochs, val_loss=asked))["val_loss"] == {float(n): float(n) for n in asked}


def test_figures_of_unknown_epochs_are_left_out():
    assert "lr" not in series(history(range(10), loss=[1.0] * 10, lr=[0.1] * 7))
    assert "lr" not in series(history(range(3), lr=[0.1] * 4))


def test_a_later_fit_goes_on_and_replaces_what_it_did_again():
    found = series(history([0, 1], loss=[4, 3]), history([1, 2], loss=[2, 1]), x_is="round")
    assert found == {"loss": {1.0: 4.0, 2.0: 2.0, 3.0: 1.0}}


def test_versions_name_this_package_the_interpreter_and_what_is_underneath():
    found = facts.versions()
    assert found["keras_private"] == keras_private.__version__ and {"python", "tensorflow", "numpy"} <= set(found)


def test_now_is_utc_to_the_second():
    moment = datetime.datetime.fromisoformat(facts.now())
    assert moment.utcoffset() == datetime.timedelta(0) and moment.microsecond == 0


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost", "LOCALHOST.", "localhost.localdomain", "0.0.0.0",
             "::", "::ffff:127.0.0.1", "a.localhost", ""]
)  # fmt: skip
def test_loopback_is_this_machine_wherever_one_is(host):
    assert facts.loopback(host) and facts.this_machine(host)


def test_own_name_and_addresses_are_this_machine_and_no_loopback():
    own = [socket.gethostname()] if "localhost" not in socket.gethostname() else []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as routed:
        try:
            routed.connect(("192.0.2.1", 9))  # Chooses the address that packets would leave by; sends none.
            own.append(routed.getsockname()[0])
        except OSError:
            pass
    for host in own:
        assert facts.this_machine(host) and not facts.loopback(host)


@pytest.mark.parametrize("host", ["192.0.2.7", "2001:db8::7", "::ffff:192.0.2.7", "worker.example", "localhosts.org"])
def test_other_hosts_are_others(host):
    assert not facts.loopback(host) and not facts.this_machine(host)
