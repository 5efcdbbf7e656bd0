"""torch.compile as an option: a method's kernels generated for it, or one line that says why they cannot be."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from common.errors import UserError


class Compiled(nn.Module):
    """A module behind torch.compile. Its own tensors are those of the module, so checkpoints do not see the difference.

    It is compiled when it first sees a batch, which takes minutes.

    Args:
        module: the method, or what averages its gradients over processes.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.call = torch.compile(module)

    def forward(self, *views: torch.Tensor) -> Any:
        """What the module gives.

        Raises:
            UserError: no working compiler is at hand.
        """
        try:
            return self.call(*views)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            cause = (str(error.inner_exception).strip() or type(error.inner_exception).__name__).splitlines()[0]
            remedy = "install a C++ compiler (on a CPU) or Triton (on a GPU), or leave ENGINE.COMPILE False"
            raise UserError(f"ENGINE.COMPILE is True, but torch.compile failed ({cause}); {remedy}") from error
