"""Config files are found by path, by `configs/…` and by name, from any folder; the user's own file wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssl_transfer import config_files
from ssl_transfer.config_files import find_config, list_configs
from ssl_transfer.environment import ROOT
from ssl_transfer.errors import UserError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "folder", "file"),
    [
        ("voc07", "transfer", "transfer/voc07.yaml"),
        ("voc07.yaml", "transfer", "transfer/voc07.yaml"),
        ("configs/transfer/voc07.yaml", "transfer", "transfer/voc07.yaml"),
        ("simsiam_r50_b256_200ep_base", "pretrain", "pretrain/simsiam_r50_b256_200ep_base.yaml"),
        ("finetune/byol", "transfer", "transfer/finetune/byol.yaml"),
        ("knn_cifar10_k200_t0.1", "evaluation", "evaluation/knn_cifar10_k200_t0.1.yaml"),
        ("cpu", "overlays", "overlays/cpu.yaml"),
        ("demo", "experiments", "experiments/demo.yaml"),
    ],
)
def test_a_shipped_config_is_found_by_its_name(name: str, folder: str, file: str) -> None:
    assert find_config(name, folder) == ROOT / "configs" / file


def test_the_users_own_file_wins_and_a_folder_of_that_name_does_not(elsewhere: Path) -> None:
    (elsewhere / "demo").mkdir()
    assert find_config("demo", "experiments") == ROOT / "configs/experiments/demo.yaml"
    (elsewhere / "demo.yaml").write_text("")
    assert find_config("demo", "experiments") == Path("demo.yaml")
    own = elsewhere / "configs/transfer/voc07.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("")
    assert find_config("configs/transfer/voc07.yaml", "transfer") == Path("configs/transfer/voc07.yaml")
    assert find_config(own, "transfer") == own


@pytest.mark.parametrize("name", ["voc7", "configs/transfer/voc7.yaml", "voc7.yml"])
def test_an_unknown_name_lists_similar_ones(name: str) -> None:
    with pytest.raises(UserError, match=rf"{name} does not exist; did you mean .*voc07"):
        find_config(name, "transfer")


def test_names_of_another_folder_are_no_match() -> None:
    with pytest.raises(UserError, match="voc07 does not exist; --list-configs lists those of configs/pretrain"):
        find_config("voc07", "pretrain")


def test_an_ambiguous_name_is_refused_with_the_full_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one/same.yaml", "two/same.yaml"):
        (tmp_path / "shipped/transfer" / name).parent.mkdir(parents=True)
        (tmp_path / "shipped/transfer" / name).write_text("")
    monkeypatch.setattr(config_files, "CONFIGS", tmp_path / "shipped")
    with pytest.raises(UserError, match="one/same, two/same"):
        find_config("same", "transfer")
    assert find_config("two/same", "transfer").parent.name == "two"


def test_the_list_has_one_line_for_each_config_that_is_used_by_itself() -> None:
    lines = list_configs("transfer", "overlays").splitlines()
    assert lines[0] == "configs/transfer:" and "configs/overlays:" in lines
    names = [line.split()[0] for line in lines if line.startswith("  ")]
    assert {"voc07", "coco", "cpu"} <= set(names) and "base_rcnn_c4" not in names
    assert all(len(line) <= 120 for line in lines)
