"""What the optimiser's and the schedule's keys refuse, each in one line that names the key and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.config import load_config
from ssl_transfer.console import call_main
from ssl_transfer.errors import UserError
from tools.pretrain import main

STEPS = "SOLVER.SCHEDULE steps SOLVER.STEPS [1]"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("SOLVER.OPTIMIZER adam", "SOLVER.OPTIMIZER is 'adam'"),
        ("SOLVER.OPTIMIZER lar", "lar"),
        ("SOLVER.LARS_ETA 0.002", "SOLVER.LARS_ETA is 0.002; SOLVER.OPTIMIZER sgd does not read it (lars and larc do)"),
        ("SOLVER.OPTIMIZER lars SOLVER.LARS_ETA 0.0", "SOLVER.LARS_ETA is 0.0; it must be above 0"),
        ("SOLVER.OPTIMIZER larc SOLVER.OPTIMIZER_IMPL fused", "SOLVER.OPTIMIZER_IMPL is 'fused', which"),
        ("SOLVER.SCHEDULE cosine", "SOLVER.SCHEDULE is 'cosine', which does not exist; did you mean cosine_by"),
        ("SOLVER.STEPS [1]", "SOLVER.STEPS is (1,); SOLVER.SCHEDULE cosine_by_epoch does not read it (steps does)"),
        ("SOLVER.GAMMA 0.5", "SOLVER.GAMMA is 0.5; SOLVER.SCHEDULE cosine_by_epoch does not read it"),
        ("SOLVER.SCHEDULE steps", "SOLVER.STEPS is empty"),
        ("SOLVER.SCHEDULE steps SOLVER.STEPS [2]", "SOLVER.STEPS ends at 2; it must be below SOLVER.EPOCHS, 2"),
        ("SOLVER.SCHEDULE steps SOLVER.STEPS [2,1]", "SOLVER.STEPS is (2, 1); it must be epochs in ascending order"),
        ("SOLVER.SCHEDULE steps SOLVER.STEPS [1.5]", "SOLVER.STEPS is (1.5,); it must be epochs"),
        (f"{STEPS} SOLVER.GAMMA 1.0", "SOLVER.GAMMA is 1.0; it must be above 0 and below 1"),
        (f"{STEPS} SOLVER.FINAL_LR 0.1", "SOLVER.FINAL_LR is 0.1; SOLVER.SCHEDULE steps does not read it"),
        (f"{STEPS} SOLVER.EPOCHS 9 SOLVER.WARMUP_EPOCHS 2", "SOLVER.STEPS begins at 1, within SOLVER.WARMUP_EPOCHS 2"),
        ("SOLVER.FINAL_LR -1.0", "SOLVER.FINAL_LR is -1.0; it must be 0 or more"),
        ("SOLVER.FINAL_LR 0.06", "SOLVER.FINAL_LR is 0.06; the peak learning rate is less"),
        ("SOLVER.WARMUP_START_LR 0.01", "SOLVER.WARMUP_START_LR is 0.01; it has no effect with SOLVER.WARMUP_EPOCHS 0"),
        ("SOLVER.WARMUP_ENDS both", "SOLVER.WARMUP_ENDS is 'both'; it has no effect with SOLVER.WARMUP_EPOCHS 0"),
        ("SOLVER.WARMUP_EPOCHS 1 SOLVER.WARMUP_ENDS all", "SOLVER.WARMUP_ENDS is 'all'"),
        ("SOLVER.WARMUP_EPOCHS 1 SOLVER.WARMUP_START_LR 1.0", "SOLVER.WARMUP_START_LR is 1; the peak learning rate"),
    ],
)
def test_invalid_or_unused_key_is_refused(config: Path, words: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(config, overrides=words.split())
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        "SOLVER.OPTIMIZER lars SOLVER.LARS_ETA 0.002 SOLVER.OPTIMIZER_IMPL foreach",
        "SOLVER.OPTIMIZER larc SOLVER.SCHEDULE cosine_by_step SOLVER.FINAL_LR 0.01",
        f"{STEPS} SOLVER.GAMMA 0.5 SOLVER.EPOCHS 3 SOLVER.WARMUP_EPOCHS 1 SOLVER.WARMUP_ENDS both",
    ],
)
def test_valid_combinations_are_accepted(config: Path, words: str) -> None:
    load_config(config, overrides=words.split())


def test_command_line_refuses_in_one_line_with_exit_2(
    config: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["--config-file", str(config), "--output", str(out), "DATA.ROOT", str(images), "SOLVER.OPTIMIZER", "adam"]
    assert call_main(main, words) == 2
    errors = capsys.readouterr().err.strip()
    assert "SOLVER.OPTIMIZER is 'adam'" in errors and "\n" not in errors and not out.exists()
