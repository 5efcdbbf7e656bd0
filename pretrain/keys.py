"""Every config key of pre-training with its default and meaning; a method's own keys are in the method's file."""

from __future__ import annotations

from fvcore.common.config import CfgNode

from pretrain.methods import method_keys
from ssl_transfer.config import KeyChanges

KEY_CHANGES = KeyChanges(
    renamed={
        "SOLVER.TRUST": "SOLVER.LARS_ETA",
        "SOLVER.ACCUMULATE": "SOLVER.GRAD_ACCUM_STEPS",
        "SOLVER.IMPLEMENTATION": "SOLVER.OPTIMIZER_IMPL",
        "MODEL.BN_IMAGES": "MODEL.BN_GROUP_SIZE",
        "MONITOR.STD_ALARM": "MONITOR.COLLAPSE.THRESHOLD",
        "MONITOR.STD_ALARM_STEPS": "MONITOR.COLLAPSE.STEPS",
        "MONITOR.STD_ALARM_STOP": "MONITOR.COLLAPSE.STOP",
    },
    removed={"ENGINE.READ_LATE": "metrics are always read while the next step runs, with the same results; delete it"},
)
"""Keys of earlier releases."""


def defaults() -> CfgNode:
    """All keys with their defaults: SimSiam's `base` recipe at 100 epochs.

    Returns:
        A new, unfrozen node.
    """
    cfg = CfgNode()
    # The method: a file of pretrain/methods/.
    cfg.METHOD = "simsiam"
    # True marks all results of this run as toy results, not for comparison (set by configs/overlays/cpu.yaml).
    cfg.TOY = False
    # Seed of the initial weights, the order of the images and their augmentation.
    cfg.SEED = 0
    cfg.DATA = _data()
    cfg.AUGMENT = _augment()
    cfg.MODEL = _model()
    cfg.SOLVER = _solver()
    cfg.ENGINE = _engine()
    cfg.CHECKPOINT = CfgNode()
    # Iterations between checkpoints; 0 = only at the end of each epoch.
    cfg.CHECKPOINT.PERIOD = 0
    # Number of recent checkpoints to keep.
    cfg.CHECKPOINT.KEEP = 2
    # Epochs between checkpoints that are kept permanently, for example to fine-tune from several of them; 0 = none.
    cfg.CHECKPOINT.KEEP_EVERY = 0
    cfg.MONITOR = _monitor()
    cfg.LOG = CfgNode()
    # Iterations between entries in console, metrics.json and TensorBoard.
    cfg.LOG.PERIOD = 20
    # Whether to write TensorBoard event files in addition to metrics.json.
    cfg.LOG.TENSORBOARD = True
    for section, keys in method_keys().items():
        cfg[section] = keys
    return cfg


def _data() -> CfgNode:
    node = CfgNode()
    # The images: a folder that contains train/ (ImageNet's layout), class folders, or images; or a text file that
    # lists them (docs/guides/data.md).
    node.ROOT = ""
    # The folder that a list file's paths are relative to; empty = the list file's own folder.
    node.LIST_ROOT = ""
    # Where the list of a folder's images is cached: user ($XDG_CACHE_HOME or ~/.cache, from 10,000 images on), none
    # (for a network file system that shows old folder times), or a folder.
    node.INDEX_CACHE = "user"
    # How to handle a file that is not a complete image: error (the run stops and names it), or replace (the next image
    # of the list replaces it, and it is counted).
    node.UNREADABLE = "error"
    # How views are made: pil (as the released code), opencv (equal within rounding, several times faster), or crops
    # (crops by OpenCV in a loader worker, the other steps on the training device). docs/guides/data.md compares them.
    node.PIPELINE = "pil"
    # Height and width of a view in pixels.
    node.SIZE = 224
    # Loader workers per training process; 0 = load in the training process. The result does not depend on it.
    node.WORKERS = 8
    return node


