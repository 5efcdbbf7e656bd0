"""Where a ResNet is in a file: detectors, wrappers, two encoders, unknown prefixes, shards; what its config says."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ssl_transfer.console import call_main
from ssl_transfer.errors import EXIT_OK, EXIT_USAGE, UserError
from ssl_transfer.formats.backbone import MSRA, TORCHVISION, Preprocessing
from ssl_transfer.formats.results import TransferResult
from tests.transfer.weights import recorded
from tests.transfer.weights.made_checkpoints import bare, heads, moco, prefixed, resnet, save, simsiam
from tools.convert import main
from transfer.experiment.fingerprints import WeightDigests
from transfer.weights.containers import read_checkpoint
from transfer.weights.converted import build_manifest
from transfer.weights.match import Match
from transfer.weights.normalize import choose_branch, find_layout, normalize_state_dict, read_backbone
from transfer.weights.public import resolve
from transfer.weights.readers.openmmlab_config import read_preprocessing
from transfer.weights.tensor_names import in_detector, to_detectron2

Tensors = dict[str, torch.Tensor]
BGR = TORCHVISION.model_copy(
    update={"channel_order": "BGR", "mean": TORCHVISION.mean[::-1], "std": TORCHVISION.std[::-1]}
)


def found(path: Path, wanted: Tensors, branch: str | None = None, **words: Any) -> Match:
    """The match, after comparing the chosen branch with the expected tensors, by memory's content."""
    match = find_layout(read_checkpoint(path), branch=branch, **words)
    tensors = match.branches[choose_branch(match, branch, str(path))]
    for name, tensor in bare(wanted).items():
        assert name in tensors and tensors[name].shape == tensor.shape, name
    for name in ("conv1.weight", "bn1.running_var", "layer2.0.downsample.0.weight", "layer4.2.conv3.weight"):
        assert torch.equal(tensors[name], wanted[name]), name
    return match


def refusal(path: Path, **words: Any) -> str:
    with pytest.raises(UserError) as error:
        find_layout(read_checkpoint(path), **words)
    assert "\n" not in str(error.value)
    return str(error.value)


def detector(tensors: Tensors, kind: str) -> Tensors:
    """A trained detector of Detectron2: C4 with this project's norm after res5, or FPN."""
    named = {to_detectron2(name): tensor for name, tensor in tensors.items()}
    if kind == "fpn":
        others = heads("backbone.fpn_lateral2.weight", "roi_heads.box_head.fc1.weight", "proposal_generator.a.weight")
        return {**prefixed(named, "backbone.bottom_up."), **others}
    others = heads("roi_heads.res5.norm.weight", "roi_heads.mask_head.deconv.weight", "proposal_generator.a.weight")
    return {**{in_detector(name): tensor for name, tensor in named.items()}, **others}


@pytest.mark.parametrize("kind", ["c4", "fpn"])
@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod.module."])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_trained_detectron2_model(kind: str, wrapper: str, frozen: bool, tmp_path: Path, r50: Tensors) -> None:
    tensors = bare(r50) if frozen else r50
    path = save(tmp_path / "model_final.pth", {"model": prefixed(detector(tensors, kind), wrapper), "iteration": 3})
    match = found(path, r50)
    assert match.layout == "detectron2" and match.preprocessing == TORCHVISION
    assert any("config.yaml" in line for line in match.warnings)
    names = [item.name for item in match.dropped]
    assert "proposal_generator.a.*" in names and not any("stem" in name or ".res" in name[10:15] for name in names)
    assert len(normalize_state_dict(read_checkpoint(path), match, "online").tensors) == 265


def test_an_incomplete_detector_is_refused(tmp_path: Path, r50: Tensors) -> None:
    tensors = detector(r50, "c4")
    del tensors["roi_heads.res5.1.conv2.weight"]
    with pytest.raises(UserError, match=r"1 are missing: layer4\.1\.conv2\.weight"):
        read_backbone(save(tmp_path / "model_final.pth", {"model": tensors}))


