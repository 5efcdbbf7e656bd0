"""`ssl-transfer` for pages that are run as they stand: of a wheel that cannot see the checkout, or of the checkout."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
PROGRAM = "#!{python}\nimport sys\nsys.path[:0] = {paths!r}\nfrom ssl_transfer.__main__ import main\nmain()\n"


def write_program(folder: Path, python: str | Path, paths: tuple[str, ...] = ()) -> Path:
    """Write `ssl-transfer` into a folder, as pip writes it; `paths` come first in `sys.path`."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "ssl-transfer"
    program.write_text(PROGRAM.format(python=python, paths=list(paths)))
    program.chmod(0o755)
    return folder


def build_wheel(place: Path) -> Path:
    """Build a wheel of this checkout in a folder; returns it."""
    ignored = shutil.ignore_patterns(".*", "build", "*.egg-info", "tests", "runs", "datasets", "__pycache__")
    shutil.copytree(ROOT, place / "source", ignore=ignored)
    subprocess.run([sys.executable, "-c", BUILD, str(place)], cwd=place / "source", check=True, capture_output=True)
    shutil.rmtree(place / "source")
    (wheel,) = place.glob("*.whl")
    return wheel


def install_wheel(place: Path) -> Path:
    """Put a wheel of this checkout into a new virtual environment; returns the environment's bin/.

    What the wheel requires is found where it is installed; nothing is downloaded.
    """
    wheel = build_wheel(place)
    venv.create(place / "env", with_pip=False)
    (site,) = place.glob("env/lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    torch = importlib.util.find_spec("torch")
    assert torch is not None and torch.origin is not None
    # An editable install of this checkout is not seen: .pth files of a folder that a .pth file names are not read.
    (site / "others.pth").write_text(f"{Path(torch.origin).parents[1]}\n")
    return write_program(place / "env/bin", place / "env/bin/python")


def run_script(script: str, folder: Path, bin_folder: Path) -> str:
    """Run a page's shell lines with a `bin/` first in PATH; returns what they print."""
    variables = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    variables["PATH"] = f"{bin_folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr
