"""Make lars.json: float64 golden values from the LARS of BYOL's and SimCLR's code and apex's LARC, run unchanged.

    python tests/pretrain/golden/make_lars.py DEEPMIND SIMCLR APEX

What is run: `lars` of byol/utils/optimizers.py with its own filters, `learning_schedule` of byol/utils/schedules.py,
`LARSOptimizer` of lars_optimizer.py with the exclusions of model_util.py, and `LARC` without clipping around torch's
SGD, as in SwAV's main_swav.py. The first three need JAX or TensorFlow for arithmetic only, which numpy does here under
their names. Weights and gradients are ours (narrow_lars.py).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2]))
from tests.pretrain.golden import narrow_lars as narrow  # noqa: E402
from tests.pretrain.golden.harness import load_module, write_golden_values  # noqa: E402

OPTIMIZERS, SCHEDULES, LARS = "byol/utils/optimizers.py", "byol/utils/schedules.py", "lars_optimizer.py"
LARC = "apex/parallel/LARC.py"


ORIGINALS = {
    "google-deepmind/deepmind-research": "f5de0ede8430809180254ee957abf36ed62579ef",
    "google-research/simclr": "383d4143fd8cf7879ae10f1046a9baeb753ff438",
    "NVIDIA/apex": "e13873debc4699d39c6861074b9a3b2a02327f92",
}


def files(clones: Sequence[Path]) -> dict[str, Path]:
    """The originals' files."""
    deepmind, simclr, apex = clones
    found = {OPTIMIZERS: deepmind, SCHEDULES: deepmind, LARS: simclr, LARC: apex}
    return {name: clone / name for name, clone in found.items()}


def values(_clones: Sequence[Path], files: Mapping[str, Path]) -> dict[str, Any]:
    """All golden values."""
    by_apex = larc(load_module(files[LARC]))  # first: torch checks what is imported
    name_numpy_as_jax()
    name_numpy_as_tensorflow()
    original = {name: load_module(file) for name, file in files.items() if name != LARC}
    return {
        "numpy": np.__version__,
        "torch": torch.__version__,
        "byol": byol(original[OPTIMIZERS]),
        "simclr": simclr(original[LARS]),
        "larc": by_apex,
        "schedule": schedule(original[SCHEDULES]),
    }


class GradientTransformation(NamedTuple):
    """optax's: two functions."""

    init: Callable[..., Any]
    update: Callable[..., Any]


def chain(*parts: GradientTransformation) -> GradientTransformation:
    """optax's: one after the other."""

    def update(updates: Any, states: Any, params: Any) -> tuple[Any, list[Any]]:
        after = []
        for part, state in zip(parts, states, strict=True):
            updates, new = part.update(updates, state, params)
            after.append(new)
        return updates, after

    return GradientTransformation(lambda params: [part.init(params) for part in parts], update)


def scale(factor: float) -> GradientTransformation:
    """optax's: times a number."""
    return GradientTransformation(
        lambda _params: None, lambda updates, state, _params: (mapped(lambda u: factor * u, updates), state)
    )


def mapped(function: Callable[..., Any], *trees: Any) -> Any:
    """jax.tree_map on dictionaries of dictionaries."""
    if isinstance(trees[0], dict):
        return {key: mapped(function, *(tree[key] for tree in trees)) for key in trees[0]}
    return function(*trees)


def with_path(function: Callable[..., Any], tree: Any, path: tuple[str, ...] = ()) -> Any:
    """tree.map_structure_with_path on dictionaries of dictionaries."""
    if isinstance(tree, dict):
        return {key: with_path(function, value, (*path, key)) for key, value in tree.items()}
    return function(path, tree)


def name_numpy_as_jax() -> None:
    """Give BYOL's imports something to find."""
    jax, jnp, optax, tree = (ModuleType(name) for name in ("jax", "jax.numpy", "optax", "tree"))
    for module, entries in (
        (
            jnp,
            {name: getattr(np, name) for name in ("array", "where", "zeros_like", "minimum", "cos", "pi", "ndarray")},
        ),
        (jnp, {"linalg": np.linalg, "float32": np.float64}),  # float64 throughout
        (jax, {"numpy": jnp, "tree_map": mapped}),
        (optax, {"GradientTransformation": GradientTransformation, "chain": chain, "scale": scale}),
        (optax, {"Updates": Any, "Params": Any}),
        (tree, {"map_structure_with_path": with_path}),
    ):
        for name, value in entries.items():
            setattr(module, name, value)
        sys.modules[module.__name__] = module


