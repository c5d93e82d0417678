"""Two pad parties for all tests that ask them: their start takes seconds."""

from __future__ import annotations

import pytest

from keras_private.federated.pad_service.config import PARTIES
from tests.federated.pad_processes import Hosts


@pytest.fixture(scope="session")
def pad_hosts(tmp_path_factory):
    found = Hosts(tmp_path_factory.mktemp("pads"))
    try:
        yield found
    finally:
        found.close()


@pytest.fixture
def hosts(pad_hosts):
    """Both run, whatever the test before did to them."""
    pad_hosts.start(*(name for name in PARTIES if name not in pad_hosts.processes))
    return pad_hosts
