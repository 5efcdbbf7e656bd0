"""SHA-256 of weights files, remembered by size and time of change: hashing them at every `plan` would take seconds."""

from __future__ import annotations

from pathlib import Path

from common.errors import UserError
from common.files import read_json, sha256_of, write_json

FILE = "digests.json"


class Digests:
    """Digests of files, remembered in `RUN_DIR/digests.json` once `save` was called.

    Args:
        run_dir: the run folder; it need not exist.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / FILE
        self.known: dict[str, list[object]] = read_json(self.path) if self.path.exists() else {}

    def of(self, file: Path) -> str:
        """The file's SHA-256.

        Raises:
            UserError: it does not exist or cannot be read.
        """
        try:
            stat = file.stat()
            mark = [stat.st_size, stat.st_mtime_ns]
            known = self.known.get(str(file))
            if known and known[:2] == mark:
                return str(known[2])
            digest = sha256_of(file)
        except OSError as error:
            raise UserError(f"weights {file}: {error.strerror}; give the path of a checkpoint file") from error
        self.known[str(file)] = [*mark, digest]
        return digest

    def save(self) -> None:
        """Remember what was computed."""
        if self.known:
            write_json(self.path, self.known)
