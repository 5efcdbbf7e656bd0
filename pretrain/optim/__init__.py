"""Optimisers and schedules: which parameters learn, and how fast at which iteration."""

OPTIMIZERS = ("sgd", "lars", "larc")
"""Values of SOLVER.OPTIMIZER."""

SCHEDULES = ("cosine_by_epoch", "cosine_by_step", "steps")
"""Values of SOLVER.SCHEDULE."""

WARMUP_ENDS = ("last", "first", "both")
"""Values of SOLVER.WARMUP_ENDS: which ends of its ramp the warm-up's own iterations take."""
