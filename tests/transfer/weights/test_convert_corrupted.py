"""More than 200 damaged variants of valid files: each is converted to a verified result or fails in one line.

There is no traceback, no remaining file and no wrong result: a converted file has the original's tensors, or, from a
container without checksums (safetensors, torch's old format), exactly the tensors of the damaged file.
"""

from __future__ import annotations

import io
import pickle
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from ssl_transfer.console import call_main
from ssl_transfer.errors import EXIT_OK, EXIT_USAGE
from ssl_transfer.formats.backbone import TORCHVISION, BackboneMetadata
from ssl_transfer.formats.manifest import SourceFile
from tests.transfer.weights.made_checkpoints import bare, moco, resnet, same, simsiam
from tools.convert import main
from transfer.weights.converted import build_manifest, read_converted
from transfer.weights.output_formats import OUTPUT_FORMATS
from transfer.weights.resnet import Backbone
from transfer.weights.tensor_names import to_detectron2, to_torchvision

pytestmark = pytest.mark.usefixtures("shared_detectors")

Tensors = dict[str, torch.Tensor]


def _torch(tree: Any, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(tree, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def _safetensors(tensors: Tensors) -> bytes:
    metadata = BackboneMetadata(arch="resnet50", branch="online", preprocessing=TORCHVISION)
    cloned = {name: tensor.clone() for name, tensor in tensors.items()}
    return save_safetensors(cloned, metadata=metadata.encode())


def _ours(tensors: Tensors, folder: Path) -> bytes:
    source = SourceFile(path="checkpoint.pth", sha256="0" * 64, bytes=1, layout="simsiam", rule="made", branch="online")
    backbone = Backbone(arch="resnet50", tensors=tensors, preprocessing=TORCHVISION, source=source)
    named = {to_detectron2(name): tensor for name, tensor in tensors.items()}
    OUTPUT_FORMATS["detectron2"].write(folder / "ours.pkl", named, build_manifest(backbone, to_detectron2))
    return (folder / "ours.pkl").read_bytes()


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The same weights in five files."""
    made, folder = resnet(), tmp_path_factory.mktemp("valid")
    return {
        "zip": _torch(simsiam(made)),
        "legacy": _torch(simsiam(made), legacy=True),
        "moco": _torch(moco(made, resnet(seed=1))),
        "safetensors": _safetensors(bare(made)),
        "pkl": _ours(bare(made), folder),
    }


SUFFIX = {"zip": ".pth.tar", "legacy": ".pth", "moco": ".pth.tar", "safetensors": ".safetensors", "pkl": ".pkl"}
CHECKED = ("zip", "moco", "pkl")
"""Containers with checksums (zip's CRC, the manifest): damage to a weight is detected."""


def outcome(path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> Tensors | None:
    """Convert and verify; the converted tensors, or None after a correct refusal."""
    out = folder / "out" / "weights.pkl"
    code = call_main(main, [str(path), str(out)])
    error = capsys.readouterr().err
    if code == EXIT_OK:
        tensors, manifest = read_converted(out)
        assert manifest.proof is not None and manifest.proof.tensors == "265/265"
        return {to_torchvision(name): tensor.clone() for name, tensor in tensors.items()}
    assert code == EXIT_USAGE, error
    assert error.startswith("error: ") and error.count("\n") == 1 and "Traceback" not in error
    assert not out.parent.exists() or not list(out.parent.iterdir())
    return None


def read_independently(content: bytes, container: str) -> Tensors:
    """The tensors of a damaged file without checksums, read without any code of this project."""
    if container == "safetensors":
        return load_safetensors(content)
    tree = torch.load(io.BytesIO(content), weights_only=True)["state_dict"]
    prefix = "module.encoder."
    return {name.removeprefix(prefix): value for name, value in tree.items() if name.startswith(prefix)}


def truncated(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.choice([rng.randrange(len(content)), rng.randrange(4096), len(content) - rng.randint(1, 64)])]


def flipped(content: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 8])):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def flipped_early(content: bytes, rng: random.Random) -> bytes:
    """In headers and pickle opcodes."""
    damaged = bytearray(content)
    damaged[rng.randrange(min(len(damaged), 3000))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def flipped_late(content: bytes, rng: random.Random) -> bytes:
    """In a zip's directory and in the last tensors."""
    damaged = bytearray(content)
    damaged[-1 - rng.randrange(min(len(damaged), 3000))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def overwritten(content: bytes, rng: random.Random) -> bytes:
    """A block of zeros, as after a disk failure."""
    start = rng.randrange(len(content))
    length = rng.choice([16, 512, 65536])
    return content[:start] + bytes(min(length, len(content) - start)) + content[start + length :]


BYTES = [truncated, flipped, flipped_early, flipped_late, overwritten]


@pytest.mark.parametrize("seeds", [range(1), pytest.param(range(1, 6), marks=pytest.mark.slow)], ids=["one", "more"])
@pytest.mark.parametrize("container", list(SUFFIX))
@pytest.mark.parametrize("damage", BYTES, ids=lambda damage: damage.__name__)
def test_damaged_bytes(
    seeds: range,
    container: str,
    damage: Callable[[bytes, random.Random], bytes],
    valid: dict[str, bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """25 kinds with six variants each; one variant in the quick run."""
    wanted = bare(resnet())
    for seed in seeds:
        content = damage(valid[container], random.Random(f"{container} {damage.__name__} {seed}"))
        path = tmp_path / f"damaged{SUFFIX[container]}"
        path.write_bytes(content)
        folder = tmp_path / str(seed)
        got = outcome(path, folder, capsys)
        if got is not None and not same(got, wanted):
            assert container not in CHECKED, f"seed {seed}: a wrong result"
            damaged = read_independently(content, container)
            assert same(got, {name: damaged[name] for name in got}), f"seed {seed}"
        (folder / "out" / "weights.pkl").unlink(missing_ok=True)


def _pick(tensors: Tensors, rng: random.Random) -> str:
    return rng.choice(sorted(tensors))


def renamed(tensors: Tensors, rng: random.Random) -> Tensors:
    name = _pick(tensors, rng)
    new = rng.choice([name + "_", name.replace("layer", "Layer").replace("bn1", "bn_1"), "x." + name, name[1:]])
    return {(new if key == name else key): value for key, value in tensors.items()}


def swapped(tensors: Tensors, rng: random.Random) -> Tensors:
    """Two tensors of different shapes with their names exchanged."""
    one = _pick(tensors, rng)
    others = [name for name in tensors if tensors[name].shape != tensors[one].shape]
    two = rng.choice(sorted(others))
    return {**tensors, one: tensors[two], two: tensors[one]}


def missing(tensors: Tensors, rng: random.Random) -> Tensors:
    gone = set(rng.sample(sorted(tensors), rng.choice([1, 1, 2, 53])))
    return {name: value for name, value in tensors.items() if name not in gone}


def extra(tensors: Tensors, rng: random.Random) -> Tensors:
    name = rng.choice(
        ["layer4.3.conv1.weight", "layer5.0.bn1.bias", "conv1.bias", "layer1.0.conv4.weight", "bn2.weight"]
    )
    return {**tensors, name: torch.zeros(4)}


def reshaped(tensors: Tensors, rng: random.Random) -> Tensors:
    name = _pick({k: v for k, v in tensors.items() if v.numel() > 1}, rng)
    value = tensors[name]
    return {**tensors, name: rng.choice([value[:-1], value.reshape(-1, 1), value[None], value.flatten()[:1]])}


def retyped(tensors: Tensors, rng: random.Random) -> Tensors:
    name = _pick({k: v for k, v in tensors.items() if v.is_floating_point()}, rng)
    kind = rng.choice([torch.int64, torch.bool, torch.uint8, torch.complex64])
    return {**tensors, name: tensors[name].to(kind)}


def not_finite(tensors: Tensors, rng: random.Random) -> Tensors:
    name = _pick({k: v for k, v in tensors.items() if v.is_floating_point()}, rng)
    value = tensors[name].clone()
    value.view(-1)[rng.randrange(value.numel())] = rng.choice([float("nan"), float("inf"), -float("inf")])
    return {**tensors, name: value}


def no_tensor(tensors: Tensors, rng: random.Random) -> dict[str, Any]:
    return {**tensors, _pick(tensors, rng): rng.choice([None, 3, "weight", [1.0, 2.0], {}])}


STRUCTURE = [renamed, swapped, missing, extra, reshaped, retyped, not_finite, no_tensor]


@pytest.mark.parametrize("damage", STRUCTURE, ids=lambda damage: damage.__name__)
def test_damaged_structure(
    damage: Callable[[Tensors, random.Random], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Eight kinds with ten variants each, of which none may be converted."""
    tensors = resnet()
    for seed in range(10):
        path = tmp_path / "damaged.pth.tar"
        torch.save(simsiam(damage(tensors, random.Random(f"{damage.__name__} {seed}"))), path)
        assert outcome(path, tmp_path, capsys) is None, f"seed {seed} converted"


def test_hostile_pickles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Arrays of objects, arrays with too little data, references to themselves, and code of several kinds."""
    looped: dict[str, Any] = {"model": {}}
    looped["model"]["again"] = looped
    reduce = b"\x80\x02c%s\n%s\n%sR."
    hostile = [
        pickle.dumps(looped),
        b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b".",
        reduce % (b"builtins", b"eval", b"(X\x03\x00\x00\x001+1t"),
        reduce % (b"numpy.core.multiarray", b"_reconstruct", b"(cnumpy\nndarray\n(J\xff\xff\xff\x7ftU\x01bt"),
        reduce % (b"numpy", b"dtype", b"(U\x02O8I0\nI1\nt"),
        reduce % (b"_codecs", b"encode", b"(X\x01\x00\x00\x00aX\x03\x00\x00\x00zipt"),
        b"\x80\x02" + b"(" * 100_000 + b".",
        b"\x80\x05\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",
    ]
    for index, content in enumerate(hostile):
        path = tmp_path / f"hostile_{index}.pkl"
        path.write_bytes(content)
        assert outcome(path, tmp_path, capsys) is None
