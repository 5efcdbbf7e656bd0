"""The graph: names, order, literal commands, and what a fingerprint does and does not depend on."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from ssl_transfer.config import parse_value
from ssl_transfer.errors import UserError
from tests.transfer.experiment.small_world import World
from transfer.experiment.commands import Arguments, Tools, spell_overrides
from transfer.experiment.graph import read_graph
from transfer.experiment.load import load_experiment
from transfer.experiment.stages import build_graph

TOOLS = Tools(Path("/T"), "python3")
NAMES = [
    "finetune.scratch.voc07.s1",
    "finetune.scratch.voc07.s2",
    "finetune.scratch.coco.s1",
    "pretrain.simsiam",
    "convert.simsiam",
    "finetune.simsiam.voc07.s1",
    "finetune.simsiam.voc07.s2",
    "finetune.simsiam.coco.s1",
    "table",
]


def prints(world: World, *sets: str) -> dict[str, str]:
    return {job.name: job.fingerprint for job in world.open(*sets).graph}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before if after.get(name) != before[name]}


def test_names_and_order(world: World) -> None:
    graph = world.open().graph
    assert [job.name for job in graph] == NAMES
    seen: set[str] = set()
    for job in graph:
        assert set(job.needs) <= seen
        seen.add(job.name)
    assert graph["finetune.simsiam.coco.s1"].needs == ("convert.simsiam",)
    assert set(graph["table"].needs) == set(NAMES) - {"table", "convert.simsiam"}


def test_an_unknown_job_lists_the_nearest(world: World) -> None:
    with pytest.raises(UserError, match=r"no job 'pretrain\.simsim'; did you mean pretrain\.simsiam"):
        world.open().graph["pretrain.simsim"]


def test_literal_commands(world: World) -> None:
    world.file.write_text(world.file.read_text() + f"overlay: {world.base}/small.yaml\nseeds: [5, 6]\n")
    (world.base / "small.yaml").write_text("pretrain: {TOY: true}\ntransfer: {TRANSFER: {TOY: true}}\n")
    world.edit(rows={
        "scratch": {"scratch": True, "finetune": {"SOLVER.BASE_LR": 0.1, "TRANSFER.CLASSES": ["bus", "cat"]}},
        "mine": {"weights": f"{world.base}/mine.pth", "source": "moco", "branch": "online", "trust": True},
        "deep": {"weights": f"{world.base}/mine.pth", "prefix": "student.body"},
        "simsiam": {"pretrain": {"config": f"{world.base}/configs/simsiam.yaml", "overrides": {"SEED": 3}}},
    })  # fmt: skip
    (world.base / "mine.pth").write_text("weights")
    experiment, source = load_experiment(world.file)
    graph = build_graph(experiment, source)
    run, b = world.run_dir, world.base
    dirs = {job.name: str(run / job.dir) for job in graph}
    over = f"--overlay {b}/small.yaml"
    expected = {
        "finetune.scratch.voc07.s6": f"python3 /T/transfer.py --config-file {b}/configs/voc07.yaml {over} "
        f"--weights scratch --seed 6 --resume --output {dirs['finetune.scratch.voc07.s6']} "
        f"TRANSFER.DATA_ROOT {b}/detection SOLVER.BASE_LR 0.1 TRANSFER.CLASSES ['bus', 'cat']",
        "convert.mine": f"python3 /T/convert.py {b}/mine.pth {dirs['convert.mine']}/mine.pkl "
        "--source moco --branch online --trust-checkpoint",
        "convert.deep": f"python3 /T/convert.py {b}/mine.pth {dirs['convert.deep']}/deep.pkl --prefix student.body",
        "pretrain.simsiam": f"python3 /T/pretrain.py --config-file {b}/configs/simsiam.yaml {over} "
        f"--resume --output {dirs['pretrain.simsiam']} DATA.ROOT {b}/images SEED 3",
        "convert.simsiam": f"python3 /T/convert.py {dirs['pretrain.simsiam']}/backbone.safetensors "
        f"{dirs['convert.simsiam']}/simsiam.pkl",
        "finetune.simsiam.coco.s5": f"python3 /T/transfer.py --config-file {b}/configs/coco.yaml {over} "
        f"--weights {dirs['convert.simsiam']}/simsiam.pkl --seed 5 --resume "
        f"--output {dirs['finetune.simsiam.coco.s5']} TRANSFER.DATA_ROOT {b}/detection",
    }
    for name, text in expected.items():
        assert [" ".join(command) for command in graph[name].commands(TOOLS)] == [text]
    assert [" ".join(command) for command in graph["table"].commands(TOOLS)] == [
        f"python3 /T/table.py {run} --format md --output {run}/table.md",
        f"python3 /T/table.py {run} --format html --output {run}/table.html",
    ]


def test_tools_are_the_checkouts_by_default(root: Path) -> None:
    command = Tools().command("table", Arguments())
    assert command[:2] == (sys.executable, str(root / "tools/table.py"))


@pytest.mark.parametrize("value", [1, 0.1, 1e-7, True, None, "text", "1", "True", "[1]", [1, "a"], {"a": {"b": 1}}, ""])
def test_overrides_come_through_the_command_line(value: object) -> None:
    word = spell_overrides({"A.B": value})["A.B"]
    assert parse_value(word) == value
    assert type(parse_value(word)) is type(value)


class TestFingerprints:
    """What makes a job another job."""

    def test_stable(self, world: World) -> None:
        assert prints(world) == prints(world)
        assert all(len(value) == 64 for value in prints(world).values())

    def test_comments_order_and_place_do_not_count(self, world: World) -> None:
        before = prints(world)
        (world.base / "configs/base.yaml").write_text("# a word\nSOLVER:\n  MAX_ITER: 3\n  IMS_PER_BATCH: 16\n")
        assert changed(before, prints(world)) == set()
        (world.base / "configs").rename(world.base / "moved")
        world.file.write_text(world.file.read_text().replace("/configs/", "/moved/"))
        assert changed(before, prints(world)) == set()

    def test_a_value_moved_between_files_and_overrides_does_not_count(self, world: World) -> None:
        before = prints(world)
        (world.base / "configs/base.yaml").write_text("SOLVER: {IMS_PER_BATCH: 16}\n")
        (world.base / "configs/voc07.yaml").write_text("_BASE_: base.yaml\nSOLVER: {MAX_ITER: 3}\n")
        sets = ("tasks.coco.overrides={SOLVER.MAX_ITER: 3}",)
        assert changed(before, prints(world, *sets)) == set()

    def test_a_base_file_counts_for_what_stands_on_it(self, world: World) -> None:
        before = prints(world)
        (world.base / "configs/base.yaml").write_text("SOLVER: {IMS_PER_BATCH: 16, MAX_ITER: 4}\n")
        assert changed(before, prints(world)) == {n for n in NAMES if n.startswith("finetune")} | {"table"}

    def test_a_producer_counts_for_all_that_follows(self, world: World) -> None:
        before = prints(world)
        (world.base / "configs/simsiam.yaml").write_text("SOLVER: {EPOCHS: 4}\n")
        assert changed(before, prints(world)) == {n for n in NAMES if "simsiam" in n} | {"table"}

    def test_a_row_s_own_overrides_count_for_its_trials_only(self, world: World) -> None:
        after = prints(world, "rows.simsiam.finetune={SOLVER.BASE_LR: 0.1}")
        assert changed(prints(world), after) == {n for n in NAMES if n.startswith("finetune.simsiam")} | {"table"}

    def test_each_half_of_the_overlay_counts_for_its_half(self, world: World) -> None:
        overlay = world.base / "overlay.yaml"
        overlay.write_text("pretrain: {TOY: true}\n")
        before = prints(world, f"overlay={overlay}")
        overlay.write_text("pretrain: {TOY: true}\ntransfer: {TRANSFER: {TOY: true}}\n")
        after = prints(world, f"overlay={overlay}")
        assert changed(before, after) == {n for n in NAMES if n.startswith("finetune")} | {"table"}

    def test_seed_and_data_root_count(self, world: World) -> None:
        before = prints(world)
        assert before["finetune.scratch.voc07.s1"] != before["finetune.scratch.voc07.s2"]
        other = world.base / "other"
        other.mkdir()
        finetunes = {n for n in NAMES if n.startswith("finetune")}
        assert changed(before, prints(world, f"data.detection={other}")) == finetunes | {"table"}
        assert "pretrain.simsiam" in changed(before, prints(world, f"data.images={other}"))

    def test_settings_of_how_it_runs_do_not_count(self, world: World) -> None:
        before = prints(world)
        how = [
            "local.slots=7",
            "environment={A: b}",
            "max_resumes=1",
            "rows.simsiam.pretrain.overrides={DATA.WORKERS: 3, LOG.PERIOD: 1}",
            "tasks.voc07.overrides={DATALOADER.NUM_WORKERS: 3}",
        ]
        assert changed(before, prints(world, *how)) == set()

    def test_an_override_replaces_the_whole_key(self, world: World) -> None:
        (world.base / "configs/voc07.yaml").write_text("TRANSFER: {SPLITS: {a: {YEAR: 1}}}\n")
        one = prints(world, "tasks.voc07.overrides={TRANSFER.SPLITS: {b: {YEAR: 2}}}")
        (world.base / "configs/voc07.yaml").write_text("TRANSFER: {SPLITS: {a: {YEAR: 1}, b: {YEAR: 2}}}\n")
        assert "finetune.scratch.voc07.s1" in changed(one, prints(world))

    def test_weights_count_by_content(self, world: World) -> None:
        weights = world.base / "mine.pth"
        weights.write_text("one")
        world.edit(rows={"mine": {"weights": str(weights)}})
        before = prints(world)
        copy = world.base / "copy.pth"
        copy.write_text("one")
        assert changed(before, prints(world, f"rows.mine.weights={copy}")) == set()
        weights.write_text("two, longer")
        assert changed(before, prints(world)) == set(before)

    def test_label_counts_for_the_table_only(self, world: World) -> None:
        assert changed(prints(world), prints(world, "rows.simsiam.label=Another")) == {"table"}


def test_digests_are_remembered_and_checked(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = world.base / "mine.pth"
    weights.write_text("one")
    world.edit(rows={"mine": {"weights": str(weights)}})
    opened = world.open()
    opened.digests.save()
    known = opened.graph["convert.mine"].fingerprint
    monkeypatch.setattr("transfer.experiment.fingerprints.sha256_of", lambda path: pytest.fail("hashed again"))
    assert world.open().graph["convert.mine"].fingerprint == known
    monkeypatch.setattr(
        "transfer.experiment.fingerprints.sha256_of", lambda path: hashlib.sha256(Path(path).read_bytes()).hexdigest()
    )
    weights.write_text("other")
    assert world.open().graph["convert.mine"].fingerprint != known


def test_graph_file_reads_back_equal(world: World) -> None:
    graph = world.open("local.slots=1").graph
    graph.write(world.run_dir, world.tools)
    assert read_graph(world.run_dir) == graph


def test_progress_totals_come_from_the_configs(world: World) -> None:
    graph = world.open().graph
    assert (graph["pretrain.simsiam"].total, graph["pretrain.simsiam"].counter) == (3.0, "epoch")
    assert (graph["finetune.scratch.coco.s1"].total, graph["finetune.scratch.coco.s1"].counter) == (3.0, "iteration")
