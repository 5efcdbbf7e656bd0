"""Result files: what a pre-training run, an evaluation, a fine-tuning trial and a learning-rate search leave behind.

Fields are declared in the order in which they are written. Only fields that every reader needs are required. The others
have a default, because not every run has them and files of earlier versions may lack them.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field

from ssl_transfer.formats import FileFormat, SealedFormat

PRETRAIN: Final = "pretrain-result/1"
EVALUATION: Final = "evaluation-result/1"
TRANSFER: Final = "transfer-result/1"
LR_SEARCH: Final = "lr-search/1"
AP_TOLERANCE: Final = 1e-3
"""How far, in per cent, rounding may take an AP from the mean of its classes."""
RESULT_FILE, LR_SEARCH_FILE = "result.json", "lr_search.json"
FINAL_CHECKPOINT = "model_final.pth"
"""What Detectron2 and this project call the checkpoint at the end of a training."""

Name = Annotated[str, Field(min_length=1)]
# VOC 2007's metric sums eleven rounded parts: a perfect detector has an AP of 100.00000000000003.
Percent = Annotated[float, Field(ge=0, le=100 + 1e-9, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Divergence(FileFormat):
    """Where a run diverged."""

    iteration: int | None = Field(default=None, description="iteration at which it diverged")
    lr: float | None = Field(default=None, description="learning rate at that iteration")
    what: str | None = Field(default=None, description="what is no longer finite, such as `loss_rpn_cls is NaN`")


class Comparable(FileFormat):
    """Whether a result compares with the published protocol."""

    ok: bool = Field(default=True, description="true where nothing speaks against the comparison")
    reasons: list[str] = Field(default=[], description="every reason why it does not compare; empty where `ok` is true")


class CollapseAlarm(FileFormat):
    """The collapse alarm's record."""

    iteration: int = Field(description="iteration of the first alarm")
    std: float = Field(description="std of the normalised output at the first alarm")
    lowest: float = Field(description="lowest std while the alarm was raised")


class PretrainResult(SealedFormat):
    """`result.json` of a pre-training run, written last of all when the run is finished."""

    format: Literal["pretrain-result/1"] = Field(default=PRETRAIN, description="format and its version")
    status: Name = Field(description="`done`")
    method: Name = Field(description="METHOD of the config")
    recipe: str | None = Field(default=None, description="the run's name in the report; `method` by default")
    arch: str | None = Field(default=None, description="the backbone, such as `resnet50`")
    epochs: int | None = Field(default=None, description="epochs trained")
    iterations: int | None = Field(default=None, description="iterations trained")
    dim: int | None = Field(default=None, description="width of the embedding")
    final: dict[str, float] | None = Field(default=None, description="last metrics: `loss`, `std` and the method's own")
    std_alarm: CollapseAlarm | None = Field(default=None, description="the collapse alarm; null if never raised")
    seconds: float | None = Field(default=None, description="wall-clock seconds of training, over all resumed parts")
    classes: int | None = Field(default=None, description="number of classes (methods trained on labels)")
    validation: dict[str, float] | None = Field(
        default=None,
        description="`val_top1`, `val_top5` in per cent at the end (methods trained on labels); null if not measured",
    )
    backbone: str | None = Field(default=None, description="file name of the backbone file")
    backbone_sha256: str | None = Field(default=None, description="SHA-256 of the backbone file")
    backbone_target: str | None = Field(default=None, description="backbone file of the momentum encoder")
    backbone_target_sha256: str | None = Field(default=None, description="SHA-256 of that file")
    toy: bool = Field(default=False, description="true if made with an overlay that shrinks the run")
    num_processes: int | None = Field(default=None, description="number of processes")
    environment: dict[str, Any] = Field(default={}, description="versions, commit, host and devices")


class EvaluatedWeights(FileFormat):
    """The backbone file that was evaluated."""

    name: str | None = Field(default=None, description="the weights' name")
    path: str | None = Field(default=None, description="the backbone file")
    sha256: str | None = Field(default=None, description="SHA-256 of the backbone file")
    arch: str | None = Field(default=None, description="the backbone, such as `resnet50`")
    origin: dict[str, Any] | None = Field(
        default=None, description="`origin` of the backbone file; with `declared: true` where the user gave the epochs"
    )