@pytest.mark.parametrize("kind", ["c4", "fpn", "torchvision", "detr"])
def test_frozen_norms_are_named_and_folded_ones_refused(kind: str, tmp_path: Path, r50: Tensors) -> None:
    """A norm without a counter was frozen; one that is the identity's holds no statistics."""
    prefix = {"torchvision": "backbone.body.", "detr": "backbone.0.body."}.get(kind)

    def model(tensors: Tensors) -> Path:
        state = detector(tensors, kind) if prefix is None else prefixed(tensors, prefix)
        return save(tmp_path / "model_final.pth", {"model": state})

    assert "frozen norms" in found(model(bare(r50)), r50).rule and "frozen" not in found(model(r50), r50).rule
    identity = {"running_mean": torch.zeros_like, "running_var": torch.ones_like}
    folded = {name: identity.get(name.rpartition(".")[2], torch.clone)(value) for name, value in bare(r50).items()}
    assert "statistics were folded away" in refusal(model(folded))
    folded["layer4.2.bn3.running_var"] = folded["layer4.2.bn3.running_var"] * 2
    assert find_layout(read_checkpoint(model(folded))).rule.count("frozen norms") == 1


def trial_result(folder: Path, **changes: Any) -> None:
    """What a trial of this project leaves beside its checkpoint."""
    weights = {"name": "simsiam", "path": "w.pkl", "sha256": "0" * 64, "manifest": {"toy": False}}
    content = {"status": "done", "task": "coco", "seed": 3, "toy": False, "metrics": None, "weights": weights}
    settings = {"iterations": 90000}
    TransferResult.parse({**content, "settings": settings, **changes}, "result.json").write(folder / "result.json")


@pytest.mark.parametrize("toy", [True, False])
def test_a_finished_trial_is_a_source(toy: bool, tmp_path: Path, r50: Tensors) -> None:
    """Its folder names the checkpoint at its end; whether it was a toy is not forgotten."""
    save(tmp_path / "model_final.pth", {"model": detector(r50, "c4")})
    trial_result(tmp_path, toy=toy)
    path, entry = resolve(str(tmp_path))
    assert path == str(tmp_path / "model_final.pth") and entry is None
    backbone = read_backbone(path)
    assert backbone.origin == {"method": "simsiam+coco", "iteration": 90000, "seed": 3, "toy": toy}
    assert build_manifest(backbone, str).toy is toy
    (tmp_path / "result.json").write_text('{"format": "another"}')
    assert read_backbone(path).origin is None
    (tmp_path / "model_final.pth").unlink()
    assert "model_final.pth" in refusal(Path(resolve(str(tmp_path))[0]))


def test_mmdetections_model_without_its_config_is_a_warning(tmp_path: Path, r50: Tensors) -> None:
    state = {**prefixed(r50, "backbone."), **heads("neck.fpn_convs.0.conv.weight", "rpn_head.rpn_conv.weight")}
    match = found(save(tmp_path / "lite.pth", {"state_dict": state, "meta": {}}), r50)
    assert match.layout == "openmmlab" and len(match.warnings) == 1 and "caffe" in match.warnings[0]


@pytest.mark.parametrize("name", ["backbone.0.body.layer4.2.bn3.running_var", "backbone.0.body.conv1.weight"])
def test_an_incomplete_detr_is_refused(name: str, tmp_path: Path, r50: Tensors) -> None:
    state = prefixed(bare(r50), "backbone.0.body.")
    del state[name]
    with pytest.raises(UserError, match=rf"1 are missing: {re.escape(name[16:])}"):
        read_backbone(save(tmp_path / "detr.pth", {"model": state}))


@pytest.mark.parametrize("block", [TORCHVISION, MSRA, BGR], ids=["torchvision", "msra", "bgr"])
@pytest.mark.parametrize("evidence", ["constants", "config.yaml", "both", "another's config.yaml"])
def test_a_trained_detectors_preprocessing(block: Preprocessing, evidence: str, tmp_path: Path, r50: Tensors) -> None:
    tensors = detector(r50, "fpn")
    if evidence != "config.yaml":
        tensors["pixel_mean"], tensors["pixel_std"] = (torch.tensor(v).view(3, 1, 1) for v in (block.mean, block.std))
    if evidence != "constants":
        written = block if evidence != "another's config.yaml" else block.model_copy(update={"mean": (1.0, 2.0, 3.0)})
        resnets = {"STRIDE_IN_1X1": written.stride_in_1x1}
        model = {"PIXEL_MEAN": list(written.mean), "PIXEL_STD": list(written.std), "RESNETS": resnets}
        config = {"MODEL": model, "INPUT": {"FORMAT": written.channel_order}}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    match = found(save(tmp_path / "model_final.pth", {"model": tensors}), r50)
    assert match.preprocessing == block and match.warnings == ()


