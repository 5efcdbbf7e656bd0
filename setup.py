"""What pyproject.toml cannot say: where the wheel's packages come from, and the commit that it is built from."""

import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from ssl_transfer.environment import COMMIT_FILE, commit  # noqa: E402

# `tools` and `configs` would be generic top-level names in the site-packages of everybody who installs this.
INSIDE = {"ssl_transfer.tools": "tools", "ssl_transfer.configs": "configs"}


class BuildWithCommit(build_py):
    """Record the commit in the wheel, because every result names the code that computed it."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            Path(self.build_lib, "ssl_transfer", COMMIT_FILE).write_text(f"{commit()}\n", encoding="utf-8")


setup(
    packages=[*find_packages(str(HERE), include=["ssl_transfer*", "pretrain*", "transfer*"]), *INSIDE],
    package_dir=INSIDE,
    cmdclass={"build_py": BuildWithCommit},
)
