"""The worlds of parity are imported by name, here and by the scripts that run beside an original."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
