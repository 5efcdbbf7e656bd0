"""What a job ended with, in a form that is recorded once and compared later."""

from __future__ import annotations

import json
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

TIMES = ("time", "data_time", "data_time_share", "eta_seconds", "rank_data_time")
"""Keys of metrics.json that say how long something took."""
RESULT = ("status", "final", "metrics", "iterations", "epochs", "std_alarm", "classes", "validation", "divergence")
"""Keys of result.json that say what was computed."""


def machine() -> dict[str, Any]:
    """What the bits of a result depend on, apart from the code: equal machines must give equal bits."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    first = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", text.partition("\n\n")[0], re.MULTILINE))
    # A virtual machine's model name is that of a whole family, and the size of the caches decides how work is cut.
    names = ("model name", "cpu family", "model", "stepping", "cache size")
    return {
        "cpu": " ".join([platform.machine(), *(first.get(name, "") for name in names)]),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "onednn": os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def end_of(folder: Path) -> dict[str, Any]:
    """A job's result and curve without times and paths, and sum and norm of each tensor of its last checkpoint."""
    found: dict[str, Any] = {}
    result = json.loads((folder / "result.json").read_text())
    found["result"] = {key: result[key] for key in RESULT if key in result}
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    found["metrics"] = [{key: value for key, value in line.items() if key not in TIMES} for line in lines]
    if (folder / "model_final.pth").exists():  # Detectron2 writes medians since the process began
        found["metrics"] = [{key: line[key] for key in ("iteration", "lr") if key in line} for line in lines]
    for file in (*sorted(folder.glob("checkpoint_*.pth"))[-1:], *folder.glob("model_final.pth")):
        state = torch.load(file, weights_only=True)
        found["tensors"] = {
            name: [float(tensor.double().sum()), float(tensor.double().norm())]
            for name, tensor in (state.get("method") or state["model"]).items()
            if torch.is_tensor(tensor) and tensor.is_floating_point()
        }
    return found
