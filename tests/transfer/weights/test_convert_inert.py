"""Pickles are read without running or importing anything: leftovers of trainers, and hostile files."""

from __future__ import annotations

import argparse
import collections
import datetime
import io
import pathlib
import pickle
import random
import struct
import subprocess
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_transfer.console import call_main
from ssl_transfer.errors import EXIT_OK, EXIT_USAGE, UserError
from tests.transfer.weights import hostile_files
from tests.transfer.weights.made_checkpoints import bare, same, save, simsiam
from tools.convert import main
from transfer.weights.containers import read_checkpoint
from transfer.weights.normalize import read_backbone

Tensors = dict[str, torch.Tensor]


class Settings:
    """A class of a trainer that the converter does not know."""

    def __init__(self, value: Any) -> None:
        self.value = value


class ConfigDict(dict):  # type: ignore[type-arg]
    """A dict with attributes, as configuration libraries have."""


class Config:
    """mmengine's and omegaconf's way: the content is an attribute, and the object holds itself."""

    def __init__(self, content: Any) -> None:
        self.__dict__["_content"] = content
        self.__dict__["_parent"] = self


class Level(int):
    """A subclass of a number."""


FOREIGN = "foreign_trainer"


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """A module that is there when a file is written, and gone when it is read."""
    module = types.ModuleType(FOREIGN)
    for one in (Settings, ConfigDict, Config, Level):
        content = {k: v for k, v in one.__dict__.items() if k not in ("__dict__", "__weakref__")}
        made = type(one.__name__, one.__mro__[1:2], {**content, "__module__": FOREIGN})
        setattr(module, one.__name__, made)
    monkeypatch.setitem(sys.modules, FOREIGN, module)
    return module


def leftovers(foreign: Any) -> dict[str, Any]:
    """What loggers, schedulers, argparse and configuration libraries leave in a checkpoint."""
    config = foreign.ConfigDict(lr=0.1, steps=[1, 2])
    config.note = "an attribute"
    return {
        "numpy_state": np.random.RandomState(3).get_state(),
        "generator": np.random.default_rng(3).bit_generator.state,
        "generator_object": np.random.default_rng(3),
        "python_state": random.Random(3).getstate(),
        "torch_state": torch.get_rng_state(),
        "array": np.arange(6.0).reshape(2, 3).T,
        "objects": np.array(["a", None], dtype=object),
        "names": np.array(["cat", "dog"]),
        "dates": np.array(["2024-01-01"], dtype="datetime64[D]"),
        "records": np.zeros(2, dtype=[("a", "f4"), ("b", "i8")]),
        "great": np.longdouble(3),
        "uint16": np.arange(3, dtype=np.uint16),
        "number": np.float32(0.5),
        "flag": np.bool_(True),
        "args": argparse.Namespace(out=pathlib.PurePosixPath("runs/a"), when=datetime.datetime(2024, 2, 3)),
        "path": pathlib.Path("runs"),
        "delta": datetime.timedelta(seconds=3),
        "history": collections.defaultdict(list, loss=[1.0]),
        "counts": collections.Counter("aab"),
        "queue": collections.deque([1, 2], maxlen=3),
        "sets": {1, 2, frozenset({3})},
        "tuple_keys": {(0, "a"): 1, ((1, 2), 3): 2},
        "dtype": torch.float16,
        "size": torch.Size([1, 2]),
        "device": torch.device("cpu"),
        "complex": 1 + 2j,
        "bytes": b"\0\xff",
        "bytearray": bytearray(b"abc"),
        "settings": foreign.Settings({"a": [1]}),
        "config": config,
        "omega": foreign.Config({"x": foreign.Settings(1)}),
        "level": foreign.Level(3),
        "class": foreign.Settings,
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "sparse": torch.eye(3).to_sparse(),
        "quantised": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        "optimizer": torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1).state_dict(),
    }


