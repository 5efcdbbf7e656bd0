"""Re-packing and installing Detectron2: nothing but the pinned bytes is installed, and what is, is a proper wheel."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import subprocess
import sys
import zipfile
from email.parser import Parser as MessageParser
from pathlib import Path
from types import SimpleNamespace

import pytest

from ssl_transfer.console import call_main
from tools import install_detectron2 as tool

INFO = f"detectron2-{tool.VERSION}.dist-info"
OLD_INFO = "sal_detectron2-0.7.2.dist-info"


def make_wheel(folder: Path) -> Path:
    """A small wheel of the original's shape: a package, a compiled extension, a stray package, wrong metadata."""
    path = folder / "sal_detectron2-0.7.2-cp310-none-any.whl"
    files = {
        "detectron2/__init__.py": b'__version__ = "0.6"\n',
        "detectron2/model_zoo/configs/a.yaml": b"A: 1\n",
        "detectron2/_C.cpython-310-x86_64-linux-gnu.so": b"\x7fELF",
        "detectron2/projects/": b"",
        "tools/__init__.py": b"",
        "tools/train_net.py": b"",
        f"{OLD_INFO}/LICENSE": b"Apache License",
        f"{OLD_INFO}/METADATA": b"Metadata-Version: 2.1\nName: sal-detectron2\nVersion: 0.7.2\nRequires-Dist: black\n",
        f"{OLD_INFO}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: cp310-none-any\n",
        f"{OLD_INFO}/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w") as out:
        for name, data in files.items():
            out.writestr(name, data)
    return path


@pytest.fixture
def original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A synthetic wheel whose hash is the pinned one."""
    path = make_wheel(tmp_path)
    monkeypatch.setattr(tool, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Records what pip would have been asked."""
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(tool, "_pip", lambda *words: asked.append(words))
    return asked


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "installed_build", lambda: None)


