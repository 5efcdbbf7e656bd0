"""The verification passes for a good file in both detectors, and fails for every known fault."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_transfer.errors import UserError
from ssl_transfer.formats.backbone import MSRA, TORCHVISION, Preprocessing
from ssl_transfer.formats.manifest import Proof
from tests.transfer.weights.made_checkpoints import bare, moco, same, save, simsiam
from transfer.weights import verify
from transfer.weights.conversion import convert
from transfer.weights.converted import check_loaded, read_converted
from transfer.weights.normalize import read_backbone
from transfer.weights.tensor_names import to_detectron2, to_torchvision

pytestmark = pytest.mark.usefixtures("shared_detectors")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, r50: dict[str, torch.Tensor]) -> Path:
    return save(tmp_path_factory.mktemp("source") / "checkpoint_0099.pth.tar", simsiam(r50))


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    out = tmp_path_factory.mktemp("converted") / "simsiam.pkl"
    convert(checkpoint, out, verify=False)
    return out


def test_a_good_file_is_verified(checkpoint: Path, tmp_path: Path, r50: dict[str, torch.Tensor]) -> None:
    done = convert(checkpoint, tmp_path / "out.pkl")
    assert done.proof is not None
    summary = done.proof.summary()
    assert summary.startswith("265/265 tensors · forward max |Δ| ") and summary.endswith(" · detectron2 load exact")
    tensors, manifest = read_converted(tmp_path / "out.pkl")
    assert manifest == done and manifest.count == 265
    assert same({to_torchvision(name): tensor for name, tensor in tensors.items()}, bare(r50))
    assert {p.name for p in tmp_path.iterdir()} == {"out.pkl", "out.manifest.json"}


def test_c4_with_and_without_masks_and_fpn_are_verified(converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, bool]] = []
    build = verify.build_nan_detector

    def record(cfg: Any) -> torch.nn.Module:
        seen.append((cfg.MODEL.BACKBONE.NAME, cfg.MODEL.MASK_ON))
        return build(cfg)

    monkeypatch.setattr(verify, "build_nan_detector", record)
    _verify(converted)
    c4, fpn = "build_resnet_backbone", "build_resnet_fpn_backbone"
    assert seen == [(c4, False), (c4, True), (fpn, True)]


def _verify(path: Path, written: Preprocessing = TORCHVISION, source: Preprocessing = TORCHVISION) -> Proof:
    tensors, manifest = read_converted(path)
    named = {to_torchvision(name): tensor for name, tensor in tensors.items()}
    expected = verify.resnet_features(manifest.arch, named, source)
    return verify.verify_detectron2(path, manifest.model_copy(update={"preprocessing": written}), expected)


@pytest.mark.parametrize(
    "wrong",
    [
        TORCHVISION.model_copy(update={"channel_order": "BGR"}),
        TORCHVISION.model_copy(update={"stride_in_1x1": True}),
        TORCHVISION.model_copy(update={"std": (1.0, 1.0, 1.0)}),
        TORCHVISION.model_copy(update={"mean": TORCHVISION.mean[::-1]}),
        MSRA,
    ],
    ids=["bgr", "stride", "std", "mean order", "msra"],
)
def test_wrong_preprocessing_fails_the_comparison_of_features(converted: Path, wrong: Preprocessing) -> None:
    with pytest.raises(UserError, match=r"features differ from the source's at (stem|res3)"):
        _verify(converted, wrong)


def test_msra_weights_are_verified_with_the_stride_in_the_1x1(converted: Path) -> None:
    assert _verify(converted, MSRA, MSRA).tensors == "265/265"


def _damaged(converted: Path, out: Path, change: Any) -> Path:
    content = pickle.loads(converted.read_bytes())
    change(content)
    out.write_bytes(pickle.dumps(content, protocol=4))
    return out


def _without(*prefixes: str) -> Any:
    def change(content: dict[str, Any]) -> None:
        content["model"] = {k: v for k, v in content["model"].items() if not k.startswith(prefixes)}

    return change


def _no_author(content: dict[str, Any]) -> None:
    del content["__author__"]


def _one_bit(content: dict[str, Any]) -> None:
    weight = content["model"]["res3.1.conv2.weight"] = content["model"]["res3.1.conv2.weight"].copy()
    weight.view(np.int32).flat[77] ^= 1


def _zero_sign(content: dict[str, Any]) -> None:
    content["model"]["res2.0.conv1.norm.bias"] = np.full(64, -0.0, np.float32)


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        (_without(""), "Detectron2 cannot load it|0/265"),
        (_without("stem."), "260/265 .*backbone.stem"),
        (_without("res5."), "215/265 .*roi_heads.res5"),
        (_without("stem.", "res5."), "210/265"),
        (_no_author, "Detectron2 cannot load it|tensors are in the detector"),
        (_one_bit, "264/265 .*backbone.res3.1.conv2.weight"),
        (_zero_sign, "264/265 .*backbone.res2.0.conv1.norm.bias"),
    ],
    ids=["zero keys", "no stem", "no res5", "neither", "no author", "one bit", "sign of zero"],
)
def test_known_silent_failures_are_errors(converted: Path, tmp_path: Path, change: Any, missing: str) -> None:
    """MoCo's converter writes no key of SimSiam's file, MMSelfSup's loses stem and res5; both still write a file."""
    bad = _damaged(converted, tmp_path / "bad.pkl", change)
    manifest = read_converted(converted)[1]
    with pytest.raises(UserError, match=missing):
        verify.verify_detectron2(bad, manifest, {})
    with pytest.raises(UserError):
        read_converted(bad)


