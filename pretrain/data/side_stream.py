"""Work on a batch beside the training step: copied to the device and finished there while a step is being computed."""

from __future__ import annotations

from collections.abc import Callable

import torch


class SideStream:
    """A CUDA stream of its own for what comes before a step; on other devices nothing is different.

    A copy that is asked for between two steps would otherwise lie behind the whole of the first in the device's queue.

    Args:
        device: the training device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def run(self, work: Callable[[], list[torch.Tensor]]) -> list[torch.Tensor]:
        """What `work` makes, ready for whatever the caller asks of the device from now on.

        Args:
            work: makes tensors on the device from the host's memory alone.
        """
        if self.stream is None:
            return work()
        with torch.cuda.stream(self.stream):
            made = work()
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.stream)
        for tensor in made:
            tensor.record_stream(current)  # its memory is not the side's to use again before the step is through
        return made