class EvaluationResult(SealedFormat):
    """`result.json` of an evaluation of a frozen backbone (kNN, linear or roi)."""

    format: Literal["evaluation-result/1"] = Field(default=EVALUATION, description="format and its version")
    status: Literal["done", "diverged"] = Field(description="how the evaluation ended")
    kind: Name = Field(description="`linear`, `knn` or `roi`")
    seed: int | None = Field(default=None, description="SEED of the config")
    toy: bool = Field(description="true if the config, or the pre-training of the weights, is a toy")
    metrics: dict[str, float | None] | None = Field(
        default=None,
        description="`top1`, `top5` (6 classes or more), `best_top1`, of roi `res4_top1` and others, in per cent; "
        "null if it diverged",
    )
    divergence: Divergence | None = Field(default=None, description="where it diverged, else null")
    comparable: Comparable | None = Field(default=None, description="comparison with the protocol (linear alone)")
    settings: dict[str, Any] = Field(description="every config key read, `augmentation`, and the data set's sizes")
    weights: EvaluatedWeights = Field(description="the backbone file that was evaluated")
    config: dict[str, Any] = Field(default={}, description="`recipe` (config file's stem) and `data` (folder)")
    environment: dict[str, Any] = Field(default={}, description="versions, commit, host and devices")
    timing: dict[str, Any] = Field(default={}, description="`seconds`, wall-clock")


class BoxMetrics(FileFormat):
    """Average precision of one branch (boxes or masks), in per cent; null where it cannot be computed."""

    AP: Percent | None = Field(default=None, description="AP as the task's evaluator defines it")
    AP50: Percent | None = Field(default=None, description="AP at IoU 0.5")
    AP75: Percent | None = Field(default=None, description="AP at IoU 0.75")
    per_class: dict[str, float | None] | None = Field(default=None, description="AP of every class")


class TransferSettings(FileFormat):
    """Settings of a trial that the table shows or compares."""

    total_batch: int | None = Field(default=None, description="images of a batch, over all processes")
    lr: float | None = Field(default=None, description="base learning rate")
    iterations: int | None = Field(default=None, description="SOLVER.MAX_ITER")
    steps: list[int] | None = Field(default=None, description="iterations at which the learning rate drops")
    warmup_iters: int | None = Field(default=None, description="iterations of the warm-up")
    warmup_factor: float | None = Field(default=None, description="the warm-up starts at this share of `lr`")
    norm: str | None = Field(default=None, description="MODEL.RESNETS.NORM")
    precise_bn: str | None = Field(default=None, description="how BN statistics are recomputed; null if they are not")
    amp: bool | None = Field(default=None, description="mixed precision")
    evaluator: str | None = Field(default=None, description="the evaluator used")
    metric: str | None = Field(default=None, description="definition of AP: `voc2007`, `voc2012` or `coco`")
    train_splits: list[str] | None = Field(default=None, description="splits trained on")
    test_split: str | None = Field(default=None, description="split measured on; `<split>:heldout` for a held-out part")
    num_processes: int | None = Field(default=None, description="number of processes")
    reference_gpus: int | None = Field(default=None, description="SOLVER.REFERENCE_WORLD_SIZE; null if unset")


class TransferWeights(FileFormat):
    """The initial weights of a trial."""

    name: str | None = Field(default=None, description="`scratch`, the pre-training method, or the file's stem")
    path: str | None = Field(default=None, description="the converted file; null from scratch")
    sha256: str | None = Field(default=None, description="SHA-256 of the converted file; null from scratch")
    manifest: dict[str, Any] | None = Field(default=None, description="the file's manifest; null from scratch")


class HeldOutPart(FileFormat):
    """The part of the training images that candidates of a learning-rate search are measured on."""

    split: str = Field(description="the split it is taken from")
    fraction: float = Field(description="share of the images")
    seed: int = Field(description="seed of the selection")
    images: int = Field(description="number of images")
    sha256: str = Field(description="SHA-256 of the image ids in ascending order, one a line")


class SearchedLr(FileFormat):
    """The learning-rate search whose choice a trial uses."""

    file: str = Field(description="the record of the search")
    sha256: str = Field(description="SHA-256 of that file")
    chosen: float = Field(description="the chosen learning rate")
    row: str = Field(description="row of the search")
    task: str = Field(description="task of the search")
    seed: int = Field(description="seed of the candidates")
    split: str = Field(description="split the choice was made on")
    metric: str = Field(description="metric the choice was made by")


class DetectionsRecord(FileFormat):
    """The file of a trial's detections."""

    file: str = Field(description="its name, in the folder of the result")
    sha256: str = Field(description="SHA-256 of that file")


