"""How a GPU is told to compute while it is looked at; afterwards all is as before."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def arithmetic(tf32: bool, benchmark: bool) -> Iterator[None]:
    """TF32 on or off for products and convolutions, and cuDNN's search for its fastest algorithms on or off.

    Off, PyTorch's default for products, is what `fp32` means in this project; for convolutions its default is on.
    """
    import torch

    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, torch.get_float32_matmul_precision(), cudnn.benchmark
    cudnn.allow_tf32, cudnn.benchmark = tf32, benchmark
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        cudnn.allow_tf32, cudnn.benchmark = before[0], before[2]
        torch.set_float32_matmul_precision(before[1])
