"""Every key of pre-training with its default and what it means; a method's own keys stand in the method's file."""

from __future__ import annotations

from fvcore.common.config import CfgNode

from common.config import KeyChanges
from pretrain.methods import method_keys

CHANGES = KeyChanges(
    removed={"ENGINE.READ_LATE": "metrics are always read while the next step runs, with the same results; delete it"}
)
"""Keys of earlier releases."""


def defaults() -> CfgNode:
    """Every key with its default: SimSiam's `base` recipe at 100 epochs.

    Returns:
        A fresh, unfrozen node.
    """
    cfg = CfgNode()
    # The method: a file of pretrain/methods/.
    cfg.METHOD = "simsiam"
    # True marks everything made by this run as made for show, not for comparison (set by configs/overlays/cpu.yaml).
    cfg.TOY = False
    # Initial weights, order of the images and their augmentation are functions of it.
    cfg.SEED = 0
    cfg.DATA = _data()
    cfg.AUGMENT = _augment()
    cfg.MODEL = _model()
    cfg.SOLVER = _solver()
    cfg.ENGINE = _engine()
    cfg.CHECKPOINT = CfgNode()
    # Iterations between checkpoints; 0 = at the end of each epoch only.
    cfg.CHECKPOINT.PERIOD = 0
    # How many of the newest checkpoints stay on disk.
    cfg.CHECKPOINT.KEEP = 2
    # Epochs between two checkpoints that stay for good; 0 = none does.
    cfg.CHECKPOINT.KEEP_EVERY = 0
    cfg.MONITOR = _monitor()
    cfg.LOG = CfgNode()
    # Iterations between two lines of the console, metrics.json and TensorBoard.
    cfg.LOG.PERIOD = 20
    # Whether TensorBoard event files are written beside metrics.json.
    cfg.LOG.TENSORBOARD = True
    # What one method alone reads is explained in its own file.
    for section, keys in method_keys().items():
        cfg[section] = keys
    return cfg


def _data() -> CfgNode:
    node = CfgNode()
    # The images: a folder with train/ below it (ImageNet's layout), with class folders, or with the images themselves;
    # or a text file that lists them (docs/guides/data.md).
    node.ROOT = ""
    # The folder that a list file's paths are relative to; empty = the one that the list file lies in.
    node.LIST_ROOT = ""
    # Where the list of a folder's images is kept: user ($XDG_CACHE_HOME or ~/.cache, from 10,000 images on), none, or a
    # folder of your own.
    node.INDEX_CACHE = "user"
    # What happens at a file that holds no whole image: error (the run stops and names it), or replace (the next image
    # of the list takes its place, and is counted).
    node.UNREADABLE = "error"
    # How views are made: pil (as the released code), opencv (equal within rounding, several times faster), or crops
    # (crops by OpenCV in a loader process, the other steps on the training device). docs/guides/data.md compares them.
    node.PIPELINE = "pil"
    # Height and width of a view in pixels.
    node.SIZE = 224
    # Loader processes for each training process; 0 = decode in the training process. Any number gives the same run.
    node.WORKERS = 8
    return node


def _augment() -> CfgNode:
    """MoCo v2's augmentation, as in the released SimSiam."""
    node = CfgNode()
    # Share of the image's area that a random crop covers; its aspect ratio is log-uniform in 3/4 … 4/3.
    node.CROP_SCALE = (0.2, 1.0)
    # Strength of the colour jitter: brightness, contrast, saturation, hue; and how often it is applied.
    node.JITTER = (0.4, 0.4, 0.4, 0.1)
    node.JITTER_PROB = 0.8
    # How often a view is turned to grey.
    node.GRAY_PROB = 0.2
    # How often a view is blurred, and the range of the blur's radius (PIL's GaussianBlur, in pixels).
    node.BLUR_PROB = 0.5
    node.BLUR_SIGMA = (0.1, 2.0)
    # How often values of 128 and above are inverted. Neither the paper's recipe nor the released code does it: off.
    node.SOLARIZE_PROB = 0.0
    # How often a view is mirrored.
    node.FLIP_PROB = 0.5
    # The second view's own blur and solarisation, for BYOL, whose views differ; -1 = as often as the first's.
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
    # Layers and hidden width of the projection MLP, and the dimension d of its output.
    node.PROJ_LAYERS = 3
    node.PROJ_HIDDEN = 2048
    node.DIM = 2048
    # Hidden width of the prediction MLP (d → this → d).
    node.PRED_DIM = 512
    # The predictor: mlp (trained), none (the identity), or fixed (left at its random initialisation).
    node.PREDICTOR = "mlp"
    # BN in the two heads: none, hidden (layers only), default (and the projector's output), all (the predictor's too).
    node.HEAD_BN = "default"
    # Whether the projector's output BN has trained scale and offset; the released code's has not.
    node.PROJ_BN_AFFINE = False
    # Whether batch normalisation covers the images of all processes (as the released code has it) or each its own.
    node.SYNC_BN = True
    # With SYNC_BN False: how many of a process's images are normalised together, as on a GPU that holds so many (a
    # process's share of the batch is a multiple of it, or smaller); 0 = all of them.
    node.BN_IMAGES = 0
    return node


