"""Settings of every test: a quiet TensorFlow, and long tests only on demand."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import hypothesis
import pytest

# The first example of a test traces a graph, so deadlines say nothing; `make test` finds the same on every machine.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.register_profile("explore", deadline=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


MARKS = {
    "long": "takes a quarter of a minute or more; runs with --long or -m long",
    "slow": "takes longer than a minute; runs with --slow or -m slow",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    for mark in MARKS:
        parser.addoption(f"--{mark}", action="store_true", help=f"run the tests marked {mark} too")


def pytest_configure(config: pytest.Config) -> None:
    for mark, meaning in MARKS.items():
        config.addinivalue_line("markers", f"{mark}: {meaning}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for mark in MARKS:
        if config.getoption(f"--{mark}") or mark in config.getoption("markexpr"):
            continue
        left_out = [item for item in items if item.get_closest_marker(mark)]
        if left_out:
            config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if item not in left_out]