def _augment() -> CfgNode:
    """MoCo v2's augmentation, as in the released SimSiam."""
    node = CfgNode()
    # Arithmetic of crop, resize, jitter, blur and normalization: torchvision, or that of the released code of byol or
    # simclr (docs/guides/methods.md), in float, with DATA.PIPELINE pil or opencv.
    node.STYLE = "torchvision"
    # Fraction of the image's area that a random crop covers; its aspect ratio is log-uniform in 3/4 … 4/3.
    node.CROP_SCALE = (0.2, 1.0)
    # Strengths of the colour jitter (brightness, contrast, saturation, hue) and its probability.
    node.JITTER = (0.4, 0.4, 0.4, 0.1)
    node.JITTER_PROB = 0.8
    # Probability of grayscale.
    node.GRAY_PROB = 0.2
    # Probability of blur, and the range of its radius (PIL's GaussianBlur, in pixels).
    node.BLUR_PROB = 0.5
    node.BLUR_SIGMA = (0.1, 2.0)
    # Probability of solarization, which inverts values from 128 on. Neither the paper nor the released code uses it.
    node.SOLARIZE_PROB = 0.0
    # Probability of a horizontal flip.
    node.FLIP_PROB = 0.5
    # Probabilities of blur and solarization for the second view, for BYOL, whose views differ; -1 = as for the first.
    node.SECOND = CfgNode()
    node.SECOND.BLUR_PROB = -1.0
    node.SECOND.SOLARIZE_PROB = -1.0
    return node


def _model() -> CfgNode:
    node = CfgNode()
    # The encoder: resnet18|34|50|101|152, or resnet18_cifar (3×3 stem, no max-pool).
    node.ARCH = "resnet50"
    # Whether the last BN of each residual block starts with weight 0.
    node.ZERO_INIT_RESIDUAL = True
    # Layers and hidden width of the projection MLP, and the width d of its output.
    node.PROJ_LAYERS = 3
    node.PROJ_HIDDEN = 2048
    node.DIM = 2048
    # Hidden width of the prediction MLP (d → this → d).
    node.PRED_DIM = 512
    # The predictor: mlp (trained), none (the identity), or fixed (at its random initialization).
    node.PREDICTOR = "mlp"
    # BN in the two heads: none, hidden (hidden layers), default (projector's output, too), all (predictor's, too).
    node.HEAD_BN = "default"
    # Whether the projector's output BN has trained scale and offset; in the released code it has not.
    node.PROJ_BN_AFFINE = False
    # Whether batch normalization covers the images of all processes (as in the released code) or of each one.
    node.SYNC_BN = True
    # With SYNC_BN False: number of images that are normalized together, as on a GPU that holds so many; the images of a
    # process are a multiple of it, or fewer. 0 = all images of a process.
    node.BN_GROUP_SIZE = 0
    return node


def _solver() -> CfgNode:
    node = CfgNode()
    # Images per step over all processes. The incomplete last batch of an epoch is dropped.
    node.BATCH_SIZE = 256
    # Gradient accumulation: number of parts in which a batch is computed, to need less memory. Batch normalization then
    # covers one part at a time, so the result differs from that of the whole batch (docs/reference/engine.md).
    node.GRAD_ACCUM_STEPS = 1
    # sgd; lars (as in SimCLR and BYOL: biases and BN's weights are neither scaled nor decayed); or larc (apex's,
    # without clipping, as in SwAV: every tensor is scaled).
    node.OPTIMIZER = "sgd"
    # lars and larc: the trust coefficient η.
    node.LARS_ETA = 0.001
    # The peak learning rate is this × BATCH_SIZE / 256. The other learning rates below are not scaled.
    node.BASE_LR = 0.05
    node.MOMENTUM = 0.9
    # Applies to every trained parameter, including biases and BN (except for lars).
    node.WEIGHT_DECAY = 1e-4
    # Length of the run; the cosine ends here, so each number of epochs is a run of its own.
    node.EPOCHS = 100
    # Decay of the learning rate: cosine_by_epoch (once per epoch), cosine_by_step (with each iteration), or steps.
    node.SCHEDULE = "cosine_by_epoch"
    # The cosines: the final learning rate.
    node.FINAL_LR = 0.0
    # steps: the epochs at which the learning rate is multiplied by GAMMA.
    node.STEPS = ()
    node.GAMMA = 0.1
    # Epochs of linear warm-up before the decay (the SimSiam paper: 10 from batch 1024 on, none below), the learning
    # rate at its start, and which ends of the ramp are iterations of the warm-up: last (the peak), first (the start;
    # SimCLR, BYOL), or both (SwAV).
    node.WARMUP_EPOCHS = 0
    node.WARMUP_START_LR = 0.0
    node.WARMUP_ENDS = "last"
    # Whether the predictor keeps the peak learning rate throughout (no warm-up, no decay).
    node.FIX_PRED_LR = True
    # torch's implementation of the optimizer: for-loop (as torch in 2020), foreach or fused. They are equal within
    # rounding; the latter two launch fewer kernels.
    node.OPTIMIZER_IMPL = "for-loop"
    return node