WRITERS: dict[str, Callable[[Any, Path], Any]] = {
    "zip": torch.save,
    "legacy": lambda tree, path: torch.save(tree, path, _use_new_zipfile_serialization=False),
    "protocol 4": lambda tree, path: torch.save(tree, path, pickle_protocol=4),
    "pickle": lambda tree, path: path.write_bytes(pickle.dumps(tree, protocol=4)),
    "pickle 2": lambda tree, path: path.write_bytes(pickle.dumps(tree, protocol=2)),
    "pickle 5": lambda tree, path: path.write_bytes(pickle.dumps(tree, protocol=5)),
}


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(n, marks=pytest.mark.slow) for n in range(4, 12))])
def test_what_trainers_leave_needs_no_trust(
    seed: int, tmp_path: Path, r50: Tensors, foreign: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    found = leftovers(foreign)
    writer = list(WRITERS)[seed % len(WRITERS)]
    if "pickle" in writer:
        del found["sparse"], found["quantised"]
    chosen = dict(rng.sample(sorted(found.items()), len(found) - 5))
    weights: Any = simsiam(r50)
    if "pickle" in writer:
        weights["state_dict"] = {name: tensor.numpy() for name, tensor in weights["state_dict"].items()}
    content = list({**weights, **chosen, "nested": {"deeper": list(chosen.values())}}.items())
    rng.shuffle(content)
    WRITERS[writer](dict(content), tmp_path / "file.pth")
    monkeypatch.delitem(sys.modules, FOREIGN)
    backbone = read_backbone(tmp_path / "file.pth")
    assert same(backbone.tensors, bare(r50)) and FOREIGN not in sys.modules
    tree = read_checkpoint(tmp_path / "file.pth").tree
    if "array" in chosen:
        assert torch.equal(tree["array"], torch.arange(6.0, dtype=torch.float64).view(2, 3).T)
    if "history" in chosen:
        assert tree["history"] == {"loss": [1.0]}


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_torchs_tensors_in_a_plain_pickle(protocol: int, tmp_path: Path, r50: Tensors) -> None:
    """Each brings a stream of torch.save with its storage."""
    few = {name: tensor.clone() for name, tensor in r50.items() if name.startswith(("bn1", "layer1.0"))}
    few["view"] = few["bn1.bias"][2:5]
    (tmp_path / "file.pkl").write_bytes(pickle.dumps({"state_dict": few}, protocol=protocol))
    got = read_checkpoint(tmp_path / "file.pkl").tensors("state_dict")
    assert got.keys() == few.keys() and all(torch.equal(got[name], few[name]) for name in few)


@pytest.mark.parametrize("writer", ["zip", "legacy"])
def test_tensors_are_those_that_torch_reads(writer: str, tmp_path: Path) -> None:
    """Types, strides, offsets, shared memory, empty and scalar tensors; torch itself is the reference."""
    block = torch.arange(60.0)
    content: dict[str, Any] = {
        "view": block[3:39].view(4, 9).t(),
        "expanded": block[5].expand(4, 3),
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(block.view(6, 10)[::2]),
        "attribute": torch.ones(2),
        **{
            str(t): torch.tensor([0, 1, 1]).to(t)
            for t in (torch.half, torch.bfloat16, torch.int8, torch.bool, torch.cdouble)
        },
    }
    content["attribute"].note = "kept by torch.save"
    if writer == "zip":
        content |= {"uint16": torch.tensor([1, 2]).to(torch.uint16), "float8": torch.ones(3).to(torch.float8_e4m3fn)}
    WRITERS[writer](content, tmp_path / "file.pth")
    got = read_checkpoint(tmp_path / "file.pth").tree
    wanted = torch.load(tmp_path / "file.pth", weights_only=False)
    for key, tensor in wanted.items():
        assert got[key].dtype == tensor.dtype and got[key].stride() == tensor.stride(), key
        wide = torch.float64 if tensor.dtype.itemsize == 1 else tensor.dtype  # float8 has no comparison
        assert torch.equal(got[key].to(wide), tensor.detach().to(wide)), key


def test_a_big_endian_file(tmp_path: Path, r50: Tensors) -> None:
    torch.save(simsiam({k: v.clone() for k, v in r50.items()}), tmp_path / "little.pth")
    with zipfile.ZipFile(tmp_path / "little.pth") as old, zipfile.ZipFile(tmp_path / "big.pth", "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if "/data/" in entry.filename:
                size = 8 if len(content) == 8 else 4
                content = np.frombuffer(content, f"<u{size}").byteswap().tobytes()
            new.writestr(entry.filename, b"big" if entry.filename.endswith("byteorder") else content)
    assert same(read_backbone(tmp_path / "big.pth").tensors, bare(r50))


def test_a_zip_that_was_compressed_again(tmp_path: Path, r50: Tensors) -> None:
    torch.save(simsiam(r50), tmp_path / "stored.pth")
    with (
        zipfile.ZipFile(tmp_path / "stored.pth") as old,
        zipfile.ZipFile(tmp_path / "small.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    assert same(read_backbone(tmp_path / "small.pth").tensors, bare(r50))


def test_a_tar_of_torch_before_version_0_1_10(tmp_path: Path, r50: Tensors) -> None:
    """Storages, tensors and a pickle of persistent ids, each written as torch's reader expects them."""
    storages, tensors = io.BytesIO(), io.BytesIO()
    pickle.dump(len(r50), storages, protocol=2)
    pickle.dump(len(r50), tensors, protocol=2)
    for index, tensor in enumerate(r50.values()):
        kind = b"FloatStorage" if tensor.is_floating_point() else b"LongStorage"
        storages.write(b"\x80\x02M" + struct.pack("<H", index) + b"X\x03\0\0\0cpuctorch\n" + kind + b"\n\x87.")
        flat, rank = tensor.contiguous(), tensor.dim()
        storages.write(struct.pack("<q", flat.numel()) + flat.numpy().tobytes())
        pickle.dump((1000 + index, index, None), tensors, protocol=2)
        tensors.write(struct.pack(f"<{2 * rank + 2}q", rank, *flat.shape, *flat.stride(), 0))
    pickle.dump([], storages, protocol=2)

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return str(1000 + numbers[id(value)]) if id(value) in numbers else None

    numbers = {id(tensor): index for index, tensor in enumerate(r50.values())}
    content = io.BytesIO()
    Pickler(content, protocol=2).dump({"state_dict": dict(r50)})
    with tarfile.open(tmp_path / "old.tar", "w") as archive:
        for name, part in (("storages", storages), ("tensors", tensors), ("pickle", content)):
            entry = tarfile.TarInfo(name)
            entry.size = len(part.getvalue())
            archive.addfile(entry, io.BytesIO(part.getvalue()))
    reference = torch.load(tmp_path / "old.tar", weights_only=False)["state_dict"]
    assert torch.equal(reference["conv1.weight"], r50["conv1.weight"])
    assert same(read_backbone(tmp_path / "old.tar").tensors, bare(r50))
    with tarfile.open(tmp_path / "other.tar", "w") as archive:
        archive.add(tmp_path / "old.tar", "checkpoint.pth")
    with pytest.raises(UserError, match=r"tar -xf .*other\.tar"):
        read_checkpoint(tmp_path / "other.tar")


def test_hostile_calls_do_not_run(tmp_path: Path, r50: Tensors, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside a whole ResNet they are inert or refused in one line, in every container; nothing runs."""
    mark = tmp_path / "ran"
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(1)}, buffer, _use_new_zipfile_serialization=False)
    cases = [*hostile_files.code_that_runs(mark), *hostile_files.bad_arguments()]
    head = buffer.getvalue()
    head = head[: head.index(b"\x80\x02}", head.index(b"\x80\x02}", 15) + 1)]  # magic number, version, system
    for index, (case, code) in enumerate(cases):
        body = hostile_files.PROTOCOL + b"}" + hostile_files.text("loss") + code + b"s."
        for suffix, content in (
            ("pkl", body),
            ("pth", hostile_files.zipped(body)),
            ("pt", head + body + b"\x80\x02]."),
        ):
            path = tmp_path / f"{index}.{suffix}"
            path.write_bytes(content)
            assert call_main(main, [str(path), str(tmp_path / "out.pkl")]) == EXIT_USAGE, case
            error = capsys.readouterr().err
            assert error.startswith("error: ") and error.count("\n") == 1, case
            path.unlink()
    assert not mark.exists() and not (tmp_path / "out.pkl").exists()


def test_names_of_control_characters_stay_on_their_line(
    tmp_path: Path, r50: Tensors, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = {"state_dict": {**r50, "a\nerror: b\x1b[2J.weight": torch.ones(1)}, "x\ny": 1 << 7000}
    path = save(tmp_path / "x.pth", tensors)
    for words in ([str(path), str(tmp_path / "out.pkl"), "--no-verify"], ["--inspect", str(path)]):
        assert call_main(main, words) == EXIT_OK
        out = capsys.readouterr().out
        assert "\x1b" not in out and "\nerror" not in out and out


def test_a_hostile_call_beside_a_resnet_is_inert(tmp_path: Path, r50: Tensors) -> None:
    class Command:
        def __reduce__(self) -> Any:
            import os

            return os.system, (f"touch {tmp_path / 'ran'}",)

    source = save(tmp_path / "evil.pth", {**simsiam(r50), "loss": Command()})
    assert same(read_backbone(source).tensors, bare(r50)) and not (tmp_path / "ran").exists()


def test_false_tensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    for case, code in hostile_files.false_tensors():
        body = hostile_files.PROTOCOL + b"}" + hostile_files.text("a") + code + b"s."
        path.write_bytes(hostile_files.zipped(body, bytes(16)))
        with pytest.raises(UserError, match="cut short or damaged"):
            pytest.fail(f"{case}: {read_checkpoint(path).tree}")


MEASURE = """
import sys, time
from ssl_transfer.errors import UserError
from transfer.weights.containers import read_checkpoint
from transfer.weights.inspect_checkpoint import describe_checkpoint
for path in sys.argv[1:]:
    start = time.process_time()
    try:
        list(describe_checkpoint(read_checkpoint(path)))
        result = "read"
    except UserError as error:
        assert "\\n" not in str(error)
        result = "refused"
    peak = dict(line.split(":", 1) for line in open("/proc/self/status"))["VmHWM"].split()[0]
    print(f"{path}\\t{result}\\t{time.process_time() - start:.2f}\\t{int(peak) // 1024}")
"""


def measure(root: Path, paths: list[Path]) -> None:
    """Read each file in one new process: at most 2 GB and 60 s each, and no crash."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, paths)], cwd=root, capture_output=True, text=True, check=False
    )
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert done.returncode == 0 and len(lines) == len(paths), done.stderr[-2000:]
    for path, _result, seconds, peak in lines:
        assert float(seconds) < 60 and int(peak) < 2048, (path, seconds, peak)


def test_bombs_are_bounded(root: Path, tmp_path: Path) -> None:
    measure(root, [*write_bombs(tmp_path, 0), *(path for _, path in hostile_files.containers(tmp_path))])


@pytest.mark.slow
def test_bombs_of_many_opcodes_are_bounded(root: Path, tmp_path: Path) -> None:
    measure(root, write_bombs(tmp_path, 20_000_000))


def write_bombs(folder: Path, big: int) -> list[Path]:
    written = []
    for case, code in hostile_files.memory_bombs(big):
        path = folder / f"{case}.{'pth' if len(written) % 2 else 'pkl'}"
        body = hostile_files.PROTOCOL + code + b"."
        path.write_bytes(hostile_files.zipped(body) if len(written) % 2 else body)
        written.append(path)
    return written


class Ema:
    """An exponential moving average that behaves like a mapping and keeps its tensors in an attribute."""

    def __init__(self, shadow: Any, fails: bool = False) -> None:
        self.shadow = shadow
        self.fails = fails

    def state_dict(self) -> Any:
        if self.fails:
            raise RuntimeError("the decay\nis missing")
        return self.shadow


def test_tensors_in_foreign_objects_need_trust(
    tmp_path: Path, r50: Tensors, capsys: pytest.CaptureFixture[str]
) -> None:
    import torchvision

    module = torchvision.models.resnet50()
    wanted = bare({name: value for name, value in module.state_dict().items() if not name.startswith("fc.")})
    out = str(tmp_path / "out.pkl")
    for index, content in enumerate(
        (module, {"model": module, "epoch": 3}, {"net": {"ema": Ema(module.state_dict())}})
    ):
        for legacy in (False, True):
            path = tmp_path / f"{index}.pth"
            torch.save(content, path, _use_new_zipfile_serialization=not legacy)
            assert call_main(main, [str(path), out, "--no-verify"]) == EXIT_USAGE
            error = capsys.readouterr().err
            assert "tensors" in error and "--trust-checkpoint" in error and error.count("\n") == 1
            source = "any" if index == 2 else "auto"
            assert same(read_backbone(path, source=source, trust=True).tensors, wanted)


def test_errors_in_trusted_code_are_one_line(tmp_path: Path, r50: Tensors, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out.pkl")
    path = save(tmp_path / "ema.pth", {"ema": Ema(dict(r50), fails=True)})
    assert call_main(main, [str(path), out, "--no-verify", "--trust-checkpoint"]) == EXIT_USAGE
    error = capsys.readouterr().err
    assert "Ema" in error and "RuntimeError: the decay" in error and error.count("\n") == 1
    path = save(tmp_path / "both.pth", {**simsiam(r50), "ema": Ema({}, fails=True)})
    assert call_main(main, [str(path), out, "--no-verify", "--trust-checkpoint"]) == EXIT_OK


def test_a_trusted_zip_is_checked_bit_by_bit(tmp_path: Path, r50: Tensors) -> None:
    path = save(tmp_path / "simsiam.pth", simsiam(r50))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="checksum"):
        read_checkpoint(path, trust=True)