@pytest.mark.usefixtures("absent")
def test_a_wrong_hash_installs_nothing(
    tmp_path: Path, pip: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    wheel = make_wheel(tmp_path)  # not the pinned bytes
    assert call_main(tool.main, ["--wheel", str(wheel)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "nothing was installed" in error and tool.WHEEL_SHA256 in error
    assert pip == []


@pytest.mark.usefixtures("absent")
def test_one_changed_byte_is_a_wrong_hash(original: Path, pip: list[tuple[str, ...]]) -> None:
    data = bytearray(original.read_bytes())
    data[len(data) // 2] ^= 1
    original.write_bytes(data)
    assert call_main(tool.main, ["--wheel", str(original)]) == 2
    assert pip == []


@pytest.mark.usefixtures("absent")
def test_a_missing_wheel_is_one_line(pip: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str]) -> None:
    assert call_main(tool.main, ["--wheel", "no.whl"]) == 2
    assert "no.whl does not exist" in capsys.readouterr().err
    assert pip == []


@pytest.mark.usefixtures("absent")
def test_a_download_of_other_bytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def pip(*words: str) -> None:
        asked.append(words)
        make_wheel(Path(words[words.index("--dest") + 1]))

    monkeypatch.setattr(tool, "_pip", pip)
    assert call_main(tool.main, []) == 2
    assert [words[0] for words in asked] == ["download"]


@pytest.mark.usefixtures("absent")
def test_dependencies_come_before_detectron2(
    original: Path, pip: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Were it the other way round, a failure between the two would pass for a finished installation."""
    assert call_main(tool.main, ["--wheel", str(original)]) == 0
    first, second = pip
    assert first == ("install", *tool.REQUIRES)
    assert "--no-deps" in second and second[-1].endswith(f"detectron2-{tool.VERSION}-py3-none-any.whl")
    assert "installed detectron2" in capsys.readouterr().out


@pytest.mark.usefixtures("absent")
def test_a_failing_pip_is_exit_1(
    original: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tool.sys, "executable", "/bin/false")
    assert call_main(tool.main, ["--wheel", str(original)]) == 1
    assert "pip install failed (exit 1)" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("argv", "installed"),
    [([], tool.VERSION), (["--source", "wheel"], tool.VERSION), (["--source", "git"], tool.GIT_COMMIT)],
)
def test_a_second_run_installs_nothing(
    argv: list[str],
    installed: str,
    pip: list[tuple[str, ...]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tool, "installed_build", lambda: installed)
    assert call_main(tool.main, argv) == 0
    assert capsys.readouterr().out == f"detectron2 {installed} is installed already\n"
    assert pip == []


def test_force_or_another_build_reinstalls(
    original: Path, pip: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "installed_build", lambda: tool.VERSION)
    assert call_main(tool.main, ["--wheel", str(original), "--force"]) == 0
    monkeypatch.setattr(tool, "installed_build", lambda: "0.6")
    assert call_main(tool.main, ["--wheel", str(original)]) == 0
    assert len(pip) == 4


@pytest.mark.usefixtures("absent")
def test_git_builds_the_pinned_commit(pip: list[tuple[str, ...]]) -> None:
    assert call_main(tool.main, ["--source", "git"]) == 0
    assert len(pip) == 1 and pip[0][-1].endswith(f"detectron2.git@{tool.GIT_COMMIT}")
    assert len(tool.GIT_COMMIT) == 40


@pytest.mark.parametrize(
    ("origin", "build"),
    [
        (None, "0.6"),
        ('{"url": "x", "archive_info": {}}', "0.6"),
        ('{"url": "x", "vcs_info": {"vcs": "git", "commit_id": "abc"}}', "abc"),
    ],
)
def test_the_installed_build(origin: str | None, build: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(version="0.6", read_text=lambda _: origin)
    monkeypatch.setattr(tool.importlib.metadata, "distribution", lambda _: found)
    assert tool.installed_build() == build


def test_the_repacked_wheel_holds_the_package_and_nothing_else(original: Path, tmp_path: Path) -> None:
    wheel = tool.repack(original, tmp_path)
    assert wheel.name == f"detectron2-{tool.VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as content:
        names = content.namelist()
        assert content.read("detectron2/__init__.py") == b'__version__ = "0.6"\n'
        assert content.read(f"{INFO}/licenses/LICENSE") == b"Apache License"
    assert {name.split("/")[0] for name in names} == {"detectron2", INFO}
    assert "detectron2/model_zoo/configs/a.yaml" in names
    assert not [name for name in names if name.endswith((".so", "/"))]
    assert len(names) == len(set(names))


def test_its_record_lists_every_file_with_its_hash(original: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tool.repack(original, tmp_path)) as content:
        rows = list(csv.reader(io.StringIO(content.read(f"{INFO}/RECORD").decode())))
        assert sorted(row[0] for row in rows) == sorted(content.namelist())
        for name, digest, size in rows:
            if name == f"{INFO}/RECORD":
                assert (digest, size) == ("", "")
                continue
            data = content.read(name)
            value = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            assert (digest, int(size)) == (f"sha256={value}", len(data))


def test_its_metadata_has_a_dependency_list_of_its_own(original: Path, tmp_path: Path) -> None:
    from packaging.requirements import Requirement
    from packaging.version import Version

    with zipfile.ZipFile(tool.repack(original, tmp_path)) as content:
        metadata = MessageParser().parsestr(content.read(f"{INFO}/METADATA").decode())
        wheel = MessageParser().parsestr(content.read(f"{INFO}/WHEEL").decode())
    assert (metadata["Name"], metadata["Version"]) == ("detectron2", tool.VERSION)
    assert str(Version(metadata["Version"])) == tool.VERSION
    needs = {Requirement(line).name: Requirement(line) for line in metadata.get_all("Requires-Dist", [])}
    assert "black" not in needs and "numpy" not in needs and "future" not in needs
    assert {"fvcore", "iopath", "pycocotools", "omegaconf", "hydra-core"} <= set(needs)
    assert (wheel["Tag"], wheel["Root-Is-Purelib"]) == ("py3-none-any", "true")


def test_repacking_twice_gives_the_same_bytes(original: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = (tool.repack(original, tmp_path / name).read_bytes() for name in "ab")
    assert first == second


def test_it_needs_only_the_standard_library(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(root / "tools" / "install_detectron2.py"), "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--source" in done.stdout and "examples:" in done.stdout


def test_the_installed_detectron2_is_the_repacked_one_or_built_from_git() -> None:
    assert tool.installed_build() in (tool.VERSION, tool.GIT_COMMIT)


@pytest.mark.slow
def test_pip_installs_the_repacked_wheel_and_it_imports(tmp_path: Path) -> None:
    """The real wheel, fetched, checked, re-packed, installed beside the others and imported from there."""
    try:
        wheel = tool.download(tmp_path)
    except tool.PipError:
        pytest.skip("the package index cannot be reached")
    tool.check_sha256(wheel)
    repacked = tool.repack(wheel, tmp_path)
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), str(repacked)]
    subprocess.run(pip, check=True)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import detectron2, importlib.metadata as m\n"
        "from detectron2.config import get_cfg\n"
        "from detectron2.modeling import build_model\n"
        "assert detectron2.__file__.startswith(sys.argv[1]), detectron2.__file__\n"
        "cfg = get_cfg(); cfg.MODEL.DEVICE = 'cpu'; cfg.MODEL.WEIGHTS = ''; build_model(cfg)\n"
        "print(m.distribution('detectron2').version)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == tool.VERSION
    assert not (target / "tools").exists()
