"""Stands in for tools/transfer.py."""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import fake


def main(argv):
    out = Path(fake.words_after(argv, "--output"))
    out.mkdir(parents=True, exist_ok=True)
    fake.event("start", out.name)
    weights = fake.words_after(argv, "--weights")
    text = "scratch" if weights == "scratch" else Path(weights).read_text()
    sys.stdout.write(f"threads {os.environ.get('OMP_NUM_THREADS')} marked {os.environ.get('MARK')}\n")
    fake.event("gpus", out.name, os.environ.get("CUDA_VISIBLE_DEVICES", "-"), *argv[:2])
    code = fake.obey(out.name, out)
    if code is None:
        diverged = fake.orders_for(out.name).get("diverge")
        result = {"status": "diverged" if diverged else "done", "seed": int(fake.words_after(argv, "--seed"))}
        if "SOLVER.BASE_LR" in argv:
            result |= {"lr": float(fake.words_after(argv, "SOLVER.BASE_LR"))}
        if "--lr-from" in argv:
            result |= {"lr": json.loads(Path(fake.words_after(argv, "--lr-from")).read_text())["chosen"]}
        result |= {"weights": text, "metrics": {"bbox": {"AP50": 50.0}}}
        result |= {"divergence": {"iteration": 2, "what": "loss is NaN"}} if diverged else {}
        fake.write(out / "result.json", result)
        code = 0
    fake.event("end", out.name, str(code))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
