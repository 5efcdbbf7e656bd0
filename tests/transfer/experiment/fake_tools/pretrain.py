"""Stands in for tools/pretrain.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import fake


def main(argv):
    out = Path(fake.words_after(argv, "--output"))
    out.mkdir(parents=True, exist_ok=True)
    fake.event("start", out.name)
    code = fake.obey(out.name, out)
    if code is None:
        fake.write(out / "backbone.safetensors", f"weights of {Path(fake.words_after(argv, '--config-file')).stem}")
        fake.write(out / "result.json", {"status": "done", "final": {"loss": -0.9, "std": 0.02}})
        code = 0
    fake.event("end", out.name, str(code))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
