"""This project's backbone file (docs/reference/formats.md): torchvision's names, described by the file's metadata."""

from __future__ import annotations

from common.errors import UserError
from transfer.weights import backbone_file
from transfer.weights import manifest as manifests
from transfer.weights.containers import Content
from transfer.weights.match import Match


class Own:
    """Written by pre-training's end, and by `--to safetensors` and `--to torchvision` with a manifest in it."""

    name = "own"
    title = "this project's backbone file"

    def match(self, content: Content) -> Match | None:
        """See `match.Layout`.

        Raises:
            UserError: the metadata says it is ours and then is not whole, or not what its manifest says.
        """
        held, where = content.metadata, content.path
        if not backbone_file.is_backbone(held):
            return None
        branch, block = backbone_file.branch_of(held, where), backbone_file.preprocessing_of(held, where)
        origin = backbone_file.parsed(held, "origin", where)
        if origin is not None and not isinstance(origin, dict):
            raise UserError(f"{where}: metadata origin must hold keys and values")
        tensors = content.tensors()
        rule = f"its metadata say format {backbone_file.FORMAT}"
        if "manifest" in held:
            manifests.check(backbone_file.parsed(held, "manifest", where), tensors, where)
            rule += ", with a manifest"
        return Match(self.name, rule, {branch: tensors}, branch, (), block, held.get("arch"), origin)

    def expects(self) -> str:
        """See `match.Layout`."""
        return f"format {backbone_file.FORMAT} in its metadata"


LAYOUT = Own()
