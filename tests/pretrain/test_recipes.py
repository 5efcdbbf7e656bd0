"""Every pre-training recipe against the protocol's numbers, which recipe_values.py holds a second time."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pretrain.config import load_config
from pretrain.optim.schedule import build_schedule, peak_lr
from ssl_transfer.config import dotted_keys, value_of
from tests.pretrain.recipe_values import ABLATIONS, CONFIGS, FOLDER, RECIPES, ROW_FILES


def _rows(name: str) -> dict[str, dict[str, Any]]:
    """The rows of a file of configs/expected, by key."""
    rows: list[dict[str, Any]] = yaml.safe_load((CONFIGS / "expected" / f"{name}.yaml").read_text())["rows"]
    return {row["key"]: row for row in rows}


def _header(file: Path) -> str:
    """The comment at the top of a recipe, in one line."""
    return re.sub(r"\n#\s*", " ", file.read_text())


def test_no_recipe_is_missing_here() -> None:
    bases = {path.stem for path in FOLDER.glob("base_*.yaml")} - {"base_supervised_r50"}
    assert {path.stem for path in FOLDER.glob("*.yaml")} - bases == RECIPES.keys()
    assert {path.stem for path in (FOLDER / "ablations").glob("*.yaml")} == {stem for _, stem, _ in ABLATIONS.values()}


@pytest.mark.parametrize("file", sorted(FOLDER.rglob("*.yaml")), ids=lambda file: file.stem)
def test_recipe_begins_with_what_it_gives_what_it_costs_and_the_command(file: Path) -> None:
    if file.stem.startswith("base_"):
        assert "Not run by itself." in _header(file)
    else:
        assert re.match(r"# Gives: .* Costs: \d+ epochs .* Run: python tools/pretrain.py --config-file ", _header(file))
        assert f"--config-file {file.relative_to(CONFIGS.parent)} " in _header(file)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_has_the_numbers_of_the_protocol(name: str) -> None:
    file, expected = FOLDER / f"{name}.yaml", RECIPES[name]
    cfg = load_config(file)
    assert {key: value_of(cfg, key) for key in expected} == expected
    row = _rows("table4").get({"moco": "moco_v2"}.get(cfg.METHOD, cfg.METHOD))
    compared = name.startswith(("moco", "byol", "simclr", "swav")) or re.fullmatch(r"simsiam_r50_b256_\d+ep_base", name)
    if compared:
        assert row is not None
        published = row["values"][f"ep{cfg.SOLVER.EPOCHS}"][0]
        assert f"Table 4 of the SimSiam paper: {published} linear" in _header(file)


@pytest.mark.parametrize("row", ABLATIONS)
def test_ablation_changes_only_its_keys_and_states_its_published_number(row: str) -> None:
    base_stem, stem, changes = ABLATIONS[row]
    file = FOLDER / "ablations" / f"{stem}.yaml"
    base, cfg = load_config(FOLDER / f"{base_stem}.yaml"), load_config(file)
    changed = [key for key in dotted_keys(base) if value_of(cfg, key) != value_of(base, key)]
    assert {key: value_of(cfg, key) for key in changed} == changes
    if row == "alternation_1":  # the default
        assert cfg.SIMSIAM.ALTERNATION_STEPS == 1
    if row == "moving_average":
        assert cfg.SIMSIAM.AVERAGE_MOMENTUM == 0.8
    published = _rows("ablations")[row]
    value = published["values"]["ep100"][0]
    if value is None:
        assert published["words"]["ep100"][0] in _header(file)
    else:
        spread = f"( ± {published['stds']['ep100'][0]})?" if "stds" in published else ""
        assert re.search(rf": {value}{spread} linear", _header(file))
    stated = yaml.safe_load(file.read_text())
    assert (stated.pop("_BASE_") == f"../{base_stem}.yaml" or row == "simclr_predictor_stopgrad") and stated


@pytest.mark.parametrize("batch", [64, 128, 512, 1024, 2048, 4096])
def test_batch_size_states_its_published_number(batch: int) -> None:
    value = _rows("ablations")[f"batch_{batch}"]["values"]["ep100"][0]
    assert f"{value} linear" in _header(ROW_FILES[f"batch_{batch}"])


def test_every_published_ablation_is_a_row_of_the_experiment() -> None:
    experiment = yaml.safe_load((CONFIGS / "experiments" / "ablations.yaml").read_text())
    ours = {row["expected"]: row["pretrain"]["config"] for row in experiment["rows"].values()}
    assert len(ours) == len(experiment["rows"])
    assert sorted(ours) == sorted(_rows("ablations")) == sorted(ROW_FILES)
    assert ours == {row: str(file.relative_to(CONFIGS.parent)) for row, file in ROW_FILES.items()}


@pytest.mark.parametrize(
    ("name", "peak", "first"),
    [
        ("simsiam_r50_b64_100ep_base", 0.0125, 0.0125),
        ("simsiam_r50_b256_200ep_base", 0.05, 0.05),
        ("simsiam_r50_b256_200ep_optimal", 0.5, 0.5),
        ("simsiam_r50_b512_100ep_base", 0.1, 0.1),
        ("simsiam_r50_b1024_100ep_base", 0.2, 0.002),
        ("simsiam_r50_b4096_100ep_base", 0.8, 0.008),
        ("simsiam_r18cifar_b512_800ep", 0.06, 0.06),
        ("ablations/simsiam_r50_b512_100ep_bn_none", 0.1, 0.001),
        ("moco_v2_r50_b256_200ep", 0.03, 0.03),
        ("byol_r50_b4096_100ep", 7.2, 0.0),
        ("byol_r50_b4096_400ep", 4.8, 0.0),
        ("byol_r50_b4096_800ep", 3.2, 0.0),
    ],
)
def test_learning_rate_at_the_ends_of_warm_up_and_cosine(name: str, peak: float, first: float) -> None:
    cfg, steps = load_config(FOLDER / f"{name}.yaml"), 10
    schedule, epochs, warmup = build_schedule(cfg, steps), cfg.SOLVER.EPOCHS, cfg.SOLVER.WARMUP_EPOCHS
    assert peak_lr(cfg) == pytest.approx(peak)
    assert schedule.at(0) == pytest.approx(first)
    assert schedule.at(warmup * steps) == pytest.approx(peak)
    if cfg.METHOD in ("moco", "byol"):
        assert schedule.at((epochs + warmup) * steps // 2) == pytest.approx(peak / 2)
    assert 0 < schedule.at(epochs * steps - 1) < 1e-3 * peak


@pytest.mark.parametrize(
    ("method", "first", "before_peak", "last"), [("simclr", 0.0, 4.8 * 99 / 100, 0.0), ("swav", 0.3, 4.8, 0.0048)]
)
def test_learning_rate_of_simclr_and_swav(method: str, first: float, before_peak: float, last: float) -> None:
    at = build_schedule(load_config(FOLDER / f"{method}_r50_b4096_100ep.yaml"), 10).at
    assert at(0) == pytest.approx(first) and at(100) == pytest.approx(4.8)
    assert at(99) == pytest.approx(before_peak)
    assert at(550) == pytest.approx((4.8 + last) / 2)
    assert last < at(999) < last + 1e-4


def test_learning_rates_of_the_90_supervised_epochs() -> None:
    cfg = load_config(FOLDER / "supervised_r50_b256_90ep.yaml")
    schedule = build_schedule(cfg, 5)
    assert peak_lr(cfg) == 0.1
    for epoch, rate in ((0, 0.1), (29, 0.1), (30, 0.01), (59, 0.01), (60, 1e-3), (79, 1e-3), (80, 1e-4), (89, 1e-4)):
        assert schedule.at(5 * epoch) == schedule.at(5 * epoch + 4) == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize(
    ("page", "row"),
    [
        ("pretraining", r"^\| `(\w+)` \| (`[^|]*`) \| ([^|]*) \| \[paper\]"),
        ("methods", r"^\| `(\w+)` \| (`[^|]*`) \| ([^|]*) \|$"),
    ],
)
def test_page_has_the_published_numbers_and_the_keys_of_the_recipes(page: str, row: str) -> None:
    text = (CONFIGS.parent / "docs" / "guides" / f"{page}.md").read_text()
    table = re.findall(row, text, re.MULTILINE)
    rows = _rows("ablations")
    rivals = [key for key in rows if key.startswith(("simclr", "swav"))]
    expected = rivals if page == "methods" else [key for key in rows if key not in rivals]
    assert sorted(key for key, _, _ in table) == sorted(expected)
    if page == "methods":
        assert [key for key, _, _ in table] == expected
    for key, words, number in table:
        value = rows[key]["values"]["ep100"][0]
        assert number == str(value if value is not None else rows[key]["words"]["ep100"][0])
        cfg = load_config(ROW_FILES[key])
        for name, setting in re.findall(r"`([A-Z_.]+) ([^`]*)`", words):
            assert str(value_of(cfg, name)) == setting, (key, name)
