"""What is settled and refused before a trial starts: weights, preprocessing, norm, classes, scaling, processes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ssl_transfer.errors import UserError
from ssl_transfer.formats.backbone import MSRA, TORCHVISION
from transfer.engine.config import LoadedConfig, load_config, scale_to_processes
from transfer.engine.guards import check_model, images_per_statistic, resolve_norm
from transfer.engine.prepare import TrialRequest, prepare, resolve_preprocessing
from transfer.engine.result import comparable

RequestFactory = Callable[..., TrialRequest]
CPU = ("MODEL.DEVICE", "cpu")


def loaded(root: Path, *words: str, task: str = "voc07") -> LoadedConfig:
    return load_config(root / f"configs/transfer/{task}.yaml", overrides=(*CPU, *words))


def test_scratch_is_rgb_with_the_stride_on_the_3x3(make_request: RequestFactory) -> None:
    cfg = prepare(make_request())[0].cfg
    assert cfg.INPUT.FORMAT == "RGB" and not cfg.MODEL.RESNETS.STRIDE_IN_1X1 and cfg.MODEL.WEIGHTS == ""
    assert cfg.MODEL.PIXEL_MEAN == [123.675, 116.28, 103.53] and cfg.MODEL.PIXEL_STD == [58.395, 57.12, 57.375]


def test_the_preprocessing_block_is_set_as_a_whole(root: Path) -> None:
    found = loaded(root)
    resolve_preprocessing(found.cfg, MSRA, found.set_keys)
    assert found.cfg.INPUT.FORMAT == "BGR" and found.cfg.MODEL.RESNETS.STRIDE_IN_1X1
    assert found.cfg.MODEL.PIXEL_MEAN == [103.53, 116.28, 123.675] and found.cfg.MODEL.PIXEL_STD == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (("INPUT.FORMAT", "BGR"), "INPUT.FORMAT is BGR, but the weights need RGB"),
        (("MODEL.PIXEL_MEAN", "[103.53,116.28,123.675]"), "MODEL.PIXEL_MEAN"),
        (("MODEL.PIXEL_STD", "[1.0,1.0,1.0]"), "MODEL.PIXEL_STD"),
        (("MODEL.RESNETS.STRIDE_IN_1X1", "True"), "STRIDE_IN_1X1 is True, but the weights need False"),
    ],
)
def test_a_config_that_contradicts_the_weights_is_refused(
    make_request: RequestFactory, words: tuple[str, ...], key: str
) -> None:
    with pytest.raises(UserError, match=f"command line: .*{key}"):
        prepare(make_request(*words))


def test_a_config_may_repeat_the_weights_preprocessing(root: Path) -> None:
    found = loaded(root, "INPUT.FORMAT", "RGB", "MODEL.RESNETS.STRIDE_IN_1X1", "False")
    resolve_preprocessing(found.cfg, TORCHVISION, found.set_keys)
    assert list(TORCHVISION.std) == found.cfg.MODEL.PIXEL_STD


def test_a_single_process_trains_plain_bn_and_logs_it(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = loaded(root).cfg
    with caplog.at_level("INFO", logger="transfer"):
        resolve_norm(cfg, 1)
    assert cfg.MODEL.RESNETS.NORM == "BN" and "naiveSyncBN becomes BN" in caplog.text
    cfg = loaded(root).cfg
    resolve_norm(cfg, 2)
    assert cfg.MODEL.RESNETS.NORM == "naiveSyncBN"


@pytest.mark.parametrize("norm", ["FrozenBN", "GN", ""])
def test_a_norm_that_trains_no_batch_norm_is_refused(root: Path, norm: str) -> None:
    with pytest.raises(UserError, match=r"MODEL.RESNETS.NORM"):
        resolve_norm(loaded(root, "MODEL.RESNETS.NORM", norm or "''").cfg, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("MODEL.BACKBONE.FREEZE_AT", "2"),
            "FREEZE_AT 2 freezes a part of the backbone; .* set MODEL.BACKBONE.FREEZE_AT 0",
        ),
        (("MODEL.ROI_HEADS.NAME", "Res5ROIHeads"), "no extra norm after res5"),
        (("MODEL.ROI_HEADS.NAME", "Res5ROIHead"), "cannot build a detector .*Res5ROIHead"),
        (("MODEL.ROI_HEADS.NUM_CLASSES", "20"), "NUM_CLASSES is 20, but the task has 3 classes"),
        (("SOLVER.REFERENCE_WORLD_SIZE", "8"), "--reference-gpus N"),
        (("TRANSFER.CLASSES", "['bus']"), "is not one of the task's"),
        (("TRANSFER.CHECK_COUNTS", "True"), "voc_2007_trainval has 16 images, published with 5011"),
        (("DATASETS.TRAIN", "['voc_2007_trianval']"), "did you mean voc_2007_trainval"),
        (("MODEL.MASK_ON", "True"), r"\.jpg, object 1: has no segmentation"),
    ],
)
def test_what_the_protocol_forbids_is_refused_before_the_first_step(
    make_request: RequestFactory, words: tuple[str, ...], message: str
) -> None:
    request = make_request(*words)
    with pytest.raises(UserError, match=message):
        prepare(request)
    assert not request.output.exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"seed": -1}, "--seed -1"),
        ({"num_gpus": 0}, "--num-gpus 0: must be at least 1"),
        ({"num_gpus": 3}, "IMS_PER_BATCH 2 does not divide among 3 processes"),
        ({"reference_gpus": 3}, "--reference-gpus 3: a total batch of 2 does not divide"),
        ({"weights": "nowhere.pkl"}, "nowhere.pkl"),
        ({"weights": "zoo:moco_v2"}, "no such checkpoint"),
    ],
)
def test_a_request_that_cannot_be_is_refused(
    make_request: RequestFactory, more: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        prepare(make_request(**more))


def test_weights_that_were_not_converted_name_the_converter(make_request: RequestFactory, tmp_path: Path) -> None:
    torch.save({"state_dict": {"conv1.weight": torch.zeros(1)}}, tmp_path / "raw.pth")
    with pytest.raises(UserError, match=r"raw\.pth.*tools/convert\.py"):
        prepare(make_request(weights=str(tmp_path / "raw.pth")))


def test_a_folder_that_is_a_file_is_refused(make_request: RequestFactory, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file is a file"):
        prepare(make_request(output=tmp_path / "file"))


def test_masks_as_rle_ask_for_bitmasks(make_request: RequestFactory, toy_detection: Path, tmp_path: Path) -> None:
    import json

    shutil.copytree(toy_detection / "coco", tmp_path / "coco")
    file = tmp_path / "coco/annotations/instances_train2017.json"
    content = json.loads(file.read_text())
    crowd = next(a for a in content["annotations"] if a["iscrowd"])
    crowd["iscrowd"] = 0
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"is an RLE, not polygons; set INPUT.MASK_FORMAT bitmask"):
        prepare(make_request("TRANSFER.DATA_ROOT", str(tmp_path), task="coco"))
    prepare(make_request("TRANSFER.DATA_ROOT", str(tmp_path), "INPUT.MASK_FORMAT", "bitmask", task="coco"))


def test_a_norm_of_another_type_is_found(make_request: RequestFactory) -> None:
    from transfer.engine.trial import build_seeded_detector

    prepared, _ = prepare(make_request())
    model = build_seeded_detector(prepared.cfg)
    assert check_model(model, prepared.cfg)["norms"] == 54  # 53 of a ResNet-50 and the extra one
    model.backbone.res3[0].conv1.norm = torch.nn.SyncBatchNorm(8)  # type: ignore[index, union-attr]
    with pytest.raises(UserError, match=r"backbone\.res3\.0\.conv1\.norm is a SyncBatchNorm, not the BatchNorm2d"):
        check_model(model, prepared.cfg)


def test_fewer_gpus_change_batch_rate_and_schedule_together(root: Path) -> None:
    """The author's advice [moco issue 11]: batch 8, lr 0.01, twice the iterations."""
    cfg = loaded(root, task="voc0712").cfg
    scaled = scale_to_processes(cfg, reference_gpus=8, processes=4)
    assert (scaled.SOLVER.IMS_PER_BATCH, scaled.SOLVER.BASE_LR, scaled.SOLVER.MAX_ITER) == (8, 0.01, 48000)
    assert (scaled.SOLVER.STEPS, scaled.SOLVER.WARMUP_ITERS, scaled.SOLVER.REFERENCE_WORLD_SIZE) == (
        (36000, 44000),
        200,
        8,
    )
    assert cfg.SOLVER.IMS_PER_BATCH == 16
    assert "total batch is 8, not 16" in comparable(scaled, cfg, 4)["reasons"]


