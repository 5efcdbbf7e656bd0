"""Strict configuration: unknown keys and values of another type are refused, with the file and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fvcore.common.config import CfgNode

from ssl_transfer import config
from ssl_transfer.errors import UserError


@pytest.fixture
def cfg() -> CfgNode:
    return CfgNode(
        {
            "OUT": "runs",
            "SOLVER": {"LR": 0.05, "ITERS": 10, "STEPS": (6, 8), "NESTEROV": False, "CLIP": None},
            "MODEL": {"SIZES": [[32, 64]], "NAMES": ["a"], "EXTRA": {}, "TRAIN": ()},
        }
    )


def save(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_values_are_merged_in_the_type_of_the_default(cfg: CfgNode) -> None:
    config.merge_strict(
        cfg,
        {"SOLVER": {"LR": 1, "STEPS": [1, 2, 3], "NESTEROV": True, "CLIP": 0.5}, "MODEL": {"TRAIN": ["x"]}},
        "f.yaml",
    )
    assert cfg.SOLVER.LR == 1.0 and isinstance(cfg.SOLVER.LR, float)
    assert cfg.SOLVER.STEPS == (1, 2, 3)
    assert cfg.SOLVER.NESTEROV is True and cfg.SOLVER.CLIP == 0.5
    assert cfg.MODEL.TRAIN == ("x",)
    assert cfg.SOLVER.ITERS == 10


def test_yaml_writes_small_numbers_as_strings(cfg: CfgNode, tmp_path: Path) -> None:
    file = save(tmp_path / "a.yaml", "SOLVER: {LR: 1e-4}\n")
    config.merge_strict(cfg, config.load_with_base(file), str(file))
    assert cfg.SOLVER.LR == 1e-4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"SOLVER": {"LRR": 1}}, "f.yaml: unknown key 'SOLVER.LRR'; did you mean SOLVER.LR"),
        ({"SOLVER": {"LR": "fast"}}, "f.yaml: SOLVER.LR must be of type float, not str"),
        ({"SOLVER": {"ITERS": 1.5}}, "SOLVER.ITERS must be of type int, not float"),
        ({"SOLVER": {"NESTEROV": 1}}, "SOLVER.NESTEROV must be of type bool, not int"),
        ({"SOLVER": {"ITERS": True}}, "SOLVER.ITERS must be of type int, not bool"),
        ({"SOLVER": {"LR": True}}, "SOLVER.LR must be of type float, not bool"),
        ({"SOLVER": {"STEPS": 5}}, "SOLVER.STEPS must be of type tuple, not int"),
        ({"SOLVER": {"STEPS": ["x"]}}, r"SOLVER.STEPS\[0\] must be of type float, not str"),
        ({"MODEL": {"SIZES": [32]}}, r"MODEL.SIZES\[0\] must be of type list, not int"),
        ({"MODEL": {"SIZES": [[True]]}}, r"MODEL.SIZES\[0\]\[0\] must be of type float, not bool"),
        ({"MODEL": {"NAMES": [1]}}, r"MODEL.NAMES\[0\] must be of type str, not int"),
        ({"SOLVER": 3}, "SOLVER is a section; give its keys, such as SOLVER.LR"),
        ({"SOLVER": {"LR": {"X": 1}}}, "SOLVER.LR must be of type float, not dict"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(cfg: CfgNode, values: dict[str, Any], message: str) -> None:
    before = cfg.dump()
    with pytest.raises(UserError, match=message):
        config.merge_strict(cfg, values, "f.yaml")
    assert cfg.dump() == before


def test_numbers_in_lists_may_be_whole_or_not(cfg: CfgNode) -> None:
    config.merge_strict(cfg, {"MODEL": {"SIZES": [[16, 22.6], [32, "1e2"]]}}, "f")
    assert cfg.MODEL.SIZES == [[16, 22.6], [32, 100.0]]


def test_overrides_are_read_as_python_writes_them(cfg: CfgNode) -> None:
    config.merge_overrides(
        cfg, ["SOLVER.LR", "1e-3", "SOLVER.STEPS", "(1,2)", "SOLVER.NESTEROV", "true", "SOLVER.CLIP", "None"]
    )
    assert (cfg.SOLVER.LR, cfg.SOLVER.STEPS, cfg.SOLVER.NESTEROV, cfg.SOLVER.CLIP) == (1e-3, (1, 2), True, None)


@pytest.mark.parametrize("word", ["2007", "1.0", "True", "a/b", "{[]: 1}"])
def test_a_string_key_takes_the_word_as_it_is(cfg: CfgNode, word: str) -> None:
    config.merge_overrides(cfg, ["OUT", word])
    assert word == cfg.OUT


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["SOLVER.LR"], "pairs KEY VALUE; 'SOLVER.LR' has no partner"),
        (["SOLVER.LRR", "1"], "command line: unknown key 'SOLVER.LRR'; did you mean SOLVER.LR"),
        (["SOLVER.ITERS", "many"], "SOLVER.ITERS must be of type int"),
    ],
)
def test_bad_overrides(cfg: CfgNode, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config.merge_overrides(cfg, words)


def test_a_chain_of_bases_is_merged_base_first(tmp_path: Path) -> None:
    save(tmp_path / "base.yaml", "A: {X: 1, Y: 1}\nB: [1]\n")
    (tmp_path / "sub").mkdir()
    save(tmp_path / "sub" / "mid.yaml", "_BASE_: ../base.yaml\nA: {Y: 2, Z: 2}\n")
    top = save(tmp_path / "sub" / "top.yaml", "_BASE_: mid.yaml\nB: [3]\n")
    assert config.load_with_base(top) == {"A": {"X": 1, "Y": 2, "Z": 2}, "B": [3]}
    assert [file.name for file in config.resolve_base_files(top)] == ["base.yaml", "mid.yaml", "top.yaml"]


def test_anchors_are_not_entangled_by_merging(tmp_path: Path) -> None:
    save(tmp_path / "base.yaml", "A: &same {X: 1}\nB: *same\n")
    top = save(tmp_path / "top.yaml", "_BASE_: base.yaml\nA: {X: 2}\n")
    assert config.load_with_base(top) == {"A": {"X": 2}, "B": {"X": 1}}


def test_a_base_that_leads_back_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.yaml", "_BASE_: b.yaml\n")
    save(tmp_path / "b.yaml", "_BASE_: a.yaml\n")
    with pytest.raises(UserError, match="_BASE_"):
        config.load_with_base(tmp_path / "a.yaml")


def test_a_missing_base_names_the_file_that_asks_for_it(tmp_path: Path) -> None:
    file = save(tmp_path / "a.yaml", "_BASE_: no.yaml\n")
    with pytest.raises(UserError, match=r"a.yaml: its _BASE_ .*no.yaml does not exist"):
        config.load_with_base(file)


def test_a_base_of_this_project_is_found_from_any_folder_and_an_own_file_comes_first(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = save(tmp_path / "own.yaml", "_BASE_: configs/transfer/voc07.yaml\nSOLVER: {MAX_ITER: 4}\n")
    assert config.resolve_base_files(file)[-2] == root / "configs/transfer/voc07.yaml"
    (tmp_path / "configs/transfer").mkdir(parents=True)
    own = save(tmp_path / "configs/transfer/voc07.yaml", "SOLVER: {MAX_ITER: 5}\n")
    assert config.resolve_base_files(file) == [own, file]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A: 1\nB: [1\n", "bad.yaml, line 3: not YAML"),
        ("A: 1\nB: 2\nA: 3\n", "bad.yaml, line 3: .*'A' is given a second time"),
        ("S:\n  X: 1\n  X: 2\n", "bad.yaml, line 3: .*'X'"),
        ("- 1\n", "holds a list, not keys and values"),
        ("A: !!python/object/apply:os.system ['true']\n", "line 1: not YAML"),
    ],
)
def test_bad_yaml_names_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config.load_yaml(save(tmp_path / "bad.yaml", text))


def test_missing_unreadable_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no.yaml does not exist"):
        config.load_yaml(tmp_path / "no.yaml")
    with pytest.raises(UserError, match="is a folder"):
        config.load_yaml(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"A: \xe9\n")
    with pytest.raises(UserError, match="cannot read"):
        config.load_yaml(tmp_path / "latin.yaml")
    assert config.load_yaml(save(tmp_path / "empty.yaml", "# nothing\n")) == {}


def test_an_overlay_gives_each_half_its_section(tmp_path: Path) -> None:
    file = save(tmp_path / "cpu.yaml", "pretrain: {A: 1}\ntransfer:\n")
    assert config.overlay_section(file, "pretrain") == {"A": 1}
    assert config.overlay_section(file, "transfer") == {}


@pytest.mark.parametrize(
    ("text", "message"), [("pretrian: {A: 1}\n", "unknown section 'pretrian'"), ("pretrain: 3\n", "keys and values")]
)
def test_a_bad_overlay_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config.overlay_section(save(tmp_path / "o.yaml", text), "pretrain")


def test_every_key_of_detectron2_takes_its_own_default(tmp_path: Path) -> None:
    """Our types must not be stricter than what a dumped config holds."""
    from detectron2.config import get_cfg

    cfg = get_cfg()
    file = save(tmp_path / "dump.yaml", cfg.dump())
    config.merge_strict(cfg, config.load_with_base(file), "dump")
    assert cfg == get_cfg()


CHANGES = config.KeyChanges(
    renamed={"SOLVER.RATE": "SOLVER.LR", "NESTEROV": "SOLVER.NESTEROV"},
    removed={"SOLVER.LATE": "it is always on; remove the key"},
)


def test_a_renamed_key_is_read_and_the_warning_names_the_new_one(
    cfg: CfgNode, caplog: pytest.LogCaptureFixture
) -> None:
    config.merge_strict(cfg, {"SOLVER": {"RATE": 0.5}, "NESTEROV": True}, "f.yaml", CHANGES)
    assert (cfg.SOLVER.LR, cfg.SOLVER.NESTEROV) == (0.5, True)
    assert "f.yaml: SOLVER.RATE is now called SOLVER.LR" in caplog.text
    caplog.clear()
    config.merge_overrides(cfg, ["SOLVER.ITERS", "3", "SOLVER.RATE", "0.25"], changes=CHANGES)
    assert (cfg.SOLVER.LR, cfg.SOLVER.ITERS) == (0.25, 3)
    assert "command line: SOLVER.RATE is now called SOLVER.LR" in caplog.text


def test_a_removed_key_is_refused_with_what_to_do(cfg: CfgNode) -> None:
    with pytest.raises(UserError, match=r"f.yaml: SOLVER.LATE no longer exists: .* remove the key"):
        config.merge_strict(cfg, {"SOLVER": {"LATE": True}}, "f.yaml", CHANGES)
    with pytest.raises(UserError, match=r"command line: SOLVER.LATE no longer exists"):
        config.merge_overrides(cfg, ["SOLVER.LATE", "True"], changes=CHANGES)


def test_a_key_under_both_names_is_refused(cfg: CfgNode) -> None:
    with pytest.raises(UserError, match=r"give SOLVER.LR alone"):
        config.merge_strict(cfg, {"SOLVER": {"RATE": 0.5, "LR": 0.5}}, "f.yaml", CHANGES)


def test_a_recorded_config_of_an_earlier_release_is_read_silently(
    cfg: CfgNode, caplog: pytest.LogCaptureFixture
) -> None:
    recorded = {"SOLVER": {"RATE": 0.5, "LATE": True}}
    config.merge_strict(cfg, recorded, "config.yaml", CHANGES, recorded=True)
    assert cfg.SOLVER.LR == 0.5
    assert recorded == {"SOLVER": {"RATE": 0.5, "LATE": True}}, "the values themselves are unchanged"
    assert not caplog.text


def test_layers_pass_the_changes_on(cfg: CfgNode, tmp_path: Path) -> None:
    save(tmp_path / "base.yaml", "SOLVER: {RATE: 0.5}\n")
    top = save(tmp_path / "top.yaml", "_BASE_: base.yaml\nSOLVER: {LR: 0.75}\n")
    config.merge_layers(cfg, top, "pretrain", None, ["NESTEROV", "True"], changes=CHANGES)
    assert (cfg.SOLVER.LR, cfg.SOLVER.NESTEROV) == (0.75, True)
