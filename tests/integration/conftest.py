"""The command `ssl-transfer` for tests of pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.commands import install_wheel


@pytest.fixture(scope="session")
def wheel_bin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin/ folder of an environment that holds a wheel of this checkout."""
    return install_wheel(tmp_path_factory.mktemp("wheel"))
