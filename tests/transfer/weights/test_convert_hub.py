"""`hf-hub:ORG/NAME`: a local Hub that redirects, disconnects, wants a token or lies; caches, records and configs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import try_to_load_from_cache
from safetensors.torch import save as safetensors_bytes

from ssl_transfer.console import call_main
from ssl_transfer.errors import UserError
from ssl_transfer.formats.backbone import TORCHVISION
from ssl_transfer.formats.zoo import HubRecord
from tests.transfer.weights.hub_server import COMMITS, Hub
from tests.transfer.weights.made_checkpoints import bare, resnet, same
from tests.transfer.weights.recorded import _transformers
from tools.convert import main
from transfer.weights.checkpoint_zoo import FOLDER_VARIABLE
from transfer.weights.conversion import convert, ensure_converted
from transfer.weights.converted import read_converted
from transfer.weights.hugging_face import downloaded_file, fetch, hub_address, parse_name
from transfer.weights.normalize import read_backbone
from transfer.weights.public import find_entry, resolve
from transfer.weights.tensor_names import to_torchvision

pytestmark = pytest.mark.usefixtures("shared_detectors")

TIMM = {"architecture": "resnet50", "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}
INCEPTION = TORCHVISION.model_copy(update={"mean": (127.5,) * 3, "std": (127.5,) * 3})


@pytest.fixture(scope="module")
def body() -> bytes:
    """A ResNet-50 as timm stores it."""
    return safetensors_bytes({name: tensor.clone().contiguous() for name, tensor in resnet().items()})


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: bytes) -> Iterator[Hub]:
    served = Hub()
    served.files = {"config.json": json.dumps(TIMM).encode(), "model.safetensors": body, "pytorch_model.bin": body[:-1]}
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{served.port}/")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "zoo"))
    monkeypatch.setattr("transfer.weights.download.time.sleep", lambda seconds: None)
    yield served
    served.server.shutdown()
    served.server.server_close()


def entry(name: str = "hf-hub:org/net") -> Any:
    return parse_name(name)


def refusal(name: str = "hf-hub:org/net") -> str:
    with pytest.raises(UserError) as error:
        fetch(entry(name))
    assert "\n" not in str(error.value)
    return str(error.value)


def nothing_is_left(tmp_path: Path) -> bool:
    found = [path.name for path in (tmp_path / "zoo").rglob("*") if path.is_file()]
    return not any(name.endswith((".safetensors", ".unchecked", "main.json")) for name in found)


@pytest.mark.numeric
def test_a_name_is_converted_and_recorded(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call_main(main, ["hf-hub:org/net", str(tmp_path / "out.pkl")]) == 0
    out = capsys.readouterr().out
    assert "265/265 tensors" in out and "config.json" in out and "mean [127.5, 127.5, 127.5]" in out
    tensors, manifest = read_converted(tmp_path / "out.pkl")
    assert same({to_torchvision(name): tensor for name, tensor in tensors.items()}, bare(resnet()))
    assert manifest.source.address == f"hf-hub:org/net@{COMMITS[0]}:model.safetensors"
    assert manifest.source.sha256 == hashlib.sha256(hub.files["model.safetensors"]).hexdigest()
    assert manifest.preprocessing == INCEPTION
    record = HubRecord.read(tmp_path / "zoo" / "hf-hub" / "org--net@main.json")
    assert (record.commit, record.file) == (COMMITS[0], "model.safetensors")
    assert record.sha256 == manifest.source.sha256
    requests = len(hub.seen)
    assert call_main(main, ["--inspect", "hf-hub:org/net"]) == 0 and len(hub.seen) == requests


def test_a_lost_connection_is_resumed_and_a_second_run_resumes_the_first(hub: Hub, tmp_path: Path) -> None:
    hub.cut = [1_000_000, *[0] * 6]
    line = refusal()
    assert "times in a row" in line and "after 1000000 bytes" in line and nothing_is_left(tmp_path)
    hub.cut = [500_000]
    assert fetch(entry()).read_bytes() == hub.files["model.safetensors"]
    ranges = [seen[2] for seen in hub.seen if seen[0] == "localhost"]
    assert ranges[-2:] == ["bytes=1000000-", "bytes=1500000-"]


def test_the_token_is_sent_to_the_hub_and_to_no_other_host(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.token = "hf_secret"
    line = refusal()
    assert "HTTP 401" in line and "HF_TOKEN" in line
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.seen.clear()
    fetch(entry())
    assert {(host, sent) for host, _, _, sent in hub.seen} == {("127.0.0.1", "Bearer hf_secret"), ("localhost", None)}


def test_the_token_of_the_hubs_own_login_is_used(hub: Hub, tmp_path: Path) -> None:
    hub.token = "hf_stored"
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text("hf_stored\n")
    assert fetch(entry()).is_file()
    texts = [path.read_text() for path in (tmp_path / "zoo").rglob("*.json")]
    assert texts and not any("hf_stored" in text for text in texts)


def test_another_file_than_the_hub_states_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.stated = "0" * 64
    line = refusal()
    assert "the Hub states 000" in line and nothing_is_left(tmp_path)


def test_a_file_that_is_no_checkpoint_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.files["model.safetensors"] = hub.files["model.safetensors"][:50_000]
    assert "not a complete checkpoint" in refusal() and nothing_is_left(tmp_path)


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b"{}", b'{"sha": "../../x"}', b'{"sha": null, "siblings": 3}'])
def test_a_server_that_is_no_hub_is_refused(hub: Hub, tmp_path: Path, answer: bytes) -> None:
    hub.answer = answer
    assert "is HF_ENDPOINT a Hub?" in refusal() and nothing_is_left(tmp_path)


def test_a_branch_that_moved_keeps_its_first_commit(hub: Hub, tmp_path: Path) -> None:
    first = fetch(entry())
    old, hub.head = dict(hub.files), COMMITS[1]
    hub.files["model.safetensors"] = safetensors_bytes({k: v.clone().contiguous() for k, v in resnet(seed=9).items()})
    assert fetch(entry()) == first and hub_address(first) == f"hf-hub:org/net@{COMMITS[0]}:model.safetensors"
    assert COMMITS[1] in str(fetch(entry("hf-hub:org/net@v1")))
    first.unlink()
    assert "HTTP 404" in refusal()  # this Hub no longer has the recorded commit
    hub.head, hub.stated = COMMITS[0], ""  # another file under the recorded commit
    assert "first use" in refusal() and not first.exists()
    hub.files = old
    assert fetch(entry()) == first


def test_files_and_revisions_are_chosen(hub: Hub) -> None:
    assert fetch(entry("hf-hub:org/net@v1")).name == "model.safetensors"
    buffer = hub.files.pop("model.safetensors")
    hub.files["pytorch_model.bin"] = buffer
    assert fetch(entry()).name == "pytorch_model.bin"
    hub.files["sub/net.pth"] = hub.files.pop("pytorch_model.bin")
    assert fetch(entry("hf-hub:org/net:sub/net.pth")).parts[-2:] == ("sub", "net.pth")
    assert "did you mean sub/net.pth" in refusal("hf-hub:org/net:sub/nat.pth")
    hub.head = COMMITS[1]
    assert "name one of its files" in refusal(f"hf-hub:org/net@{COMMITS[1]}")
    assert "HTTP 404" in refusal("hf-hub:org/nat") and "HTTP 404" in refusal("hf-hub:org/net@v2")


@pytest.mark.parametrize("name", ["net", "org/net/x", "../net", "org/..", "org/net@", "org/net:../x", "org/net:/x", ""])
def test_other_forms_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"not of the form hf-hub:ORG/NAME\[@REVISION\]\[:FILE\]"):
        find_entry(f"hf-hub:{name}")


def store_in_hub_cache(folder: Path, body: bytes, blob: str = "") -> Path:
    """The Hub's own cache, as huggingface_hub writes it: blobs by digest, links in snapshots, refs."""
    net = folder / "models--org--net"
    snapshot = net / "snapshots" / COMMITS[1]
    for path in (net / "blobs", net / "refs", snapshot):
        path.mkdir(parents=True)
    digest = blob or hashlib.sha256(body).hexdigest()
    (net / "blobs" / digest).write_bytes(body)
    (net / "refs" / "main").write_text(COMMITS[1])
    (snapshot / "model.safetensors").symlink_to(f"../../blobs/{digest}")
    (snapshot / "config.json").write_text(json.dumps(TIMM))
    return snapshot / "model.safetensors"


