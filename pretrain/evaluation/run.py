"""An evaluation from its weights and data to its result: what every process executes."""

from __future__ import annotations

import pickle
import time
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from fvcore.common.config import CfgNode

from common.console import Progress
from common.errors import UserError
from common.files import atomic_write, sha256_of
from common.training.collectives import run_on_main_process
from pretrain.evaluation import sources
from pretrain.evaluation.backbone import LoadedBackbone, read_backbone
from pretrain.evaluation.config import settings
from pretrain.evaluation.data import (
    EpochPieces,
    FixedView,
    LabelledSet,
    RandomView,
    crop_and_flip,
    labelled_sets,
)
from pretrain.evaluation.features import Extractor, own_image_count
from pretrain.evaluation.folder import EvaluationFolder
from pretrain.evaluation.knn import check_k, knn_accuracy
from pretrain.evaluation.linear import Diverged, LinearProbe, build_classifier
from pretrain.evaluation.result import Asked, build, origin_of
from pretrain.evaluation.stop import stop_requests

CHECKPOINT_FORMAT = "evaluation-checkpoint/1"
Sets = tuple[LabelledSet, LabelledSet]


def finished(asked: Asked, cfg: CfgNode) -> dict[str, Any] | None:
    """The result where the asked-for folder holds this very evaluation, finished; nothing is computed.

    Raises:
        UserError: the folder holds another evaluation, or the weights are missing.
    """
    if asked.output is None:
        return None
    folder = EvaluationFolder(asked.output)
    if not folder.settings.exists():
        return None
    return folder.finished(_identity(asked, cfg, sha256_of(Path(asked.weights).expanduser())))


def evaluate(asked: Asked, cfg: CfgNode) -> dict[str, Any]:
    """Run the evaluation in this process, one of one or several.

    Returns:
        The result's JSON, the same on all processes; written in the folder, where there is one.

    Raises:
        UserError: weights, data, folder or machine do not fit.
        Preempted: a signal asked for a stop; the state is saved.
    """
    device = _device(cfg)
    backbone = read_backbone(asked.weights)
    origin_of(backbone, asked)
    sets = labelled_sets(asked.data, cfg.DATA.TRAIN, cfg.DATA.VAL, "--data")
    if asked.kind == "knn":
        check_k(cfg.KNN.K, sets[0], "KNN.K")
    folder = EvaluationFolder(asked.output) if asked.output is not None else None
    if folder:
        identity = _identity(asked, cfg, backbone.sha256, sets)
        run_on_main_process(lambda: folder.claim(identity, asked.resume))
    extractor = _extractor(backbone, cfg, device)
    if asked.kind == "knn":
        result = _knn(asked, cfg, backbone, extractor, sets)
    else:
        assert folder is not None  # the command line sees to it
        result = _linear(asked, cfg, backbone, extractor, sets, folder)
    if folder:
        run_on_main_process(lambda: folder.write_result(result))
    return result


def _device(cfg: CfgNode) -> torch.device:
    if torch.cuda.is_available():
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = False  # fp32 means what it meant on the GPUs of the published numbers
        return torch.device("cuda", torch.cuda.current_device())
    if cfg.ENGINE.PRECISION == "fp16":
        raise UserError("ENGINE.PRECISION is fp16, which needs a GPU, and there is none here; use bf16 or fp32")
    return torch.device("cpu")


def _identity(asked: Asked, cfg: CfgNode, sha256: str, sets: Sets | None = None) -> dict[str, Any]:
    """What makes this evaluation another than others; the images only where they have been listed."""
    identity = {"kind": asked.kind, "config": settings(cfg, asked.kind), "weights_sha256": sha256}
    if sets:
        identity["images"] = [images.index.fingerprint for images in sets]
    return identity


def _extractor(backbone: LoadedBackbone, cfg: CfgNode, device: torch.device) -> Extractor:
    layout = torch.channels_last if cfg.ENGINE.CHANNELS_LAST else torch.contiguous_format
    encoder = backbone.encoder.to(device).to(memory_format=layout).requires_grad_(False).eval()
    return Extractor(encoder, backbone.width, backbone.preprocessing, cfg.ENGINE.PRECISION, cfg.ENGINE.CHANNELS_LAST)


class _Teller:
    """Progress lines of the main process, counting images."""

    def __init__(self, total: int, label: str) -> None:
        self.progress = Progress(total, label) if comm.is_main_process() and total else None

    def __call__(self, count: int, note: str = "") -> None:
        if self.progress:
            self.progress.step(count, note)


