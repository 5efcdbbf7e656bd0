"""Decoding and cropping a batch of files by NVIDIA's DALI, on a GPU or a CPU."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch

from pretrain.data.pipelines.base import Files

THREADS = 4
"""DALI's threads at most: on a CPU it decodes and crops on them, for a GPU they read the files' Huffman codes."""


class DaliCrops:
    """DALI's pipeline from files to crops: one batch in, one out, with nothing random in it.

    Args:
        files: a batch as those to come: with at least as many files, as many views of the same size.
        device: where to decode and crop; a CUDA device has nvJPEG decode.
    """

    def __init__(self, files: Files, device: torch.device) -> None:
        from nvidia.dali import fn, types
        from nvidia.dali.pipeline import Pipeline

        self.device = device
        self.most, self.views, self.size = len(files.lengths), len(files.boxes), files.size
        on_gpu = device.type == "cuda"
        number = (torch.cuda.current_device() if device.index is None else device.index) if on_gpu else None
        threads = min(THREADS, len(os.sched_getaffinity(0)))
        # A queue of one: what goes in is what comes out, and the side stream already overlaps it with the step.
        self.pipeline = Pipeline(self.most, threads, number, prefetch_queue_depth=1)
        with self.pipeline:
            encoded = fn.external_source(name="files", dtype=types.UINT8, ndim=1)
            images = fn.decoders.image(
                encoded,
                device="mixed" if on_gpu else "cpu",
                output_type=types.RGB,
                adjust_orientation=False,
                jpeg_fancy_upsampling=True,  # as libjpeg does
            )
            crops = []
            for view in range(self.views):
                box = fn.external_source(name=_box(view), dtype=types.INT32, ndim=1)
                crop = fn.slice(images, start=box[0:2], shape=box[2:4], axes=(0, 1))
                crops.append(fn.resize(crop, size=(self.size, self.size), interp_type=types.INTERP_LINEAR))
            self.pipeline.set_outputs(*crops)
        self.pipeline.build()

    def serves(self, files: Files, device: torch.device) -> bool:
        """Whether it was built for such a batch."""
        fits = len(files.lengths) <= self.most
        return fits and (self.views, self.size, self.device) == (len(files.boxes), files.size, device)

    def of(self, files: Files) -> list[torch.Tensor]:
        """The crops of a batch: uint8 (N, 3, size, size) a view, in channels-last order, on the device.

        On a GPU they are ready for what is put on torch's current stream from now on; nothing waits for them here.

        Raises:
            RuntimeError: DALI cannot decode one of the files.
        """
        from nvidia.dali.plugin.pytorch import feed_ndarray

        ends = files.lengths.cumsum(0)[:-1].tolist()
        inputs: dict[str, Any] = {_box(view): box.numpy() for view, box in enumerate(files.boxes)}
        inputs["files"] = np.split(files.content.numpy(), ends)
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        made = self.pipeline.run(stream, **inputs)
        shape = len(files.lengths), self.size, self.size, 3
        crops = [torch.empty(shape, dtype=torch.uint8, device=self.device) for _ in made]
        for crop, one in zip(crops, made, strict=True):
            feed_ndarray(one.as_tensor(), crop, cuda_stream=stream)
        return [crop.permute(0, 3, 1, 2) for crop in crops]


def _box(view: int) -> str:
    return f"box {view}"
