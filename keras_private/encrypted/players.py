"""The names of the three parties, and of those who are no party. Imports nothing, so that commands start at once."""

from __future__ import annotations

SERVERS = ("server0", "server1", "server2")
