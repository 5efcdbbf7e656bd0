"""Generate the table of layouts in docs/reference/weights.md from the recorded checkpoints.

Command: `python -m tests.transfer.weights.layout_table`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

from ssl_transfer.errors import UserError
from ssl_transfer.files import write_text
from tests.transfer.weights import recorded
from transfer.weights.normalize import read_backbone
from transfer.weights.readers import LAYOUTS_BY_NAME

DOCS = Path(__file__).resolve().parents[3] / "docs/reference/weights.md"
BEGIN, END = "<!-- layouts: begin -->", "<!-- layouts: end -->"
HEAD = ["| `--source` | checkpoint of | encoders are in | read | names |", "|---|---|---|---|---|"]
OURS = ["| `own` | this project's backbone file | no prefix, recognised by metadata | 265/265 | its own |"]
REFUSED = ["| `same_padding` | BYOL (DeepMind), SimCLR (TensorFlow) | their frameworks' names | refused | unverified |"]
VERIFIED = {
    "run": "the original's class, {repository}@{commit}",
    "run with stand-ins": "the original's class, some imports replaced, {repository}@{commit}",
    "published": "published list, {repository} {commit}",
    "unverified": "unverified",
}


def row(name: str, read: str) -> str:
    """One recorded checkpoint as a line of the table."""
    stored = recorded.record(name)
    commit = stored["commit"][:7] if len(stored["commit"]) == 40 else stored["commit"]
    names = VERIFIED[stored["verified"]].format(repository=stored["repository"], commit=commit)
    return f"| `{stored['layout']}` | {name.replace('_', ' ')} | {places(name)} | {read} | {names} |"


def places(name: str) -> str:
    """Containers and prefixes of the encoders."""
    found = []
    for state in recorded.record(name)["state"]:
        container = ".".join(state["container"])
        for prefix, naming in state["encoders"].items():
            kind = {"torchvision": "", "children": " (children by number)", "caffe2": " (Caffe2's names)"}
            kind |= {"detectron2": " (Detectron2's names)", "transformers": " (transformers' names)"}
            kind |= {"detector": " (`backbone.`, with res5 in `roi_heads.`)"}
            shown = f"`{prefix}`" if prefix else "no prefix"
            found.append((f"`{container}`: " if container else "") + shown + kind[naming.split()[0]])
    return ", ".join(found)


def ordered() -> list[str]:
    """Recorded checkpoints in the order of the layouts."""
    order = list(LAYOUTS_BY_NAME)
    return sorted(recorded.names(), key=lambda name: (order.index(recorded.record(name)["layout"]), name))


def table(reads: dict[str, str]) -> str:
    """The table.

    Args:
        reads: recorded name → result of reading it.
    """
    return "\n".join([*HEAD, *OURS, *(row(name, reads[name]) for name in ordered()), *REFUSED])


def read(name: str) -> str:
    """Write the recorded checkpoint, read it and return the result."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pth"
        torch.save(recorded.checkpoint(name)[0], path)
        try:
            backbone = read_backbone(path)
        except UserError as error:
            return f"no: {error}"
    return f"{len(backbone.tensors)}/265" if backbone.source.layout == recorded.record(name)["layout"] else "wrongly"


def in_docs(text: str) -> str:
    """The text between the marks."""
    return text.split(BEGIN)[1].split(END)[0].strip()


if __name__ == "__main__":
    before = DOCS.read_text()
    made = table({name: read(name) for name in recorded.names()})
    write_text(DOCS, before.split(BEGIN)[0] + f"{BEGIN}\n{made}\n{END}" + before.split(END)[1])
    sys.stdout.write(f"{DOCS}: {len(made.splitlines()) - 2} checkpoints\n")
