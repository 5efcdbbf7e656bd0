"""Install Detectron2, which is not on PyPI under its own name.

`--source wheel` (default) takes the pinned PyPI wheel sal-detectron2 0.7.2, whose Python files are Detectron2's own as
of commit a59f0563, checks its SHA-256, re-packs the package without its compiled extension (nothing in Faster or Mask
R-CNN C4 needs it) and without its stray top-level `tools`, writes correct metadata, and installs the result with pip.
`--source git` builds the official repository at a pinned commit, where GitHub can be reached.

This file needs only the standard library: it runs before anything else is installed.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

WHEEL = "sal-detectron2==0.7.2"
WHEEL_SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
WHEEL_PLATFORM = ["--python-version", "3.10", "--implementation", "cp", "--platform", "linux_x86_64"]
GIT_COMMIT = "02b5c4e295e990042a714712c21dc79b731e8833"
GIT_URL = "git+https://github.com/facebookresearch/detectron2.git"
VERSION = "0.6+a59f0563"
WHEEL_FILE = b"Wheel-Version: 1.0\nGenerator: install_detectron2\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
REQUIRES = [
    "Pillow>=7.1",
    "matplotlib",
    "pycocotools>=2.0.2",
    "termcolor>=1.1",
    "yacs>=0.1.8",
    "tabulate",
    "cloudpickle",
    "tqdm>4.29.0",
    "tensorboard",
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.9",
    "omegaconf>=2.1,<2.4",
    "hydra-core>=1.1",
    "packaging",
]


class InstallError(Exception):
    """The given or downloaded wheel is not the pinned one."""


class PipError(Exception):
    """pip failed; its message was printed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Install unless the requested build is installed already; report in one line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  python tools/install_detectron2.py\n  python tools/install_detectron2.py --source git\n"
        "  python tools/install_detectron2.py --wheel ./sal_detectron2-0.7.2-cp310-none-any.whl",
    )
    parser.add_argument("--source", choices=["wheel", "git"], default="wheel", help="where Detectron2 comes from")
    parser.add_argument("--wheel", type=Path, help="a copy of the pinned wheel on disk, instead of a download")
    parser.add_argument("--force", action="store_true", help="install even if the same build is already installed")
    args = parser.parse_args(argv)
    try:
        print(install(args.source, args.wheel, args.force))
    except InstallError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except PipError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def install(source: str, wheel: Path | None = None, force: bool = False) -> str:
    """Install Detectron2 from `source` (`wheel` or `git`); returns the line to print.

    Raises:
        InstallError: wrong hash or missing file; nothing was installed.
        PipError: pip failed; Detectron2 itself, the last step, was not installed.
    """
    wanted = VERSION if source == "wheel" else GIT_COMMIT
    if not force and installed_build() == wanted:
        return f"detectron2 {wanted} is installed already"
    if source == "git":
        _pip("install", "--no-build-isolation", f"{GIT_URL}@{GIT_COMMIT}")
        return f"installed detectron2 from the official repository at {GIT_COMMIT[:8]}"
    with tempfile.TemporaryDirectory() as folder:
        original = wheel or download(Path(folder))
        check_sha256(original)
        # Dependencies first: if they fail, the next call does not find Detectron2 installed.
        _pip("install", *REQUIRES)
        _pip("install", "--force-reinstall", "--no-deps", str(repack(original, Path(folder))))
    return f"installed detectron2 {VERSION} (re-packed {WHEEL}, without its compiled extension)"


def installed_build() -> str | None:
    """The installed version; the commit where it was built from git; None when Detectron2 is not installed."""
    try:
        found = importlib.metadata.distribution("detectron2")
    except importlib.metadata.PackageNotFoundError:
        return None
    origin = json.loads(found.read_text("direct_url.json") or "{}")
    return origin.get("vcs_info", {}).get("commit_id") or found.version


def download(folder: Path) -> Path:
    """Download the pinned wheel with pip into `folder`. Its tag is CPython 3.10; only Python files are used."""
    _pip("download", "--no-deps", "--only-binary=:all:", *WHEEL_PLATFORM, "--dest", str(folder), WHEEL)
    found = sorted(folder.glob("sal_detectron2-*.whl"))
    if not found:
        raise InstallError(f"pip downloaded no wheel of {WHEEL}")
    return found[0]


def check_sha256(wheel: Path) -> None:
    """Raise InstallError unless the file's SHA-256 is the pinned one."""
    if not wheel.is_file():
        raise InstallError(f"{wheel} does not exist; give the path of the {WHEEL} wheel")
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != WHEEL_SHA256:
        raise InstallError(f"{wheel.name}: sha256 is {found}, pinned is {WHEEL_SHA256}; nothing was installed")


def repack(original: Path, folder: Path) -> Path:
    """Write a pure-Python wheel with the original's package `detectron2` into `folder`; returns its path."""
    distribution = f"detectron2-{VERSION}"
    target = folder / f"{distribution}-py3-none-any.whl"
    with zipfile.ZipFile(original) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as out:
        names = [n for n in source.namelist() if n.startswith("detectron2/") and not n.endswith((".so", "/"))]
        files = {name: source.read(name) for name in names}
        licence = next(source.read(n) for n in source.namelist() if n.endswith(".dist-info/LICENSE"))
        info = f"{distribution}.dist-info"
        files[f"{info}/licenses/LICENSE"] = licence
        files[f"{info}/METADATA"] = metadata().encode()
        files[f"{info}/WHEEL"] = WHEEL_FILE
        files[f"{info}/top_level.txt"] = b"detectron2\n"
        record = "".join(f"{n},sha256={_record_hash(data)},{len(data)}\n" for n, data in files.items())
        files[f"{info}/RECORD"] = (record + f"{info}/RECORD,,\n").encode()
        for member, data in files.items():
            out.writestr(zipfile.ZipInfo(member, (2024, 4, 17, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
    return target


def metadata() -> str:
    """METADATA of the re-packed wheel: Detectron2's own fields and dependencies that work with numpy 2."""
    lines = [
        "Metadata-Version: 2.1",
        "Name: detectron2",
        f"Version: {VERSION}",
        f"Summary: Detectron2's Python files as of its commit a59f0563 (2024-04-17), re-packed from the wheel {WHEEL}",
        "Home-page: https://github.com/facebookresearch/detectron2",
        "Author: FAIR",
        "License: Apache-2.0",
        "License-File: LICENSE",
        "Requires-Python: >=3.8",
        *(f"Requires-Dist: {need}" for need in REQUIRES),
    ]
    return "\n".join(lines) + "\n"


def _record_hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def _pip(*words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", *words, "-q"],
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        check=False,
    )
    if done.returncode:
        raise PipError(f"pip {words[0]} failed (exit {done.returncode}); see its message above")


if __name__ == "__main__":
    sys.exit(main())