def _solver() -> CfgNode:
    node = CfgNode()
    # Images a step over all processes. The last incomplete batch of an epoch is dropped.
    node.BATCH_SIZE = 256
    # Parts a step's batch is computed in, one after the other, to need less memory. Batch normalisation then sees one
    # part at a time, which is not what the whole batch would give (docs/reference/engine.md).
    node.ACCUMULATE = 1
    # sgd; lars (as SimCLR and BYOL have it: biases and BN's weights are neither scaled nor decayed); or larc (apex's,
    # without clipping, as SwAV has it: every tensor is scaled).
    node.OPTIMIZER = "sgd"
    # lars and larc: the trust coefficient η.
    node.TRUST = 0.001
    # The peak learning rate is this × BATCH_SIZE / 256. The other rates below are rates: nothing is multiplied.
    node.BASE_LR = 0.05
    node.MOMENTUM = 0.9
    # On every trained parameter, those of BN and the biases included (but for lars).
    node.WEIGHT_DECAY = 1e-4
    # Length of the run; the cosine ends here, so another budget is another run.
    node.EPOCHS = 100
    # How the rate falls: cosine_by_epoch (once an epoch), cosine_by_step (with each iteration), or steps.
    node.SCHEDULE = "cosine_by_epoch"
    # The cosines: the rate that they end at.
    node.FINAL_LR = 0.0
    # steps: the epochs at which the rate is multiplied by GAMMA.
    node.STEPS = ()
    node.GAMMA = 0.1
    # Epochs of linear warm-up before that (the SimSiam paper: 10 from batch 1024 on, none below), the rate it starts
    # from, and which ends of the ramp its own iterations take: last (the peak), first (the start; SimCLR, BYOL), or
    # both (SwAV).
    node.WARMUP_EPOCHS = 0
    node.WARMUP_START_LR = 0.0
    node.WARMUP_ENDS = "last"
    # Whether the predictor keeps the full learning rate from the first step to the last (neither warm-up nor cosine).
    node.FIX_PRED_LR = True
    # How torch goes through the parameters: for-loop (what torch did in 2020), foreach or fused. Same numbers but for
    # rounding, in fewer kernels.
    node.IMPLEMENTATION = "for-loop"
    return node


def _engine() -> CfgNode:
    node = CfgNode()
    # fp32, or autocast to bf16 or fp16 (fp16 with a gradient scaler, on a GPU).
    node.PRECISION = "fp32"
    # Whether model and images lie in channels-last order (same numbers but for rounding; `make bench` times both).
    node.CHANNELS_LAST = False
    # Whether torch.compile generates the kernels of the forward and backward pass (same numbers but for rounding).
    node.COMPILE = False
    # Whether a GPU may round the inputs of float32 products to TF32, which the published runs' GPUs (V100) could not.
    node.TF32 = False
    return node


def _monitor() -> CfgNode:
    node = CfgNode()
    # The alarm: std below this share of its healthy 1/√d (above an output BN's floor: docs/reference/engine.md),
    # that many steps in a row; 0 = no alarm. And whether the run stops there, as if it had diverged.
    node.STD_ALARM = 0.1
    node.STD_ALARM_STEPS = 50
    node.STD_ALARM_STOP = False
    # The run stops where the norm of all gradients is above this; 0 = only where it is not finite. Nothing is clipped.
    node.GRAD_NORM_LIMIT = 0.0
    node.VALIDATION = CfgNode()
    # supervised: epochs between two measurements of the classifier on a validation set, from the start to the end of
    # the run; 0 = none. And where its folder, with one folder a class, lies; "" = DATA.ROOT.
    node.VALIDATION.PERIOD = 0
    node.VALIDATION.ROOT = ""
    node.VALIDATION.FOLDER = "val"
    # The centre DATA.SIZE pixels of the image whose shorter side is scaled to this; 0 = images as they are, that large.
    node.VALIDATION.RESIZE = 256
    node.KNN = CfgNode()
    # Epochs between two kNN measurements on a labelled set, from the start to the end of the run; 0 = none.
    node.KNN.PERIOD = 0
    # The labelled set, and its folders with one folder a class: the bank and the test images; "" = DATA.ROOT.
    node.KNN.ROOT = ""
    node.KNN.TRAIN = "train"
    node.KNN.VAL = "val"
    # Neighbours, and the temperature of their weights exp(similarity / T): 200 and 0.2 on ImageNet, 0.1 on CIFAR-10.
    node.KNN.K = 200
    node.KNN.T = 0.2
    # The centre DATA.SIZE pixels of the image whose shorter side is scaled to this; 0 = images as they are, that large.
    node.KNN.RESIZE = 256
    return node
