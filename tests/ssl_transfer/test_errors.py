"""The hint that an unknown name gets."""

from __future__ import annotations

import pytest

from ssl_transfer.errors import nearest

KEYS = ["SOLVER.BASE_LR", "SOLVER.MAX_ITER", "MODEL.WEIGHTS"]


@pytest.mark.parametrize(
    ("word", "meant"),
    [("SOLVER.BASELR", "SOLVER.BASE_LR"), ("solver.max_iter", "SOLVER.MAX_ITER"), ("WEIGHTS", "MODEL.WEIGHTS")],
)
def test_the_key_that_was_meant_comes_first(word: str, meant: str) -> None:
    assert nearest(word, KEYS).startswith(f"did you mean {meant}")


def test_the_number_of_hints_is_limited() -> None:
    assert nearest("voc07", ["voc071", "voc072", "voc073", "voc074"], count=2).count("voc07") == 2


def test_without_a_similar_name_the_valid_names_are_listed_in_order() -> None:
    assert nearest("zzz", ["b", "a"]) == "valid: a, b"
    listed = nearest("zzz", [f"name{i:02d}" for i in range(13)])
    assert "name11" in listed and "name12" not in listed and listed.endswith("…")


def test_no_valid_name_at_all() -> None:
    assert nearest("a", []) == "none is valid here"