def _engine() -> CfgNode:
    node = CfgNode()
    # fp32, or autocast to bf16 or fp16 (fp16 with a gradient scaler, on a GPU).
    node.PRECISION = "fp32"
    # Whether model and images use channels-last memory format (equal within rounding; `make bench` times both).
    node.CHANNELS_LAST = False
    # Whether to use torch.compile for the forward and backward pass (equal within rounding).
    node.COMPILE = False
    # Whether a GPU may round the inputs of float32 products to TF32, which the GPUs of the published runs (V100) do not
    # support.
    node.TF32 = False
    return node


def _monitor() -> CfgNode:
    node = CfgNode()
    # Collapse detection: the alarm is raised when std is below THRESHOLD times its healthy value 1/√d (above an output
    # BN's floor: docs/reference/engine.md) for STEPS steps in a row; THRESHOLD 0 = never. STOP: whether the run then
    # ends as diverged.
    node.COLLAPSE = CfgNode()
    node.COLLAPSE.THRESHOLD = 0.1
    node.COLLAPSE.STEPS = 50
    node.COLLAPSE.STOP = False
    # The run ends as diverged when the norm of all gradients exceeds this; 0 = only when it is not finite. Gradients
    # are not clipped.
    node.GRAD_NORM_LIMIT = 0.0
    # A process without a sign of life for so many seconds (or for 10 steps, where these take longer) writes the stacks
    # of its threads and workers and exits with 75, so that the launcher can requeue the run; 0 = never.
    node.HANG_SECONDS = 300.0
    # How many seconds a collective operation waits for the other processes.
    node.COLLECTIVE_SECONDS = 600.0
    node.VALIDATION = CfgNode()
    # supervised: epochs between validations of the classifier, including start and end of the run; 0 = none. ROOT and
    # FOLDER: location of the validation set, with one folder per class; ROOT "" = DATA.ROOT.
    node.VALIDATION.PERIOD = 0
    node.VALIDATION.ROOT = ""
    node.VALIDATION.FOLDER = "val"
    # The image's shorter side is scaled to this, then the central DATA.SIZE pixels are cropped; 0 = no scaling or crop.
    node.VALIDATION.RESIZE = 256
    node.KNN = CfgNode()
    # Epochs between kNN evaluations on a labelled set, including start and end of the run; 0 = none.
    node.KNN.PERIOD = 0
    # Location of the labelled set ("" = DATA.ROOT), and its folders for the feature bank and the test images, each with
    # one folder per class.
    node.KNN.ROOT = ""
    node.KNN.TRAIN = "train"
    node.KNN.VAL = "val"
    # Number of neighbours, and the temperature of their weights exp(similarity / T): 200 and 0.2 on ImageNet, 0.1 on
    # CIFAR-10.
    node.KNN.K = 200
    node.KNN.T = 0.2
    # The image's shorter side is scaled to this, then the central DATA.SIZE pixels are cropped; 0 = no scaling or crop.
    node.KNN.RESIZE = 256
    return node
