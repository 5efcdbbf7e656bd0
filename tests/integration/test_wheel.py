"""The wheel works outside the checkout: what it holds, and what its command does in a folder of the user's."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.commands import build_wheel

Run = Callable[..., "subprocess.CompletedProcess[str]"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of site-packages: the unpacked wheel, beside packages that are called `common` and `tools`."""
    base = tmp_path_factory.mktemp("wheel")
    zipfile.ZipFile(build_wheel(base)).extractall(base / "site")
    for name in ("common", "tools"):
        (base / "site" / name).mkdir()
        (base / "site" / name / "__init__.py").write_text("raise ImportError('another project')")
    return base / "site"


@pytest.fixture
def run(site: Path, tmp_path: Path) -> Run:
    """Run Python in the user's folder, with the wheel and this environment's packages, without the checkout."""
    for name in ("common", "tools", "transfer"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a file of the user')")
    packages = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]

    def run_python(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *packages]), "OMP_NUM_THREADS": "1"}
        # -S: the environment's .pth files lead to the checkout.
        command = [sys.executable, "-S", "-m", "ssl_transfer", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr and str(Path(__file__).parents[2]) not in done.stdout
        return done

    return run_python


def test_what_it_holds(site: Path, root: Path) -> None:
    (info,) = site.glob("*.dist-info")
    names = {path.name for path in site.iterdir()} - {info.name, "common", "tools"}
    assert names == {"ssl_transfer", "pretrain", "transfer"}
    assert "ssl-transfer = ssl_transfer.__main__:main" in (info / "entry_points.txt").read_text()
    for ours, there in (("tools", "ssl_transfer/tools"), ("configs", "ssl_transfer/configs"), ("transfer", "transfer")):
        files = {path.relative_to(root / ours) for path in (root / ours).rglob("*") if path.is_file()}
        missing = {file for file in files if "__pycache__" not in file.parts and not (site / there / file).is_file()}
        assert not missing
    assert all((site / name / "py.typed").is_file() for name in names)


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["convert", "--help"], "ssl_transfer convert checkpoint"),
        (["data", "check", "--list-configs"], "  voc07 "),
        (["launch", "plan", "--list-configs"], "  one_checkpoint "),
        (["table", "--published", "rows"], "SimSiam, base"),
        (
            ["launch", "plan", "demo", "--set", "data.images=x", "--set", "data.detection=x"],
            "finetune.scratch.voc07_fpn.s1",
        ),
        (["data", "toy", "toy", "--photos", "8"], "drew the toy sets"),
    ],
)
def test_a_verb_in_the_users_folder(run: Run, words: list[str], shown: str) -> None:
    assert shown in run(*words).stdout


def test_a_wrong_name_is_one_line(run: Run) -> None:
    error = run("launch", "plan", "demoo", code=2).stderr
    assert error.count("\n") == 1 and "did you mean demo" in error


def test_a_checkpoint_is_converted(run: Run, tmp_path: Path) -> None:
    import torch
    import torchvision

    torch.save(torchvision.models.resnet50().state_dict(), tmp_path / "resnet50.pth")
    assert "265/265" in run("convert", "resnet50.pth", "resnet50.pkl").stdout
    assert (tmp_path / "resnet50.pkl").is_file()
