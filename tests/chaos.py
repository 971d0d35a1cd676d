"""Marks long fault runs, which only `make chaos` runs; `make test` has a short form of each."""

import os

import pytest

ROUNDS = int(os.environ.get("KOSMOSG_CHAOS_ROUNDS", "1"))
chaos = pytest.mark.skipif("KOSMOSG_CHAOS_ROUNDS" not in os.environ, reason="part of `make chaos`")
