"""This project's backbone file (docs/reference/formats.md): torchvision's names, described by the file's metadata."""

from __future__ import annotations

from ssl_transfer.formats.backbone import BACKBONE_FORMAT, BackboneMetadata
from transfer.weights.containers import CheckpointFile
from transfer.weights.converted import check_manifest
from transfer.weights.match import Match


class Own:
    """Written at the end of pre-training, and with a manifest by `--to safetensors` and `--to torchvision`."""

    name = "own"
    title = "this project's backbone file"

    def match(self, checkpoint: CheckpointFile) -> Match | None:
        """Recognise the layout.

        Raises:
            UserError: the metadata say that it is a backbone file, and it is incomplete or not what its manifest says.
        """
        if checkpoint.metadata.get("format") != BACKBONE_FORMAT:
            return None
        metadata = BackboneMetadata.parse(checkpoint.metadata, f"{checkpoint.path}, metadata")
        rule, tensors = f"its metadata say format {BACKBONE_FORMAT}", checkpoint.tensors()
        if metadata.manifest is not None:
            check_manifest(metadata.manifest, tensors, checkpoint.path)
            rule += ", with a manifest"
        return Match(
            layout=self.name,
            rule=rule,
            branches={metadata.branch: tensors},
            default=metadata.branch,
            preprocessing=metadata.preprocessing,
            arch=metadata.arch,
            origin=metadata.origin,
        )

    def describe(self) -> str:
        return f"format {BACKBONE_FORMAT} in its metadata"


LAYOUT = Own()
