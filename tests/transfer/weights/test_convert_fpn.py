"""The same file in a detector with a feature pyramid, and ResNet-18 and -34, which only such a detector takes."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision

from ssl_transfer.errors import UserError
from ssl_transfer.formats.backbone import TORCHVISION
from tests.transfer.weights.made_checkpoints import bare, moco, resnet, same, save
from transfer.engine.weights import find_weights
from transfer.weights import verify
from transfer.weights.conversion import convert
from transfer.weights.converted import check_loaded, read_converted
from transfer.weights.normalize import read_backbone
from transfer.weights.tensor_names import to_torchvision

pytestmark = pytest.mark.usefixtures("shared_detectors")
COUNTS = {"resnet18": 100, "resnet34": 180, "resnet50": 265}
"""A convolution's weight and a norm's four tensors: 20, 36 and 53 of each."""


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Converted files of random weights by architecture, not verified."""
    folder, found = tmp_path_factory.mktemp("fpn"), {}
    for arch in COUNTS:
        found[arch] = folder / f"{arch}.pkl"
        convert(save(folder / f"{arch}.pth", moco(resnet(arch), resnet(arch, seed=1))), found[arch], verify=False)
    return found


def fpn_with(path: Path) -> torch.nn.Module:
    """An FPN detector of NaN after Detectron2's checkpointer has loaded the file."""
    manifest = read_converted(path)[1]
    model = verify.build_nan_detector(verify.fpn_config(manifest.arch, manifest.preprocessing))
    verify.load_checkpoint(model, path)
    return model


def refuse(path: Path, model: torch.nn.Module, changed: Any, message: str) -> None:
    """The verification's two comparisons refuse a file whose content `changed` has changed."""
    manifest = read_converted(path)[1]
    content = pickle.loads(path.read_bytes())
    changed(content)
    bad = path.with_name("bad.pkl")
    bad.write_bytes(pickle.dumps(content, protocol=4))
    verify.fill_nan(model)
    with pytest.raises(UserError, match=message):
        verify.load_checkpoint(model, bad)
        verify.compare_tensors(model, manifest.tensors, str(bad))


@pytest.mark.parametrize("arch", COUNTS)
def test_bottom_up_has_the_source_bit_for_bit_and_torchvision_s_features_at_every_level(
    converted: dict[str, Path], arch: str
) -> None:
    model = fpn_with(converted[arch])
    tensors, manifest = read_converted(converted[arch])
    assert check_loaded(model, tensors) == f"{COUNTS[arch]}/{COUNTS[arch]} exact"
    verify.compare_tensors(model, manifest.tensors, "x")
    net = getattr(torchvision.models, arch)()
    net.load_state_dict({**resnet(arch), "fc.weight": net.fc.weight.data, "fc.bias": net.fc.bias.data})
    net.eval()
    seen = verify.detector_features(model, "RGB")
    assert list(seen) == ["stem", "res2", "res3", "res4", "res5"]
    with torch.no_grad():
        x = net.maxpool(net.relu(net.bn1(net.conv1(verify.preprocess(verify.fixed_image(), TORCHVISION)))))
        for stage, layer in zip(
            seen, [torch.nn.Identity(), net.layer1, net.layer2, net.layer3, net.layer4], strict=True
        ):
            x = layer(x)
            assert (seen[stage] - x).abs().max() <= 1e-5 * x.abs().max()


def _without(*prefixes: str) -> Any:
    def change(content: dict[str, Any]) -> None:
        content["model"] = {k: v for k, v in content["model"].items() if not k.startswith(prefixes)}

    return change


def _one_bit(content: dict[str, Any]) -> None:
    weight = content["model"]["res3.1.conv2.weight"] = content["model"]["res3.1.conv2.weight"].copy()
    weight.view(np.int32).flat[77] ^= 1


def _statistic(content: dict[str, Any]) -> None:
    content["model"]["res5.0.shortcut.norm.running_var"] = np.ones(512, np.float32)


def _new(content: dict[str, Any]) -> None:
    content["model"]["fpn_lateral3.weight"] = np.zeros((256, 128, 1, 1), np.float32)


