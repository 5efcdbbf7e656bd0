"""An evaluation from its weights and data to its result: what every process executes."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from fvcore.common.config import CfgNode

from pretrain.data.sampler import ResumableBatchSampler
from pretrain.evaluation.backbone_features import (
    Extractor,
    LoadedBackbone,
    own_image_count,
    read_backbone,
)
from pretrain.evaluation.config import flat_settings
from pretrain.evaluation.knn import check_k, knn_accuracy
from pretrain.evaluation.labelled_images import FixedView, LabelledSet, RandomView, crop_and_flip, labelled_sets
from pretrain.evaluation.linear import (
    LinearProbe,
    build_classifier,
    cache_features,
    cached_features,
    extract_shard,
    fresh_features,
)
from pretrain.evaluation.result import EvaluationFolder, EvaluationRequest, build_result, origin_of
from ssl_transfer.errors import UserError
from ssl_transfer.files import sha256_of
from ssl_transfer.training.checkpoint import load_checkpoint, save_checkpoint, set_aside_if_damaged
from ssl_transfer.training.collectives import lock_on_main_process, run_on_main_process
from ssl_transfer.training.distributed import handle_stop
from ssl_transfer.training.divergence import Diverged
from ssl_transfer.training.logs import count_progress
from ssl_transfer.training.watch import CHECKPOINT, EVALUATION, START, HangWatch
from ssl_transfer.writer_lock import WriterLock

CHECKPOINT_FORMAT = "evaluation-checkpoint/1"
Sets = tuple[LabelledSet, LabelledSet]


def read_finished(request: EvaluationRequest, cfg: CfgNode) -> dict[str, Any] | None:
    """The result if the requested folder holds this evaluation, finished; nothing is computed.

    Raises:
        UserError: the folder holds another evaluation, or the weights are missing.
    """
    if request.output is None:
        return None
    folder = EvaluationFolder(request.output)
    if not folder.settings.exists():
        return None
    return folder.finished(_identity(request, cfg, sha256_of(Path(request.weights).expanduser())))


def evaluate_backbone(request: EvaluationRequest, cfg: CfgNode) -> dict[str, Any]:
    """Run the evaluation in this process, the only one or one of several.

    Returns:
        The result's content, the same on all processes; also written to the folder, if there is one.

    Raises:
        UserError: weights, data, folder or machine do not fit.
        Preempted: stopped on a signal; the state is saved.
    """
    device = _set_up_device(cfg)
    backbone = read_backbone(request.weights)
    origin_of(backbone, request)
    sets = labelled_sets(request.data, cfg.DATA.TRAIN, cfg.DATA.VAL, "--data")
    if request.kind == "knn":
        check_k(cfg.KNN.K, sets[0], "KNN.K")
    extractor = _build_extractor(backbone, cfg, device)
    if request.output is None:
        return build_result(request, cfg, backbone, sets, **_evaluate_knn(cfg, extractor, sets)).as_dict()
    folder = EvaluationFolder(request.output)
    identity = _identity(request, cfg, backbone.sha256, sets)
    with lock_on_main_process(WriterLock(folder.path)):
        run_on_main_process(lambda: folder.claim(identity, request.resume))
        with HangWatch(folder.path, cfg.MONITOR.HANG_SECONDS) as watch:
            if request.kind == "knn":
                outcome = _evaluate_knn(cfg, extractor, sets, watch)
            else:
                outcome = _evaluate_linear(cfg, extractor, sets, folder, watch)
        result = build_result(request, cfg, backbone, sets, **outcome)
        run_on_main_process(lambda: folder.write_result(result))
    return result.as_dict()


def _set_up_device(cfg: CfgNode) -> torch.device:
    if torch.cuda.is_available():
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = False  # full fp32, as on the GPUs of the published numbers
        return torch.device("cuda", torch.cuda.current_device())
    if cfg.ENGINE.PRECISION == "fp16":
        raise UserError("ENGINE.PRECISION is fp16, which needs a GPU, and there is none here; use bf16 or fp32")
    return torch.device("cpu")


def _identity(request: EvaluationRequest, cfg: CfgNode, sha256: str, sets: Sets | None = None) -> dict[str, Any]:
    """What distinguishes this evaluation from others; the images only where they have been listed."""
    identity = {"kind": request.kind, "config": flat_settings(cfg, request.kind), "weights_sha256": sha256}
    if sets:
        identity["images"] = [images.index.fingerprint for images in sets]
    return identity


def _build_extractor(backbone: LoadedBackbone, cfg: CfgNode, device: torch.device) -> Extractor:
    layout = torch.channels_last if cfg.ENGINE.CHANNELS_LAST else torch.contiguous_format
    encoder = backbone.encoder.to(device).to(memory_format=layout).requires_grad_(False).eval()
    return Extractor(encoder, backbone.width, backbone.preprocessing, cfg.ENGINE.PRECISION, cfg.ENGINE.CHANNELS_LAST)


def _watched_progress(watch: HangWatch | None, total: int, label: str) -> Callable[..., None]:
    """`count_progress` whose batches are the watch's steps; an evaluation's bound holds after the last one."""
    show = count_progress(total, label, "images")
    if watch is None:
        return show
    left = total

    def step(count: int, note: str = "") -> None:
        nonlocal left
        if count:
            watch.end_step()
        left -= count
        if left:
            watch.begin_step()
        else:
            watch.enter(EVALUATION)
        show(count, note)

    watch.begin_step()
    watch.enter(START)
    return step


def _evaluate_knn(cfg: CfgNode, extractor: Extractor, sets: Sets, watch: HangWatch | None = None) -> dict[str, Any]:
    start = time.perf_counter()
    step = _watched_progress(watch, sum(map(own_image_count, sets)), "features of")
    view = FixedView(cfg.DATA.SIZE, cfg.DATA.RESIZE)
    knn = {"k": cfg.KNN.K, "temperature": cfg.KNN.T}
    top1 = knn_accuracy(extractor, *sets, view, **knn, workers=cfg.DATA.WORKERS, step=step)
    return {"metrics": {"top1": top1}, "timing": {"seconds": round(time.perf_counter() - start, 3)}}


def _evaluate_linear(
    cfg: CfgNode, extractor: Extractor, sets: Sets, folder: EvaluationFolder, watch: HangWatch
) -> dict[str, Any]:
    start = time.perf_counter()
    state = _load_state(folder.checkpoint)
    before = state["seconds"] if state else 0.0
    probe = _build_probe(cfg, extractor, sets, folder=folder, state=state, watch=watch)
    watch.times.watch_gradients(probe.model)

    def save() -> None:
        watch.enter(CHECKPOINT)
        content = {"format": CHECKPOINT_FORMAT, "seconds": before + time.perf_counter() - start, **probe.state()}
        run_on_main_process(lambda: _save_state(folder, content, probe.progress.history))
        watch.begin_step()

    divergence = None
    left = sum(probe.sampler.step_size(step) for step in range(probe.sampler.start, probe.sampler.stop))
    progress = _watched_progress(watch, left, "training on")
    signals: list[signal.Signals] = []
    try:
        with handle_stop(lambda: signals.append(signal.SIGTERM)):
            probe.fit(
                save=save,
                period=cfg.CHECKPOINT.PERIOD,
                stop_requested=lambda: bool(signals),
                report=lambda images, loss: progress(images, _describe_progress(probe, loss)),
            )
    except Diverged as error:
        divergence = error.record()
    # Here, too: a run that was killed between its last checkpoint and the last line writes none of them again.
    run_on_main_process(lambda: folder.write_history(probe.progress.history))
    metrics = None if divergence else _final_metrics(probe.progress.history)
    seconds = round(before + time.perf_counter() - start, 3)
    return {"metrics": metrics, "divergence": divergence, "timing": {"seconds": seconds}}


def _describe_progress(probe: LinearProbe, loss: float) -> str:
    epoch = probe.progress.iteration / probe.sampler.steps_per_epoch
    last = f" · top-1 {probe.progress.history[-1]['top1']:.2f} %" if probe.progress.history else ""
    lr = probe.optimizer.param_groups[0]["lr"]
    return f"epoch {epoch:.2f} · loss {loss:.4f} · lr {lr:.4g}{last}"


def _final_metrics(history: list[dict[str, float]]) -> dict[str, float]:
    """The last epoch's accuracies, and the best top-1 of any epoch, whose weights the released code stores."""
    last = history[-1]
    found: dict[str, float] = {name: last[name] for name in ("top1", "top5") if name in last}
    found["best_top1"] = max(entry["top1"] for entry in history)
    return found