def test_offline_the_hubs_own_cache_is_used(
    hub: Hub, tmp_path: Path, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in refusal()
    cached = store_in_hub_cache(tmp_path / "hf" / "hub", body)
    assert Path(resolve("hf-hub:org/net")[0]) == cached == downloaded_file(entry(f"hf-hub:org/net@{COMMITS[1]}"))
    assert try_to_load_from_cache("org/net", "model.safetensors", tmp_path / "hf" / "hub") == str(cached)
    assert read_backbone(cached).source.address == f"hf-hub:org/net@{COMMITS[1]}:model.safetensors"
    assert read_backbone(cached).preprocessing == INCEPTION and hub.seen == []


def test_a_damaged_file_in_the_hubs_cache_is_refused(hub: Hub, tmp_path: Path, body: bytes) -> None:
    store_in_hub_cache(tmp_path / "hf" / "hub", body, blob="c" * 64)
    assert "is damaged" in refusal() and not entry().record.exists()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("HF_ENDPOINT", "huggingface.co", "must begin with https"),
        ("HF_ENDPOINT", "https://a b", "must begin with https"),
        ("HF_TOKEN", "a\nX-Other: b", "HF_TOKEN holds no token"),
        ("HF_TOKEN", "hf_é", "HF_TOKEN holds no token"),
    ],
)
def test_wrong_variables_are_one_line(
    hub: Hub, name: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    line = refusal()
    assert words in line and "X-Other" not in line and hub.seen == []


def test_compute_nodes_do_not_download(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not downloaded.*run: python tools/convert.py --inspect hf-hub:org/net"):
        ensure_converted("hf-hub:org/net", tmp_path / "trial")
    assert hub.seen == []


CONFIGS: list[tuple[dict[str, Any], dict[str, Any] | None, Any]] = [
    (TIMM, None, INCEPTION),
    ({"architecture": "resnet50", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}, None, TORCHVISION),
    ({"architecture": "resnetaa50", **TIMM["pretrained_cfg"]}, None, "architecture resnetaa50"),
    ({**TIMM, "model_args": {"output_stride": 8}}, None, "model_args.output_stride"),
    ({"model_type": "resnet"}, {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}, INCEPTION),
    ({"model_type": "resnet"}, {"do_normalize": False}, ((0.0,) * 3, (255.0,) * 3)),
    ({"model_type": "resnet"}, None, "states no mean and std"),
    ({"model_type": "resnet", "hidden_act": "gelu"}, None, "hidden_act gelu"),
    ({"model_type": "resnet", "downsample_in_first_stage": True}, None, "downsample_in_first_stage"),
    ({"model_type": "resnet", "downsample_in_bottleneck": True}, None, "1x1"),
    ({"name": "a run of mine", "mean": [1, 2, 3], "std": [1, 2, 3]}, None, TORCHVISION),
]


@pytest.mark.parametrize("index", range(len(CONFIGS)))
def test_the_config_beside_the_file_decides(index: int, tmp_path: Path) -> None:
    config, processor, wanted = CONFIGS[index]
    tensors = resnet()
    if "model_type" in config:
        tensors = {f"resnet.{_transformers(name)}": tensor for name, tensor in tensors.items()}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(config))
    if processor is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    if isinstance(wanted, str) and wanted not in ("1x1", "states no mean and std"):
        with pytest.raises(UserError, match=f"not a plain ResNet: .*config.json says {wanted}; no option") as error:
            read_backbone(tmp_path / "pytorch_model.bin")
        assert "\n" not in str(error.value)
        return
    found = read_backbone(tmp_path / "pytorch_model.bin")
    block = found.preprocessing
    assert same(found.tensors, bare(resnet())) and block.stride_in_1x1 == (wanted == "1x1")
    if isinstance(wanted, str):
        assert any("states no mean and std" in line for line in found.warnings)
    else:
        assert block == wanted if not isinstance(wanted, tuple) else (block.mean, block.std) == wanted


HOSTILE = ["[]", "{", '{"architecture": 3}', '{"architecture": "resnet50", "pretrained_cfg": [1], "model_args": [1]}']
HOSTILE += [f'{{"architecture": "resnet50", "mean": [1{"0" * 400}, 1, 1], "std": [1, 1, 1]}}', "[" * 100_000]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_config_of_something_else_is_ignored_and_a_damaged_one_of_the_hub_refused(text: str, tmp_path: Path) -> None:
    folder = tmp_path / "models--org--net" / "snapshots" / COMMITS[0]
    folder.mkdir(parents=True)
    for place in (tmp_path, folder):
        torch.save(resnet(), place / "pytorch_model.bin")
        (place / "config.json").write_text(text)
    assert read_backbone(tmp_path / "pytorch_model.bin").preprocessing == TORCHVISION
    if text.startswith('{"'):
        assert read_backbone(folder / "pytorch_model.bin").preprocessing == TORCHVISION
    else:
        with pytest.raises(UserError, match=r"config.json.*download again"):
            read_backbone(folder / "pytorch_model.bin")


def test_constants_that_no_block_can_state_are_refused(tmp_path: Path) -> None:
    torch.save(resnet(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text('{"architecture": "resnet50", "mean": [0, 0, 0], "std": [0, 1, 1]}')
    with pytest.raises(UserError, match=r"config.json, preprocessing"):
        read_backbone(tmp_path / "pytorch_model.bin")


@pytest.mark.numeric
@pytest.mark.slow
def test_a_stride_on_the_1x1_is_proven(tmp_path: Path) -> None:
    torch.save({_transformers(name): tensor for name, tensor in resnet().items()}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet", "downsample_in_bottleneck": True}))
    done = convert(tmp_path / "pytorch_model.bin", tmp_path / "out.pkl")
    assert done.preprocessing.stride_in_1x1 and done.proof is not None