def _no_author(content: dict[str, Any]) -> None:
    del content["__author__"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without(""), "cannot load it|0/100"),
        (_without("stem."), r"95/100 .*backbone\.bottom_up\.stem"),
        (_without("res5."), r"75/100 .*backbone\.bottom_up\.res5"),
        (_one_bit, r"99/100 .*bottom_up\.res3\.1\.conv2\.weight"),
        (_statistic, r"99/100 .*bottom_up\.res5\.0\.shortcut\.norm\.running_var"),
        (_new, r"(?s)cannot load it .*fpn_lateral3"),
        (_no_author, "cannot load it|tensors are in the detector"),
    ],
    ids=["zero keys", "no stem", "no res5", "one bit", "statistic", "new tensor", "no author"],
)
def test_what_is_not_loaded_into_an_fpn_is_an_error(converted: dict[str, Path], change: Any, message: str) -> None:
    refuse(converted["resnet18"], fpn_with(converted["resnet18"]), change, message)


@pytest.mark.parametrize(
    "wrong",
    [
        TORCHVISION.model_copy(update={"channel_order": "BGR"}),
        TORCHVISION.model_copy(update={"std": (1.0, 1.0, 1.0)}),
        TORCHVISION.model_copy(update={"mean": TORCHVISION.mean[::-1]}),
    ],
    ids=["bgr", "std", "mean order"],
)
def test_wrong_preprocessing_fails_in_an_fpn(converted: dict[str, Path], wrong: Any) -> None:
    tensors, manifest = read_converted(converted["resnet18"])
    expected = verify.resnet_features(
        "resnet18", {to_torchvision(name): tensor for name, tensor in tensors.items()}, TORCHVISION
    )
    good = verify.verify_detectron2(converted["resnet18"], manifest, expected)
    assert (good.tensors, good.detectron2_load) == ("100/100", "exact")
    with pytest.raises(UserError, match="features differ from the source's at stem"):
        verify.verify_detectron2(converted["resnet18"], manifest.model_copy(update={"preprocessing": wrong}), expected)


@pytest.mark.parametrize("arch", ["resnet18", "resnet34"])
def test_a_c4_detector_refuses_basic_blocks_with_the_reason(
    converted: dict[str, Path], tmp_path: Path, arch: str
) -> None:
    depth = int(arch.removeprefix("resnet"))
    assert find_weights(str(converted[arch]), depth, tmp_path, fpn=True).manifest.arch == arch  # type: ignore[union-attr]
    for asked in (50, depth):
        with pytest.raises(UserError, match=rf"is a {arch}: Detectron2's C4 head builds bottleneck blocks only"):
            find_weights(str(converted[arch]), asked, tmp_path)
    with pytest.raises(UserError, match=rf"MODEL\.RESNETS\.DEPTH is 50; .* set MODEL\.RESNETS\.DEPTH {depth}"):
        find_weights(str(converted[arch]), 50, tmp_path, fpn=True)


@pytest.mark.parametrize("arch", ["resnet18", "resnet34"])
def test_both_branches_of_a_basic_resnet_are_read_and_a_near_miss_is_refused(tmp_path: Path, arch: str) -> None:
    online, target = resnet(arch), resnet(arch, seed=1)
    path = save(tmp_path / "moco.pth", moco(online, target))
    assert same(read_backbone(path).tensors, bare(online))
    assert same(read_backbone(path, branch="target").tensors, bare(target))
    lacks = {name: tensor for name, tensor in online.items() if name != "layer4.1.bn2.running_mean"}
    with pytest.raises(UserError, match=rf"{COUNTS[arch] - 1} of {COUNTS[arch]} tensors of a {arch}"):
        read_backbone(save(tmp_path / "lacks.pth", moco(lacks, target)))
    cifar = {**online, "conv1.weight": torch.zeros(64, 3, 3, 3)}
    with pytest.raises(UserError, match="CIFAR stem"):
        read_backbone(save(tmp_path / "cifar.pth", moco(cifar, target)))