def test_the_recipe_s_number_of_gpus_changes_nothing(root: Path) -> None:
    cfg = loaded(root).cfg
    scaled = scale_to_processes(cfg, reference_gpus=8, processes=8)
    scaled.SOLVER.REFERENCE_WORLD_SIZE = 0
    assert scaled == cfg


@pytest.mark.parametrize(
    ("words", "processes", "reasons"),
    [
        ((), 8, []),
        ((), 1, []),  # one GPU that holds all 16 images
        (("MODEL.RESNETS.NORM", "SyncBN"), 4, []),
        (("MODEL.RESNETS.NORM", "BN"), 1, []),
        (
            ("SOLVER.BASE_LR", "0.1", "SOLVER.WARMUP_ITERS", "1000", "SOLVER.WARMUP_FACTOR", "0.333"),
            8,
            [],
        ),  # searched for each method
        (("MODEL.RESNETS.NORM", "BN"), 8, ["normalisation statistics cover 2 of the 16 images of a batch"]),
        (("SOLVER.IMS_PER_BATCH", "8"), 8, ["total batch is 8, not 16"]),
        (("SOLVER.MAX_ITER", "10"), 8, ["the task's protocol was changed: SOLVER.MAX_ITER is 10, not 9000"]),
        (
            ("TRANSFER.CHECK_COUNTS", "False"),
            8,
            ["the task's protocol was changed: TRANSFER.CHECK_COUNTS is False, not True"],
        ),
    ],
)
def test_comparable_and_its_reasons(root: Path, words: tuple[str, ...], processes: int, reasons: list[str]) -> None:
    found = loaded(root, *words)
    resolve_norm(found.cfg, processes)
    assert comparable(found.cfg, found.protocol, processes) == {"ok": not reasons, "reasons": reasons}


def test_statistics_cover_one_process_s_images_unless_synchronised(root: Path) -> None:
    assert images_per_statistic(loaded(root).cfg, 8) == 16
    assert images_per_statistic(loaded(root, "MODEL.RESNETS.NORM", "BN").cfg, 8) == 2