def _build_probe(
    cfg: CfgNode,
    extractor: Extractor,
    sets: Sets,
    *,
    folder: EvaluationFolder,
    state: dict[str, Any] | None,
    watch: HangWatch,
) -> LinearProbe:
    """The classifier with its features, at the checkpoint's state if there is one."""
    train, test = sets
    linear, workers = cfg.LINEAR, cfg.DATA.WORKERS
    fixed = FixedView(cfg.DATA.SIZE, cfg.DATA.RESIZE)
    step = _watched_progress(watch, own_image_count(test), "test features of")
    shard = extract_shard(extractor, test, fixed, workers, step)
    start = state["progress"]["iteration"] if state else 0
    stop = -(-len(train) // linear.BATCH_SIZE) * linear.EPOCHS
    sampler = ResumableBatchSampler(
        len(train),
        linear.BATCH_SIZE,
        cfg.SEED,
        start=start,
        stop=stop,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
        drop_last=False,
    )
    if linear.CACHE_FEATURES:
        step = _watched_progress(watch, own_image_count(train), "training features of")
        features = cache_features(folder.features, extractor, train, fixed, workers=workers, step=step)
        batches = cached_features(features, train, sampler, extractor.device)
    else:
        view = RandomView(crop_and_flip(cfg.DATA.SIZE, linear.CROP_SCALE, linear.FLIP_PROB), cfg.SEED)
        batches = fresh_features(extractor, train, view, sampler, workers)
    classifier = build_classifier(extractor.width, len(train.classes), cfg.SEED).to(extractor.device)
    probe = LinearProbe(classifier, linear, sampler=sampler, batches=batches, test=shard)
    if state:
        probe.restore(state)
    return probe


def _save_state(folder: EvaluationFolder, content: dict[str, Any], history: list[dict[str, float]]) -> None:
    save_checkpoint(folder.checkpoint, content)
    folder.write_history(history)


def _load_state(path: Path) -> dict[str, Any] | None:
    """The folder's checkpoint; None where there is none, or where it is damaged and set aside.

    Raises:
        UserError: it is something else.
    """
    if not run_on_main_process(lambda: path.exists() and not set_aside_if_damaged(path)):
        return None
    return load_checkpoint(path, _reject, "move it away to start again")


def _reject(content: dict[str, Any]) -> str | None:
    return None if content.get("format") == CHECKPOINT_FORMAT else f"it is not of the format {CHECKPOINT_FORMAT}"