def _knn(asked: Asked, cfg: CfgNode, backbone: LoadedBackbone, extractor: Extractor, sets: Sets) -> dict[str, Any]:
    start = time.perf_counter()
    tell = _Teller(sum(map(own_image_count, sets)), "features, images")
    view = FixedView(cfg.DATA.SIZE, cfg.DATA.RESIZE)
    top1 = knn_accuracy(extractor, *sets, view, cfg.KNN.K, cfg.KNN.T, cfg.DATA.WORKERS, tell)
    timing = {"seconds": round(time.perf_counter() - start, 3)}
    return build(asked, cfg, backbone, sets, {"top1": top1}, None, timing)


def _linear(
    asked: Asked, cfg: CfgNode, backbone: LoadedBackbone, extractor: Extractor, sets: Sets, folder: EvaluationFolder
) -> dict[str, Any]:
    start = time.perf_counter()
    state = _load_checkpoint(folder.checkpoint)
    before = state["seconds"] if state else 0.0
    probe = _probe(cfg, extractor, sets, folder, state)

    def save() -> None:
        content = {"format": CHECKPOINT_FORMAT, "seconds": before + time.perf_counter() - start, **probe.state()}
        run_on_main_process(lambda: _write_checkpoint(folder, content, probe.progress.history))

    divergence = None
    left = sum(probe.pieces.size(step) for step in range(probe.pieces.start, probe.pieces.stop))
    tell = _Teller(left, "training, images")
    try:
        with stop_requests() as wanted:
            probe.fit(save, cfg.CHECKPOINT.PERIOD, wanted, lambda n, loss: tell(n, _note(probe, loss)))
    except Diverged as error:
        divergence = error.record
    metrics = None if divergence else _metrics(probe.progress.history)
    timing = {"seconds": round(before + time.perf_counter() - start, 3)}
    return build(asked, cfg, backbone, sets, metrics, divergence, timing)


def _note(probe: LinearProbe, loss: float) -> str:
    epoch = probe.progress.iteration / probe.pieces.steps_per_epoch
    last = f" · top-1 {probe.progress.history[-1]['top1']:.2f} %" if probe.progress.history else ""
    return f"epoch {epoch:.2f} · loss {loss:.4f}{last}"


def _metrics(history: list[dict[str, float]]) -> dict[str, float]:
    """The last epoch's accuracies, and the best top-1 of any epoch, which the released code keeps the weights of."""
    last = history[-1]
    found: dict[str, float] = {name: last[name] for name in ("top1", "top5") if name in last}
    found["best_top1"] = max(entry["top1"] for entry in history)
    return found


def _probe(
    cfg: CfgNode, extractor: Extractor, sets: Sets, folder: EvaluationFolder, state: dict[str, Any] | None
) -> LinearProbe:
    """The classifier with its features, at the checkpoint's state where there is one."""
    train, test = sets
    linear, workers = cfg.LINEAR, cfg.DATA.WORKERS
    fixed = FixedView(cfg.DATA.SIZE, cfg.DATA.RESIZE)
    share = sources.test_share(extractor, test, fixed, workers, _Teller(own_image_count(test), "test features, images"))
    begin = state["progress"]["iteration"] if state else 0
    steps = -(-len(train) // linear.BATCH_SIZE)
    ranks = comm.get_rank(), comm.get_world_size()
    pieces = EpochPieces(len(train), linear.BATCH_SIZE, cfg.SEED, begin, steps * linear.EPOCHS, *ranks)
    if linear.CACHE_FEATURES:
        tell = _Teller(own_image_count(train), "training features, images")
        features = sources.cache(folder.path, extractor, train, fixed, workers, tell)
        batches = sources.cached(features, train, pieces, extractor.device)
    else:
        view = RandomView(crop_and_flip(cfg.DATA.SIZE, linear.CROP_SCALE, linear.FLIP_PROB), cfg.SEED)
        batches = sources.live(extractor, train, view, pieces, workers)
    classifier = build_classifier(extractor.width, len(train.classes), cfg.SEED).to(extractor.device)
    probe = LinearProbe(classifier, linear, pieces, batches, share)
    if state:
        probe.restore(state)
    return probe


def _write_checkpoint(folder: EvaluationFolder, content: dict[str, Any], history: list[dict[str, float]]) -> None:
    with atomic_write(folder.checkpoint) as stream:
        torch.save(content, stream)
    folder.write_history(history)


def _load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The folder's checkpoint on the CPU, or None where there is none.

    Raises:
        UserError: it cannot be read.
    """
    if not run_on_main_process(path.exists):
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"checkpoint {path} cannot be used ({why}); move it away to start anew") from error
    if not isinstance(state, dict) or state.get("format") != CHECKPOINT_FORMAT:
        raise UserError(f"checkpoint {path} is not of the format {CHECKPOINT_FORMAT}; move it away to start anew")
    return state
