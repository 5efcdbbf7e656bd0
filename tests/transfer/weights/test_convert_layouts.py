"""Every layout with its repository's own names is recognised, converted and verified, each branch as itself."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_transfer.errors import UserError
from ssl_transfer.formats.backbone import MSRA, TORCHVISION
from tests.transfer.weights import layout_table, recorded
from tests.transfer.weights.made_checkpoints import bare, heads, moco, prefixed, resnet, same, save, simsiam
from transfer.weights.containers import read_checkpoint
from transfer.weights.conversion import convert
from transfer.weights.converted import build_manifest, read_converted
from transfer.weights.normalize import choose_branch, find_layout, normalize_state_dict, read_backbone
from transfer.weights.readers import LAYOUTS, LAYOUTS_BY_NAME
from transfer.weights.resnet import counter_names, tensor_shapes
from transfer.weights.tensor_names import to_torchvision

pytestmark = pytest.mark.usefixtures("shared_detectors")

TARGETS = ("momentum_encoder", "encoder_k", "teacher", "target", "model_ema", "key_backbone", "momentum_backbone")


def write_checkpoint(name: str, folder: Path) -> tuple[Path, dict[str, dict[str, torch.Tensor]]]:
    """A checkpoint file of a recorded layout, and the encoders in it."""
    content, encoders = recorded.checkpoint(name)
    if recorded.record(name)["layout"] in ("caffe2", "detectron2") and "iteration" not in content:
        path = folder / f"{name}.pkl"
        path.write_bytes(pickle.dumps(_arrays(content), protocol=2))
        return path, encoders
    return save(folder / f"{name}.pth.tar", content), encoders


def _arrays(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _arrays(inner) for key, inner in value.items()}
    return np.ascontiguousarray(value.numpy()) if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("name", recorded.names())
def test_a_recorded_layout_is_recognised_and_its_branches_are_not_confused(name: str, tmp_path: Path) -> None:
    source, encoders = write_checkpoint(name, tmp_path)
    stored = recorded.record(name)
    content = read_checkpoint(source)
    match = find_layout(content)
    assert match.layout == stored["layout"] and match.default == ("target" if match.layout == "dino" else "online")
    for branch in ("online", "target"):
        present = [key for key in encoders if any(mark in key for mark in TARGETS) == (branch == "target")]
        assert (branch in match.branches) == bool(present)
        if present:
            backbone = normalize_state_dict(content, match, choose_branch(match, branch, str(source)))
            assert any(same(backbone.tensors, encoders[key]) for key in present)
            assert backbone.preprocessing == (MSRA if match.layout == "caffe2" else TORCHVISION)
        else:
            with pytest.raises(UserError, match=f"has no {branch} encoder"):
                choose_branch(match, branch, str(source))


QUICK = ("simsiam", "caffe2_msra")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in recorded.names()]
)
def test_a_recorded_layout_is_converted_and_verified(name: str, tmp_path: Path) -> None:
    source, encoders = write_checkpoint(name, tmp_path)
    done = convert(source, tmp_path / "out.pkl")
    assert done.proof is not None and done.proof.tensors == "265/265"
    got = {to_torchvision(key): value for key, value in read_converted(tmp_path / "out.pkl")[0].items()}
    assert any(same(got, tensors) for tensors in encoders.values())


def test_every_layout_has_a_recorded_checkpoint() -> None:
    """Each layout is tested with its own names; the two exceptions have no names of another repository."""
    assert {recorded.record(name)["layout"] for name in recorded.names()} == set(LAYOUTS) - {"own", "same_padding"}
    assert all(layout.name == name for name, layout in LAYOUTS_BY_NAME.items())


def test_dropped_tensors_are_listed_with_the_reason(tmp_path: Path) -> None:
    source, _ = write_checkpoint("moco_v2", tmp_path)
    dropped = {item.name: item.why for item in read_backbone(source).dropped}
    assert dropped["module.encoder_q.fc.*"] == "projector"
    assert dropped["module.queue"] == "queue"
    assert dropped["target encoder"] == "momentum branch"
    assert dropped["*.num_batches_tracked"].startswith("counter")


def test_an_ambiguous_file_is_refused_and_its_layouts_are_named(tmp_path: Path) -> None:
    both = {**simsiam(resnet())["state_dict"], **moco(resnet(seed=1), resnet(seed=2))["state_dict"]}
    source = save(tmp_path / "both.pth", {"state_dict": both})
    with pytest.raises(UserError, match=r"2 layouts.*--source simsiam.*--source moco") as refusal:
        read_backbone(source)
    assert "\n" not in str(refusal.value)
    assert same(read_backbone(source, source="moco").tensors, bare(resnet(seed=1)))


def test_an_unknown_prefix_is_read_only_with_source_any(tmp_path: Path) -> None:
    source = save(tmp_path / "unknown.pth", {"weights": prefixed(resnet(), "student.body.")})
    with pytest.raises(UserError, match=r"resnet50 in weights: student\.body\.\*; .*--source any"):
        read_backbone(source)
    assert same(read_backbone(source, source="any").tensors, bare(resnet()))
    two = save(tmp_path / "two.pth", {**prefixed(resnet(), "a."), **prefixed(resnet(seed=1), "b.")})
    with pytest.raises(UserError, match=r"2 ResNets: the file: a\.\*, the file: b\.\*"):
        read_backbone(two, source="any")


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["resnet101", "resnet152"])
def test_deeper_nets(arch: str, tmp_path: Path) -> None:
    tensors = resnet(arch)
    source = save(tmp_path / "deep.pth", {**tensors, **heads("fc.weight")})
    done = convert(source, tmp_path / "out.pkl")
    assert done.arch == arch and done.proof is not None
    assert done.proof.tensors == f"{len(bare(tensors))}/{len(bare(tensors))}"


@pytest.mark.parametrize("suffix", [".pth", pytest.param(".safetensors", marks=pytest.mark.slow)])
def test_converting_back_gives_the_same_bits(suffix: str, tmp_path: Path) -> None:
    tensors = resnet()
    source = save(tmp_path / "checkpoint.pth.tar", simsiam(tensors))
    convert(source, tmp_path / "first.pkl")
    back = convert(tmp_path / "first.pkl", tmp_path / f"back{suffix}")
    assert back.proof is not None and back.proof.torchvision_load == "exact"
    assert same(read_backbone(tmp_path / f"back{suffix}").tensors, bare(tensors))
    again = convert(tmp_path / f"back{suffix}", tmp_path / "second.pkl")
    assert again.tensors == read_converted(tmp_path / "first.pkl")[1].tensors


def test_torchvision_itself_loads_the_pth(tmp_path: Path) -> None:
    import torchvision

    tensors = resnet()
    convert(save(tmp_path / "in.pth.tar", simsiam(tensors)), tmp_path / "out.pth", verify=False)
    state = torch.load(tmp_path / "out.pth", weights_only=True)
    net = torchvision.models.resnet50()
    missing = net.load_state_dict(state, strict=False)
    assert missing.missing_keys == ["fc.weight", "fc.bias"] and missing.unexpected_keys == []
    assert torch.equal(net.layer3[4].conv2.weight, tensors["layer3.4.conv2.weight"])


def test_caffe_weights_are_not_written_under_torchvisions_names(tmp_path: Path) -> None:
    source, _ = write_checkpoint("caffe2_msra", tmp_path)
    for name in ("out.pth", "out.safetensors"):
        with pytest.raises(UserError, match=r"1×1.*--to detectron2"):
            convert(source, tmp_path / name)


def test_caffe_weights_with_folded_norms_are_refused(tmp_path: Path) -> None:
    content, _ = recorded.checkpoint("caffe2_msra")
    folded = {k.replace("gamma", "s").replace("beta", "b"): v for k, v in content.items() if "running" not in k}
    source = tmp_path / "R-50.pkl"
    source.write_bytes(pickle.dumps({"blobs": _arrays(folded)}, protocol=2))
    with pytest.raises(UserError, match="folded"):
        read_backbone(source)


def test_a_bias_before_caffes_first_norm_is_a_warning(tmp_path: Path) -> None:
    content, _ = recorded.checkpoint("caffe2_msra")
    source = tmp_path / "R-50.pkl"
    source.write_bytes(pickle.dumps(_arrays({**content, "conv1_b": torch.full((64,), 0.25)}), protocol=2))
    assert any("conv1_b is not zero (largest 0.25)" in line for line in read_backbone(source).warnings)


def test_detectron2_names_without_an_author(tmp_path: Path) -> None:
    content, _ = recorded.checkpoint("detectron2")
    source = tmp_path / "flat.pkl"
    source.write_bytes(pickle.dumps(_arrays(content["model"]), protocol=4))
    backbone = read_backbone(source)
    assert "no __author__" in backbone.source.rule and any("Caffe2" in line for line in backbone.warnings)


def test_the_output_of_mocos_own_converter(tmp_path: Path) -> None:
    """It renames `fc` to `stem.fc` and keeps the counters."""
    content, encoders = recorded.checkpoint("detectron2")
    model = {**_arrays(content["model"]), "stem.fc.0.weight": np.zeros((2048, 2048), np.float32)}
    source = tmp_path / "moco.pkl"
    source.write_bytes(pickle.dumps({"model": model, "__author__": "MOCO", "matching_heuristics": True}))
    backbone = read_backbone(source)
    assert same(backbone.tensors, next(iter(encoders.values())))
    assert [(item.name, item.why) for item in backbone.dropped] == [("stem.fc.0.*", "projector")]


@pytest.mark.parametrize("layout", ["torchvision", "caffe2_msra", "detectron2"])
def test_npz(layout: str, tmp_path: Path) -> None:
    content, encoders = recorded.checkpoint(layout)
    source = tmp_path / "weights.npz"
    np.savez(source, **_arrays(content.get("model", content)))
    backbone = read_backbone(source)
    assert backbone.source.layout == recorded.record(layout)["layout"]
    assert same(backbone.tensors, next(iter(encoders.values())))


def test_safetensors_with_a_first_byte_as_in_a_pickle(tmp_path: Path) -> None:
    from safetensors.torch import save

    tensors = resnet(seed=3)
    content = save({name: tensor.clone() for name, tensor in tensors.items()})
    size = int.from_bytes(content[:8], "little")
    padding = (0x80 - size) % 256
    header = (size + padding).to_bytes(8, "little") + content[8 : 8 + size] + b" " * padding
    assert header[:1] == b"\x80"
    (tmp_path / "weights").write_bytes(header + content[8 + size :])
    assert same(read_backbone(tmp_path / "weights").tensors, bare(tensors))


def test_plain_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {name: tensor.clone() for name, tensor in resnet().items()}
    save_file(tensors, tmp_path / "timm.safetensors")
    assert same(read_backbone(tmp_path / "timm.safetensors").tensors, bare(tensors))


@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
def test_half_precision_weights_are_converted_up_and_listed(dtype: torch.dtype, tmp_path: Path) -> None:
    narrow = {k: v.to(dtype) if v.is_floating_point() else v for k, v in resnet().items()}
    done = convert(save(tmp_path / "half.pth.tar", simsiam(narrow)), tmp_path / "out.pkl")
    assert len(done.converted_up) == 265
    got = {to_torchvision(key): value for key, value in read_converted(tmp_path / "out.pkl")[0].items()}
    assert same(got, {name: tensor.float() for name, tensor in bare(narrow).items()})


def test_double_precision_weights_are_rounded_with_a_warning(tmp_path: Path) -> None:
    wide = {k: v.double() if v.is_floating_point() else v for k, v in resnet().items()}
    backbone = read_backbone(save(tmp_path / "double.pth.tar", simsiam(wide)))
    assert same(backbone.tensors, bare(resnet()))
    assert any("rounded to float32" in line for line in backbone.warnings)


def test_dead_channels_are_a_warning(tmp_path: Path) -> None:
    tensors = resnet()
    tensors["layer4.2.bn3.running_var"] = tensors["layer4.2.bn3.running_var"].clone()
    tensors["layer4.2.bn3.running_var"][:3] = 0
    backbone = read_backbone(save(tmp_path / "dead.pth.tar", simsiam(tensors)))
    assert backbone.warnings == ["layer4.2.bn3.running_var: variance 0 in 3 of 2048 channels (dead channels)"]


@pytest.mark.parametrize(
    "tree",
    [
        {"experiment_state": {"online_params": {"res_net50/~/initial_conv": {"w": np.zeros((7, 7, 3, 64), "f4")}}}},
        {"base_model/conv2d/kernel": np.zeros((7, 7, 3, 64), "f4")},
    ],
    ids=["byol jax", "simclr tf"],
)
def test_networks_with_same_padding_are_refused(tree: Any, tmp_path: Path) -> None:
    source = tmp_path / "pretrain_res50x1.pkl"
    source.write_bytes(pickle.dumps(tree))
    with pytest.raises(UserError, match=r"TensorFlow \((res_net50/~/initial_conv|base_model/conv2d/kernel)\): .*SAME"):
        read_backbone(source)


def test_other_preprocessing_constants_are_refused(tmp_path: Path) -> None:
    content, _ = recorded.checkpoint("mmselfsup_0x")
    content["state_dict"]["data_preprocessor.mean"] = torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1)
    with pytest.raises(UserError, match=r"data_preprocessor\.mean is \[103\.53"):
        read_backbone(save(tmp_path / "bgr.pth", content))


def test_the_table_in_the_docs_is_up_to_date() -> None:
    """`python -m tests.transfer.weights.layout_table` updates it; the reading itself is tested above."""
    made = layout_table.table(dict.fromkeys(recorded.names(), "265/265"))
    assert layout_table.in_docs(layout_table.DOCS.read_text()) == made


def test_a_backbone_file_of_pre_training_is_read(tmp_path: Path) -> None:
    """It has an origin and no manifest."""
    from safetensors.torch import save_file

    metadata = {
        "format": "backbone/1",
        "arch": "resnet50",
        "branch": "target",
        "origin": '{"method": "byol", "toy": true}',
    }
    tensors = {name: tensor.clone() for name, tensor in bare(resnet()).items()}
    path = tmp_path / "backbone.safetensors"
    save_file(tensors, path, {**metadata, "preprocessing": json.dumps(TORCHVISION.as_dict())})
    backbone = read_backbone(path)
    assert same(backbone.tensors, tensors) and backbone.source.branch == "target"
    assert build_manifest(backbone, str).toy is True and backbone.origin == {"method": "byol", "toy": True}
    for key, value, message in (
        ("preprocessing", "{", "preprocessing: is not JSON"),
        ("preprocessing", '{"channel_order": "GBR"}', "preprocessing.channel_order: .*'RGB' or 'BGR', not 'GBR'"),
        (
            "preprocessing",
            '{"channle_order": "RGB"}',
            "preprocessing.channle_order: unknown key; did you mean channel_order",
        ),
        ("branch", "both", "branch: .*'online' or 'target', not 'both'"),
        ("arch", "resnet18_cifar", "resnet18_cifar"),
    ):
        save_file(tensors, path, {**metadata, "preprocessing": json.dumps(TORCHVISION.as_dict()), key: value})
        with pytest.raises(UserError, match=message):
            read_backbone(path)


@pytest.mark.parametrize("arch", ["resnet50", "resnet101", "resnet152"])
def test_names_and_shapes_are_torchvisions(arch: str) -> None:
    import torchvision

    with torch.device("meta"):
        state = getattr(torchvision.models, arch)().state_dict()
    body = {name: tuple(tensor.shape) for name, tensor in state.items() if not name.startswith("fc.")}
    shapes, counters = tensor_shapes(arch), counter_names(arch)
    assert {**shapes, **dict.fromkeys(counters, ())} == body
    expected = {"resnet50": (265, 53), "resnet101": (520, 104), "resnet152": (775, 155)}
    assert (len(shapes), len(counters)) == expected[arch]