def test_unknown_constants_of_a_detector_are_refused(tmp_path: Path, r50: Tensors) -> None:
    constants = {"pixel_mean": torch.full((3, 1, 1), 127.5), "pixel_std": torch.full((3, 1, 1), 127.5)}
    line = refusal(save(tmp_path / "model_final.pth", {"model": {**detector(r50, "fpn"), **constants}}))
    assert "127.5" in line and "config.yaml" in line


WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "model.")


def wrapped(tensors: Tensors, rng: random.Random) -> Tensors:
    """Every name behind one to three wrappers, and with transparent ones inside."""
    front = "".join(rng.choice(WRAPPERS) for _ in range(rng.randint(1, 3)))
    inside = rng.choice(["", "_fsdp_wrapped_module.", "_orig_mod.", "_checkpoint_wrapped_module."])
    return {front + re.sub(r"(layer\d\.)", rf"\1{inside}", name): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(n, marks=pytest.mark.slow) for n in range(6, 20))])
def test_wrappers_are_removed(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    name = rng.choice(["simsiam", "moco_v2", "lincls", "solo_byol", "torchvision", "mmpretrain_simsiam", "pixpro"])
    content, encoders = recorded.checkpoint(name)
    container = recorded.record(name)["state"][0]["container"]
    plain = content[container[0]] if container else content
    tensors = wrapped({k: v for k, v in plain.items() if isinstance(v, torch.Tensor)}, rng)
    content = {**content, container[0]: tensors} if container else tensors
    path = save(tmp_path / "wrapped.pth", content)
    match = found(path, next(iter(encoders.values())))
    assert (
        match.layout in (name.split("_")[0], "lincls", "torchvision", "openmmlab") and "wrappers removed" in match.rule
    )


def test_names_that_differ_only_in_wrappers_are_refused(tmp_path: Path, r50: Tensors) -> None:
    both = {**prefixed(r50, "_orig_mod.x."), **prefixed(resnet(seed=1), "module.x.")}
    line = refusal(save(tmp_path / "two.pth", {"state_dict": both}))
    assert "--prefix state_dict._orig_mod.x" in line and "--prefix state_dict.module.x" in line


@pytest.mark.parametrize(
    ("online", "target"),
    [
        (("state_dict", ""), ("state_dict_ema", "")),
        (("model", ""), ("model_ema", "module.")),
        (("model", "module."), ("model_ema", "module.module.")),
        (("state_dict", "model."), ("ema_state_dict", "model.")),
        (("state_dict", "module."), ("ema", "")),
        (("model", "_orig_mod."), ("ema_model", "")),
        (("student", ""), ("teacher", "")),
        (("student", "module."), ("teacher", "")),
        (("state_dict", "student."), ("state_dict", "teacher.")),
        (("state_dict", "online_model."), ("state_dict", "ema_model.")),
        (("state_dict", "model."), ("state_dict", "ema.")),
    ],
    ids=lambda place: ".".join(place).rstrip("."),
)
def test_a_moving_average_is_named_and_can_be_chosen(
    online: tuple[str, str],
    target: tuple[str, str],
    tmp_path: Path,
    r50: Tensors,
    other_r50: Tensors,
    capsys: pytest.CaptureFixture[str],
) -> None:
    content: dict[str, Any] = {"epoch": 3, "arch": "resnet50", online[0]: {}, target[0]: {}}
    content[online[0]].update(prefixed({**r50, "fc.weight": torch.ones(4, 4)}, online[1]))
    content[target[0]].update(prefixed(other_r50, target[1]))
    content[target[0]]["n_averaged"] = torch.tensor(5)
    path = save(tmp_path / "training.pth.tar", content)
    found(path, other_r50, branch="target")
    match = found(path, r50)
    assert match.default == "online" and all(part in match.rule for part in (online[0], target[0]))
    if target[0] not in ("state_dict_ema", "teacher"):
        return  # the command line takes a second
    assert call_main(main, [str(path), str(tmp_path / "out.pkl"), "--no-verify"]) == EXIT_OK
    out = capsys.readouterr().out
    assert "target encoder" in out and "--branch target" in out
    assert all(part in out.splitlines()[0] for part in (online[0], target[0]))


def test_every_other_resnet_is_listed(
    tmp_path: Path, r50: Tensors, other_r50: Tensors, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {**simsiam(r50), "judge": {"net": prefixed(other_r50, "body.")}, "old": resnet("resnet101", seed=2)}
    content["ema"] = {name: tensor for name, tensor in other_r50.items() if "running" not in name}
    path = save(tmp_path / "three.pth", content)
    assert call_main(main, [str(path), str(tmp_path / "out.pkl"), "--no-verify"]) == EXIT_OK
    out = capsys.readouterr().out
    assert "dropped: judge.net.body.* (another resnet50; --prefix judge.net.body reads it)" in out
    assert "dropped: old.* (another resnet101" in out and "dropped: ema.* (a ResNet that is incomplete" in out
    assert call_main(main, ["--inspect", str(path)]) == EXIT_OK
    assert "judge.net: body.* (resnet50)" in capsys.readouterr().out
    found(path, other_r50, prefix="judge.net.body")


@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(n, marks=pytest.mark.slow) for n in range(3, 12))])
def test_a_refusal_ends_in_commands_that_work(seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two to four ResNets at unknown places: each command of the error is run and reads its own one."""
    rng = random.Random(seed)
    words = ("a", "net", "tower", "left", "right", "stem1", "module", "0")
    places = {tuple(rng.choice(words) + "q" for _ in range(rng.randint(1, 3))) for _ in range(rng.randint(2, 4))}
    content: dict[str, Any] = {}
    expected = {}
    for index, place in enumerate(sorted(places)):
        tensors = resnet(seed=index)
        depth = rng.randint(1, len(place))
        node = content
        for key in place[:depth]:
            node = node.setdefault(f"{key}{index}", {})
        node.update(prefixed(tensors, "".join(f"{part}." for part in place[depth:])))
        expected[".".join((*(f"{key}{index}" for key in place[:depth]), *place[depth:]))] = tensors
    path = save(tmp_path / "unknown.pth", content)
    commands = re.findall(r"--prefix (\S+?)(?: or|$)", refusal(path))
    assert sorted(set(commands)) == sorted(expected)
    for place in commands:
        found(path, expected[place], prefix=place)
        found(path, expected[place], prefix=place + ".*")


def test_prefixes_of_other_namings_and_wrong_ones(
    tmp_path: Path, r50: Tensors, other_r50: Tensors, capsys: pytest.CaptureFixture[str]
) -> None:
    named = {recorded._transformers(name): tensor for name, tensor in bare(r50).items()}
    both = {"state_dict": {**prefixed(named, "encoder.hf."), **prefixed(detector(other_r50, "c4"), "d2.")}}
    path = save(tmp_path / "namings.pth", both)
    found(path, r50, prefix="encoder.hf.")
    match = found(path, other_r50, prefix="d2.backbone")
    assert any("config.yaml" in line for line in match.warnings)
    line = refusal(path, prefix="encoder")
    assert "no ResNet at --prefix encoder;" in line and "--prefix state_dict.d2.backbone" in line
    out = str(tmp_path / "out.pkl")
    assert call_main(main, [str(path), out, "--prefix", "encoder.hf", "--source", "moco"]) == EXIT_USAGE
    assert "give one of them" in capsys.readouterr().err
    assert call_main(main, [str(path), out, "--prefix", "encoder.hf", "--branch", "target", "--no-verify"]) == EXIT_OK
    assert "any, target (--prefix: state_dict: encoder.hf.*)" in capsys.readouterr().out
    small = {"net": prefixed({k: v for k, v in r50.items() if "conv3" not in k}, "x.")}
    with pytest.raises(UserError, match=r"86 tensors more than a resnet34 has"):
        read_backbone(save(tmp_path / "small.pth", small), prefix="x")


def test_the_same_prefix_in_two_containers(tmp_path: Path, r50: Tensors, other_r50: Tensors) -> None:
    path = save(tmp_path / "two.pth", {"a": prefixed(r50, "x."), "b": prefixed(other_r50, "x.")})
    line = refusal(path, prefix="x")
    assert "--prefix a.x or --prefix b.x" in line
    found(path, other_r50, prefix="b: x.*")


def test_near_misses_stay_refused(tmp_path: Path, r50: Tensors) -> None:
    for prefix in ("module.encoder_z.", "student.body.", "wrapper.", "modules.", "my_model."):
        assert "no known layout" in refusal(save(tmp_path / "x.pth", {"state_dict": prefixed(r50, prefix)}))
    assert "no encoder" not in refusal(save(tmp_path / "x.pth", {"teacher": {"a": torch.ones(1)}, "student": {}}))


CAFFE = {"mean": [103.53, 116.28, 123.675], "std": [1.0, 1.0, 1.0]}
PYTORCH = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
SMALL = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def config_2x(style: str, constants: dict[str, Any], **rgb: bool) -> dict[str, Any]:
    """mmdet 2.x: a variable and the pipelines that use it."""
    norm = {**constants, **rgb}
    pipeline = [{"type": "LoadImageFromFile"}, {"type": "Normalize", **norm}]
    backbone = {"type": "ResNet", "depth": 50, "style": style, "norm_eval": True}
    return {"model": {"backbone": backbone}, "img_norm_cfg": norm, "data": {"train": {"pipeline": pipeline}}}


def config_3x(style: str | None, constants: dict[str, Any], **rgb: bool) -> dict[str, Any]:
    """mmdet 3.x and mmpretrain: a data preprocessor."""
    backbone = {"type": "ResNet", "depth": 50, **({} if style is None else {"style": style})}
    preprocessor = {"type": "DetDataPreprocessor", **constants, **rgb, "pad_mask": True}
    return {"model": {"data_preprocessor": preprocessor, "backbone": backbone}}


def as_python(value: Any, outer: bool = True) -> str:
    """mmcv's text: assignments of dict(...) calls."""
    if isinstance(value, dict):
        parts = [f"{key}={as_python(inner, False)}" for key, inner in value.items()]
        return "\n".join(parts) + "\n" if outer else f"dict({', '.join(parts)})"
    return f"[{', '.join(as_python(item, False) for item in value)}]" if isinstance(value, list) else repr(value)


class ConfigDict(dict):  # type: ignore[type-arg]
    """A foreign subclass of dict, as mmengine's."""


def deep(value: Any) -> Any:
    if isinstance(value, dict):
        return ConfigDict({key: deep(inner) for key, inner in value.items()})
    return [deep(item) for item in value] if isinstance(value, list) else value


class Config:
    """mmengine's: the dict is a part of its state."""

    def __init__(self, content: Any) -> None:
        self.content = content

    def __getstate__(self) -> Any:
        return deep(self.content), "config.py", "text", None

    def __setstate__(self, state: Any) -> None:
        self.content = state[0]


FORMS = {
    "object": Config,
    "python": as_python,
    "json": json.dumps,
    "yaml": yaml.safe_dump,
    "dict": dict,
    "foreign": deep,
}
CAFFE_PYTORCH = MSRA.model_copy(update={"stride_in_1x1": False})


CONFIGS = [
    (config_2x("caffe", CAFFE, to_rgb=False), MSRA),
    (config_2x("pytorch", PYTORCH, to_rgb=True), TORCHVISION),
    (config_2x("pytorch", SMALL), TORCHVISION),
    (config_2x("pytorch", CAFFE, to_rgb=False), CAFFE_PYTORCH),
    (config_3x("caffe", CAFFE, bgr_to_rgb=False), MSRA),
    (config_3x("caffe", CAFFE), MSRA),
    (config_3x(None, PYTORCH, bgr_to_rgb=True), TORCHVISION),
    (config_3x("caffe", PYTORCH, to_rgb=True), TORCHVISION.model_copy(update={"stride_in_1x1": True})),
    ({"model": {"backbone": {"type": "ResNet"}}}, None),
]


@pytest.mark.parametrize("form", list(FORMS))
def test_every_form_of_a_config_is_read(form: str, tmp_path: Path) -> None:
    for key in ("config", "cfg"):
        for config, block in CONFIGS:
            meta = {"mmdet_version": "2.28.2", key: FORMS[form](config), "CLASSES": ("person",)}
            path = save(tmp_path / "meta.pth", {"meta": meta})
            assert read_preprocessing(read_checkpoint(path).tree["meta"], "file") == block


@pytest.mark.parametrize("index", range(len(CONFIGS)))
def test_the_config_in_meta_decides_the_preprocessing(index: int, tmp_path: Path, r50: Tensors) -> None:
    """In a detector, in a bare backbone and under a prefix."""
    config, block = CONFIGS[index]
    meta = {"mmdet_version": "2.28.2", "config": as_python(config)}
    state = {**prefixed(r50, "backbone."), **heads("neck.conv.weight", "rpn_head.conv.weight")}
    path = save(tmp_path / "mmdet.pth", {"meta": meta, "state_dict": state})
    wanted = block or TORCHVISION
    assert found(path, r50).preprocessing == wanted and found(path, r50, prefix="backbone").preprocessing == wanted
    assert found(save(tmp_path / "x.pth", {"meta": meta, "state_dict": r50}), r50).preprocessing == wanted


def test_a_config_that_decides_nothing_is_refused(tmp_path: Path, r50: Tensors) -> None:
    two = config_2x("caffe", CAFFE, to_rgb=False)
    two["test"] = {"type": "Normalize", **PYTORCH, "to_rgb": True}
    unknown = {"model": {"backbone": {"style": "caffe"}}}
    for config, words in ((two, "two preprocessings"), (unknown, "style is caffe"), (config_2x("odd", CAFFE), "odd")):
        meta = {"config": as_python(config)}
        line = refusal(save(tmp_path / "m.pth", {"meta": meta, "state_dict": prefixed(r50, "backbone.")}))
        assert words in line and "meta.config" in line and "no option converts" in line


def test_a_config_that_cannot_be_read_is_a_warning(tmp_path: Path, r50: Tensors) -> None:
    meta = {"config": "model = dict(backbone=dict(style='caffe')"}
    match = found(save(tmp_path / "m.pth", {"meta": meta, "state_dict": prefixed(r50, "backbone.")}), r50)
    assert len(match.warnings) == 1 and "config in meta" in match.warnings[0]


@pytest.mark.parametrize("text", ["(" * 5000, "a = " + "-" * 100_000 + "1", "{", "a: &a [*a]", "x = open('ran', 'w')"])
def test_a_hostile_config_is_ignored(text: str, tmp_path: Path, r50: Tensors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state = prefixed(r50, "backbone.")
    path = save(tmp_path / "m.pth", {"meta": {"config": text}, "state_dict": state})
    assert found(path, r50).preprocessing == TORCHVISION and not (tmp_path / "ran").exists()


def shards(folder: Path, tensors: Tensors, rng: random.Random, suffix: str = "safetensors") -> Path:
    """A sharded file of transformers and its index."""
    from safetensors.torch import save_file

    count = rng.randint(2, 4)
    places = {name: f"model-{rng.randrange(count) + 1:05d}-of-{count:05d}.{suffix}" for name in tensors}
    for shard in set(places.values()):
        part = {name: tensors[name].clone() for name, place in places.items() if place == shard}
        save_file(part, folder / shard) if suffix == "safetensors" else torch.save(part, folder / shard)
    index = folder / f"model.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}, indent=2))
    return index


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards(suffix: str, tmp_path: Path, r50: Tensors) -> None:
    named = {recorded._transformers(name): tensor for name, tensor in r50.items()}
    index = shards(tmp_path, {**prefixed(named, "resnet."), **heads("classifier.1.weight")}, random.Random(1), suffix)
    assert found(index, r50).layout == "transformers"
    before = read_checkpoint(index).sha256
    assert WeightDigests(tmp_path).of(index) == before
    part = next(iter(sorted(tmp_path.glob(f"model-*.{suffix}"))))
    with pytest.raises(UserError, match=r"one of several shards: name the \.index\.json"):
        read_backbone(part)
    content = {key: value.clone() for key, value in read_checkpoint(part).tensors().items()}
    name = next(iter(content))
    other = {key: value for key, value in content.items() if key != name}
    from safetensors.torch import save_file

    def write(tensors: Tensors) -> None:
        save_file(tensors, part) if suffix == "safetensors" else torch.save(tensors, part)

    write({**other, name: content[name] + 1})
    assert read_checkpoint(index).sha256 != before
    write(other)
    with pytest.raises(UserError, match=re.escape(name)):
        read_checkpoint(index)
    write({**content, "conv_of_another.weight": torch.ones(1)})
    with pytest.raises(UserError, match=rf"{part.name} holds conv_of_another\.weight"):
        read_checkpoint(index)
    part.unlink()
    with pytest.raises(UserError, match=rf"shard {part.name}, which is not beside it"):
        read_checkpoint(index)


@pytest.mark.parametrize(
    "text", ["{", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "x", "a": "y"}}']
)
def test_a_damaged_index(text: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"index\.json"):
        read_checkpoint(path)


def test_an_object_with_a_second_network_is_listed(
    tmp_path: Path, r50: Tensors, capsys: pytest.CaptureFixture[str]
) -> None:
    module = torch.nn.Linear(3, 3)
    path = save(tmp_path / "ema.pth", {**moco(r50, resnet(seed=1)), "ema": module})
    assert call_main(main, [str(path), str(tmp_path / "out.pkl"), "--no-verify"]) == EXIT_OK
    assert (
        "dropped: ema (object of torch.nn.modules.linear.Linear with 2 tensors, not opened)" in capsys.readouterr().out
    )


@pytest.mark.parametrize("trust", [True, False])
def test_a_state_dict_in_a_list_or_a_tuple(trust: bool, tmp_path: Path, r50: Tensors, other_r50: Tensors) -> None:
    for index, content in enumerate(([r50, 3], (3, r50), {"nets": [other_r50, {"w": prefixed(r50, "x.")}]})):
        path = save(tmp_path / f"{index}.pth", content)
        place = re.findall(r"--prefix (\S+)", refusal(path))[-1]
        assert place == ("0", "1", "nets.1.w.x")[index]
        match = find_layout(read_checkpoint(path, trust), prefix=place)
        assert torch.equal(match.branches["online"]["conv1.weight"], r50["conv1.weight"])


def test_the_unprefixed_names_of_the_file_itself(tmp_path: Path, r50: Tensors, other_r50: Tensors) -> None:
    path = save(tmp_path / "both.pth", {**other_r50, "weights": r50})
    found(path, r50, prefix="weights")
    found(path, other_r50, prefix=".")


def test_the_work_for_many_beginnings_of_resnets_is_proportional_to_them(
    tmp_path: Path, count_lines: Callable[[Callable[[], object]], int]
) -> None:
    def lines(count: int) -> int:
        parts = ("conv1.weight", "bn1.weight", "layer1.0.conv1.weight")
        path = save(tmp_path / "many.pth", {f"p{n}.{part}": torch.ones(1) for n in range(count) for part in parts})
        return count_lines(lambda: check_refused(path))

    def check_refused(path: Path) -> None:
        assert "no known layout" in refusal(path)

    assert lines(1000) < 15 * lines(100), "a quadratic search runs a hundred times as many"


def test_a_damaged_resnet_beside_a_good_one(tmp_path: Path, r50: Tensors, other_r50: Tensors) -> None:
    """The error names the options that work, and only those."""
    damaged = {**r50, "bn1.weight": torch.full((64,), float("nan"))}
    path = save(tmp_path / "moco.pth", {**moco(damaged, other_r50), "third": damaged, "fourth": resnet(seed=2)})
    with pytest.raises(UserError, match="NaN") as error:
        read_backbone(path)
    options = re.findall(r"--(branch|prefix) (\S+)", str(error.value))
    assert ("branch", "target") in options and ("prefix", "fourth") in options and ("prefix", "third") not in options
    for option, value in options:
        assert len(read_backbone(path, **{option: value}).tensors) == 265
    with pytest.raises(UserError, match="no option converts this file"):
        read_backbone(save(tmp_path / "one.pth", simsiam(damaged)))