def byol(optimizers: ModuleType) -> dict[str, list[float]]:
    """The weights after the steps; as byol_experiment.py, a new transformation with each step's rate."""

    def nested(flat: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
        found: dict[str, dict[str, np.ndarray]] = {}
        for name, (outer, inner) in narrow.JAX_NAMES.items():
            found.setdefault(outer, {})[inner] = flat[name]
        return found

    def lars(rate: float) -> GradientTransformation:
        spared = optimizers.exclude_bias_and_norm
        transformation: GradientTransformation = optimizers.lars(
            rate,
            weight_decay=narrow.DECAY,
            momentum=narrow.MOMENTUM,
            eta=narrow.TRUST,
            weight_decay_filter=spared,
            lars_adaptation_filter=spared,
        )
        return transformation

    params = nested(narrow.weights())
    state = lars(0).init(params)
    for step in range(narrow.STEPS):
        updates, state = lars(narrow.falling(step)).update(nested(narrow.gradients(step)), state, params)
        params = mapped(lambda p, u: p + u, params, updates)
    return {name: params[outer][inner].ravel().tolist() for name, (outer, inner) in narrow.JAX_NAMES.items()}


class Variable:
    """A TensorFlow variable: a name, a value, arithmetic on the value."""

    def __init__(self, name: str, value: np.ndarray) -> None:
        self.op, self.value, self.shape = self, value, self
        self.name = name

    def as_list(self) -> list[int]:
        return list(self.value.shape)

    def assign(self, value: np.ndarray) -> Callable[[], None]:
        """An operation for `tf.group`."""
        return lambda: setattr(self, "value", value)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.value

    def __rmul__(self, factor: float) -> np.ndarray:
        return factor * self.value

    def __sub__(self, other: np.ndarray) -> np.ndarray:
        return self.value - other


def name_numpy_as_tensorflow() -> None:
    """Give SimCLR's imports something to find."""
    tensorflow, compat, tf, train = (ModuleType(n) for n in ("tensorflow", "tensorflow.compat", "v1", "train"))
    kept: dict[str, Variable] = {}

    def get_variable(name: str, shape: list[int], **_: Any) -> Variable:
        return kept.setdefault(name, Variable(name, np.zeros(shape)))

    class Optimizer:
        def __init__(self, *_: Any) -> None:
            pass

    entries: dict[str, Any] = {
        "float32": np.float64,
        "zeros_initializer": lambda: None,
        "get_variable": get_variable,
        "norm": lambda x, ord: np.linalg.norm(np.asarray(x).ravel(), ord),
        "where": lambda condition, then, other: then if condition else other,
        "greater": lambda a, b: a > b,
        "multiply": lambda a, b: a * np.asarray(b),
        "group": lambda *operations, **_: [operation() for operation in operations],
        "train": train,
    }
    for name, value in entries.items():
        setattr(tf, name, value)
    train.Optimizer = Optimizer  # type: ignore[attr-defined]
    compat.v1, tensorflow.compat = tf, compat  # type: ignore[attr-defined]
    sys.modules.update({"tensorflow": tensorflow, "tensorflow.compat": compat, "tensorflow.compat.v1": tf})


def simclr(lars: ModuleType) -> dict[str, list[float]]:
    """The weights after the steps at a constant rate."""
    optimizer = lars.LARSOptimizer(
        narrow.LR,
        momentum=narrow.MOMENTUM,
        weight_decay=narrow.DECAY,
        exclude_from_weight_decay=["batch_normalization", "bias", "head_supervised"],
        eeta=narrow.TRUST,
    )
    variables = {name: Variable(narrow.TF_NAMES[name], value) for name, value in narrow.weights().items()}
    for step in range(narrow.STEPS):
        found = narrow.gradients(step)
        optimizer.apply_gradients([(found[name].copy(), variable) for name, variable in variables.items()])
    return {name: variable.value.ravel().tolist() for name, variable in variables.items()}


def larc(apex: ModuleType) -> dict[str, list[float]]:
    """The weights after the steps; LARC gets each step's rate as in SwAV."""
    params = {name: torch.nn.Parameter(torch.from_numpy(value)) for name, value in narrow.weights().items()}
    sgd = torch.optim.SGD(params.values(), narrow.LR, momentum=narrow.MOMENTUM, weight_decay=narrow.DECAY)
    optimizer = apex.LARC(sgd, trust_coefficient=narrow.TRUST, clip=False)
    for step in range(narrow.STEPS):
        for group in optimizer.param_groups:
            group["lr"] = narrow.falling(step)
        for name, gradient in narrow.gradients(step).items():
            params[name].grad = torch.from_numpy(gradient)
        optimizer.step()
    return {name: p.detach().flatten().tolist() for name, p in params.items()}


def schedule(schedules: ModuleType) -> list[float]:
    """BYOL's learning rates."""
    steps = narrow.IMAGES // narrow.BATCH
    total, warmup = narrow.EPOCHS * steps, narrow.WARMUP * steps
    return [
        float(schedules.learning_schedule(np.int64(step), narrow.BATCH, narrow.BASE_LR, total, warmup))
        for step in range(total)
    ]


if __name__ == "__main__":
    write_golden_values("lars", __doc__, ORIGINALS, files, values)
