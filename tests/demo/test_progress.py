"""Signs of life of the demo, its table, and which demo its arguments ask for."""

from __future__ import annotations

import os
import signal
import time

import pytest

from keras_private.demo import command, progress
from keras_private.demo.outcome import Outcome, table


def test_a_line_is_printed_when_nothing_was_heard(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SILENCE", 0.3)
    with progress.waiting("counting sheep") as wait:
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            wait.said()
            time.sleep(0.05)
        assert capsys.readouterr().out == ""
        time.sleep(1.5)
    told = capsys.readouterr().out
    assert "... counting sheep, " in told
    time.sleep(0.6)
    assert capsys.readouterr().out == "", "nobody waits any more"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_interrupt_counts_and_handlers_come_back(number, capsys):
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    cleaned = []
    with pytest.raises(KeyboardInterrupt), progress.interruptible():
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            cleaned.append(True)
    assert cleaned == [True]
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    assert "ending the processes" in capsys.readouterr().out


def test_the_table():
    found = table(
        [
            Outcome("plain Keras", 0.9, "no limit", 1.4),
            Outcome("on shares", 0.875, "nothing learnt", 12.0, sent=1_500_000, sent_by="between the parties"),
        ]
    )
    assert found.splitlines() == [
        "act          accuracy  epsilon         seconds  bytes",
        "-" * 74,
        "plain Keras     90.0%  no limit              1  -",
        "on shares       87.5%  nothing learnt       12  1.5 MB between the parties",
    ]


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        ([], ("story", "auto", False)),
        (["--data", "digits"], ("story", "digits", False)),
        (["--allow-open"], ("story", "auto", True)),
        (["--quick"], ("private fit", False, "auto")),
        (["--long", "--data", "digits"], ("private fit", True, "digits")),
    ],
)
def test_which_demo_is_asked_for(monkeypatch, tmp_path, arguments, asked):
    from keras_private.demo import private_fit, story

    calls = []

    def told(name):
        def run(*given):
            calls.append((name, *given))
            return 7

        return run

    monkeypatch.setattr(story, "run", told("story"))
    monkeypatch.setattr(private_fit, "run", told("private fit"))
    assert command.main([*arguments, "--output", str(tmp_path)]) == 7
    *given, last = asked
    expected = (*given, tmp_path, last) if asked[0] == "story" else (*asked, tmp_path)
    assert calls == [expected]


def test_unknown_data_and_two_demos_at_once_are_refused(capsys):
    for arguments in (["--data", "cats"], ["--quick", "--long"]):
        with pytest.raises(SystemExit):
            command.main(arguments)
    assert "invalid choice" in capsys.readouterr().err
