"""Where a run computes, and with which arithmetic."""

from __future__ import annotations

import torch
from fvcore.common.config import CfgNode

from common.errors import UserError


def training_device(cfg: CfgNode) -> torch.device:
    """This process's GPU where there is one, set up as the config says; else the CPU.

    cuDNN tries its algorithms out and takes the fastest, as the released code lets it: every batch has the same shape.
    A convolution's gradient is then summed in no fixed order, so that two runs on a GPU are not equal bit for bit. TF32
    is off unless ENGINE.TF32 asks for it (docs/reference/engine.md says why).

    Raises:
        UserError: ENGINE.PRECISION needs a GPU and there is none.
    """
    if not torch.cuda.is_available():
        if cfg.ENGINE.PRECISION == "fp16":
            raise UserError("ENGINE.PRECISION is fp16, which needs a GPU, and there is none here; use bf16 or fp32")
        return torch.device("cpu")
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = cfg.ENGINE.TF32
    torch.set_float32_matmul_precision("high" if cfg.ENGINE.TF32 else "highest")
    return torch.device("cuda", torch.cuda.current_device())