def test_a_file_must_not_contain_a_tensor_that_should_be_new(converted: Path, tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["model"]["proposal_generator.rpn_head.conv.bias"] = np.zeros(1024, np.float32)

    bad = _damaged(converted, tmp_path / "bad.pkl", change)
    with pytest.raises(UserError, match=r"(?s)Detectron2 cannot load it .*proposal_generator\.rpn_head\.conv\.bias"):
        verify.verify_detectron2(bad, read_converted(converted)[1], {})


def test_a_failed_verification_leaves_no_file(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*arguments: Any) -> dict[str, torch.Tensor]:
        return {k: v * 1.001 for k, v in verify.resnet_features(*arguments).items()}

    monkeypatch.setattr("transfer.weights.conversion.resnet_features", wrong)
    with pytest.raises(UserError, match="features differ"):
        convert(checkpoint, tmp_path / "out.pkl")
    assert list(tmp_path.iterdir()) == []


def test_features_equal_torchvisions_own(checkpoint: Path, r50: dict[str, torch.Tensor]) -> None:
    """torchvision's own network and transforms give the same features, without any code of this project."""
    import torchvision
    from torchvision.transforms import v2

    net = torchvision.models.resnet50()
    net.load_state_dict({**r50, "fc.weight": net.fc.weight.data, "fc.bias": net.fc.bias.data})
    transform = v2.Compose(
        [v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    )
    body = torch.nn.Sequential(*list(net.eval().children())[:-2])
    with torch.no_grad():
        expected = body(transform(verify.fixed_image())[None])
    actual = verify.resnet_features("resnet50", read_backbone(checkpoint).tensors, TORCHVISION)["res5"]
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_check_loaded_on_a_detector_in_training(converted: Path) -> None:
    tensors, manifest = read_converted(converted)
    cfg = verify.c4_config("resnet50", manifest.preprocessing, mask=True)
    model = verify.build_nan_detector(cfg)
    with pytest.raises(UserError, match=r"0/265 .*backbone\.stem\.conv1\.weight"):
        check_loaded(model, tensors)
    verify.load_checkpoint(model, converted)
    assert check_loaded(model, tensors) == "265/265 exact"
    with torch.no_grad():
        model.roi_heads.res5[1].conv2.weight[3, 1] += 1e-3
    with pytest.raises(UserError, match=r"264/265 .*roi_heads\.res5\.1\.conv2\.weight"):
        check_loaded(model, tensors)


def test_renaming_is_invertible_and_gives_detectron2s_names(r50: dict[str, torch.Tensor]) -> None:
    from detectron2.modeling.backbone import build_resnet_backbone

    from transfer.weights.tensor_names import in_detector

    cfg = verify.c4_config("resnet50", TORCHVISION, mask=False)
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    from detectron2.layers import ShapeSpec

    built = {k: tuple(v.shape) for k, v in build_resnet_backbone(cfg, ShapeSpec(channels=3)).state_dict().items()}
    ours = {to_detectron2(name): tuple(tensor.shape) for name, tensor in bare(r50).items()}
    assert ours == {k: s for k, s in built.items() if not k.endswith("num_batches_tracked")}
    assert [to_torchvision(to_detectron2(name)) for name in bare(r50)] == list(bare(r50))
    assert in_detector("res5.0.conv1.weight") == "roi_heads.res5.0.conv1.weight"


def test_moco_branches(tmp_path: Path, r50: dict[str, torch.Tensor], other_r50: dict[str, torch.Tensor]) -> None:
    path = save(tmp_path / "moco.pth.tar", moco(r50, other_r50))
    assert same(read_backbone(path).tensors, bare(r50))
    assert same(read_backbone(path, branch="target").tensors, bare(other_r50))


def test_a_killed_conversion_is_repeated_by_the_same_command(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(hidden: Path, out: Path) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out.pkl"
    with monkeypatch.context() as patch:
        patch.setattr("transfer.weights.conversion._move", killed)
        with pytest.raises(KeyboardInterrupt):
            convert(checkpoint, out, verify=False)
    assert not out.exists()
    convert(checkpoint, out, verify=False)
    assert len(read_converted(out)[0]) == 265


def test_an_earlier_output_stays_if_the_new_conversion_fails(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.pkl"
    convert(checkpoint, out, verify=False)
    before = out.read_bytes()
    monkeypatch.setattr(verify, "TOLERANCE", -1.0)
    with pytest.raises(UserError, match="features differ"):
        convert(checkpoint, out)
    assert out.read_bytes() == before