class TransferResult(SealedFormat):
    """`result.json` of a fine-tuning trial, written last of all when the trial is finished or has diverged."""

    format: Literal["transfer-result/1"] = Field(default=TRANSFER, description="format and its version")
    status: Literal["done", "diverged"] = Field(description="how the trial ended")
    task: Name = Field(description="the task: `voc07`, `coco`, … or a user's own")
    seed: int | None = Field(default=None, description="SEED of the config")
    toy: bool = Field(description="true if made with an overlay that shrinks the run")
    metrics: dict[str, BoxMetrics | None] | None = Field(
        description="`bbox` and, where masks are trained, `segm`; null if the trial diverged"
    )
    divergence: Divergence | None = Field(default=None, description="where it diverged, else null")
    comparable: Comparable = Field(default=Comparable(), description="comparison with the published protocol")
    settings: TransferSettings = Field(description="settings that the table shows or compares")
    weights: TransferWeights = Field(description="the initial weights")
    config: dict[str, Any] = Field(default={}, description="`file`, `overrides` and `overlay` of the config")
    guards: dict[str, Any] = Field(default={}, description="checks of the built model and of the loaded weights")
    environment: dict[str, Any] = Field(default={}, description="versions, commit, host and devices")
    timing: dict[str, Any] = Field(
        default={}, description="`train_seconds`, `eval_seconds` and `seconds_per_iteration`, wall-clock"
    )
    role: Literal["trial", "lr_search"] | None = Field(
        default=None, description="`lr_search` for a candidate of a search, which is in no cell of a table"
    )
    select_on: str | None = Field(default=None, description="`test` or `heldout`, what a search's choice is made on")
    heldout: HeldOutPart | None = Field(default=None, description="the held-out part, where `select_on` is `heldout`")
    lr_search: SearchedLr | None = Field(default=None, description="the search whose learning rate the trial uses")
    detections: DetectionsRecord | None = Field(
        default=None, description="the detections on the test split; absent in older files, null if the trial diverged"
    )

    def find_contradiction(self) -> str | None:
        """Which AP is not the mean of its classes' AP, as every evaluator defines it; None where all are."""
        for branch, values in (self.metrics or {}).items():
            each = [] if values is None else [value for value in (values.per_class or {}).values() if value is not None]
            if values is None or values.AP is None or not each:
                continue
            mean = sum(each) / len(each)
            if not abs(mean - values.AP) <= AP_TOLERANCE:
                return f"metrics.{branch}.AP is {values.AP:.4f}, but the mean over its classes is {mean:.4f}"
        return None


class LrCandidate(FileFormat):
    """One learning rate of a search."""

    lr: Positive = Field(description="the learning rate")
    value: float | None = Field(default=None, description="the metric in per cent; null without one")
    status: Literal["done", "diverged", "missing"] | None = Field(default=None, description="how its trial ended")
    folder: str | None = Field(default=None, description="the trial's folder; null for a candidate that was not run")
    result_sha256: str | None = Field(default=None, description="SHA-256 of the trial's result.json; null without one")


class LrSearchRecord(SealedFormat):
    """`lr_search.json`: the candidates of a learning-rate search and the choice.

    The candidate with the highest value is chosen, of equal ones the smaller learning rate.
    """

    format: Literal["lr-search/1"] = Field(default=LR_SEARCH, description="format and its version")
    row: Name = Field(description="row of the experiment, or any name")
    task: Name = Field(description="task of the experiment, or any name")
    trial_task: str | None = Field(default=None, description="`task` of the candidates' own results")
    seed: int | None = Field(default=None, description="seed of the candidates")
    split: str = Field(default="unknown", description="split the choice was made on")
    select_on: str | None = Field(default=None, description="`test` or `heldout`")
    heldout: HeldOutPart | None = Field(default=None, description="the held-out part, where `select_on` is `heldout`")
    metric: Name = Field(description="`<branch>/<metric>`, such as `bbox/AP`")
    points: list[LrCandidate] = Field(description="the candidates in ascending order of the learning rate")
    chosen: Positive | None = Field(default=None, description="the chosen learning rate; null without any value")
    weights: dict[str, Any] | None = Field(default=None, description="`name` and `sha256` of the candidates' weights")
    settings: dict[str, Any] | None = Field(default=None, description="the candidates' settings, without `lr`")
    toy: bool | None = Field(default=None, description="true if searched with an overlay that shrinks the run")

    def find_contradiction(self) -> str | None:
        """Why the choice does not follow from the candidates; None where it does."""
        measured = [point for point in self.points if point.value is not None]
        best = min(measured, key=lambda point: (-(point.value or 0.0), point.lr), default=None)
        follows = None if best is None else best.lr
        return None if self.chosen == follows else f"chosen is {self.chosen}, but the best candidate is {follows}"
