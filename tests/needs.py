"""What some tests need: they skip and say how to get it, or fail where REQUIRE_ALL=1 asks for all."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def missing(sentence: str) -> NoReturn:
    """Skip with this sentence; with REQUIRE_ALL=1, fail with it."""
    if os.environ.get("REQUIRE_ALL") == "1":
        pytest.fail(sentence)
    pytest.skip(sentence)
