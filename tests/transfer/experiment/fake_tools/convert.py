"""Stands in for tools/convert.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import fake


def main(argv):
    source, out = Path(argv[0]), Path(argv[1])
    fake.event("start", out.parent.name)
    code = fake.obey(out.parent.name, out.parent)
    if code is None:
        fake.write(out.with_suffix(".manifest.json"), {"count": 265})
        fake.write(out, f"converted {source.read_bytes()[:64]!r}")
        code = 0
    fake.event("end", out.parent.name, str(code))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
