"""Experiments that only pre-train or evaluate; several runs in one row; resources in layers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ssl_transfer.errors import UserError
from tests.transfer.experiment.small_world import World
from transfer.experiment.commands import Tools
from transfer.experiment.load import load_experiment
from transfer.experiment.spec import Resources, StageResources, resources_for
from transfer.experiment.stages import build_graph

TOOLS = Tools(Path("/T"), "python3")


def recipe(world: World, **overrides: object) -> dict[str, object]:
    return {"config": f"{world.base}/configs/simsiam.yaml", "overrides": overrides}


class TestPretrainingAlone:
    """`tasks: {}`: recipes side by side, and a page of their curves."""

    def test_runs_each_recipe_and_the_table(self, world: World) -> None:
        rows = {"one": {"pretrain": recipe(world)}, "two": {"pretrain": recipe(world, SEED=2)}}
        world.edit(rows=rows, tasks={}, data={"images": f"{world.base}/images"})
        assert [job.name for job in world.open().graph] == ["pretrain.one", "pretrain.two", "table"]
        assert world.launch("submit") == 0
        assert set(world.statuses().values()) == {"done"}

    def test_the_real_table_writes_a_page_with_the_curves(self, world: World) -> None:
        world.edit(rows={"one": {"label": "The one", "pretrain": recipe(world)}}, tasks={})
        world.launch("submit")
        folder = world.run_dir / world.open().graph["pretrain.one"].dir
        lines = [f'{{"iteration": {i}, "epoch": {i}, "loss": -0.{i}, "std": 0.02, "lr": 0.05}}' for i in range(1, 9)]
        (folder / "metrics.json").write_text("\n".join(lines) + "\n")
        words = {"format": "pretrain-result/1", "status": "done", "method": "simsiam", "arch": "resnet50", "epochs": 3}
        rest = {"iterations": 8, "dim": 2048, "final": {"loss": -0.8, "std": 0.02}, "toy": True, "seconds": 1.0}
        (folder / "result.json").write_text(json.dumps({**words, **rest}))
        from tools import table

        assert table.main([str(world.run_dir), "--output", str(world.base / "page.html")]) == 0
        page = (world.base / "page.html").read_text()
        assert "The one" in page and "<svg" in page

    def test_nothing_to_do_is_an_error(self, world: World) -> None:
        world.edit(rows={"scratch": {"scratch": True}}, tasks={})
        with pytest.raises(UserError, match="there is nothing to run: give tasks, evaluations, or a row with pretrain"):
            load_experiment(world.file)


class TestEvaluations:
    """`evaluations`: of a recipe's backbone, of a given checkpoint converted to one, not of scratch."""

    def graph(self, world: World):
        (world.base / "mine.pth").write_text("weights")
        (world.base / "configs/linear.yaml").write_text("LINEAR: {EPOCHS: 90}\n")
        rows = {
            "scratch": {"scratch": True},
            "simsiam": {"pretrain": recipe(world)},
            "mine": {"weights": f"{world.base}/mine.pth", "epochs": 200},
        }
        linear = {"config": f"{world.base}/configs/linear.yaml", "overrides": {"SEED": 4}}
        world.edit(rows=rows, tasks={}, evaluations={"linear": linear}, data={"images": f"{world.base}/images"})
        experiment, source = load_experiment(world.file)
        return build_graph(experiment, source)

    def test_jobs_and_literal_commands(self, world: World) -> None:
        graph = self.graph(world)
        names = ["pretrain.simsiam", "evaluate.simsiam.linear", "convert.mine", "evaluate.mine.linear", "table"]
        assert [job.name for job in graph] == names
        run, base = world.run_dir, world.base
        dirs = {job.name: run / job.dir for job in graph}
        assert [" ".join(words) for words in graph["convert.mine"].commands(TOOLS)] == [
            f"python3 /T/convert.py {base}/mine.pth {dirs['convert.mine']}/mine.safetensors --to safetensors"
        ]
        assert " ".join(graph["evaluate.mine.linear"].commands(TOOLS)[0]) == (
            f"python3 /T/evaluate.py linear --config-file {base}/configs/linear.yaml "
            f"--weights {dirs['convert.mine']}/mine.safetensors --name mine --pretrain-epochs 200 --data {base}/images "
            f"--resume --output {dirs['evaluate.mine.linear']} SEED 4"
        )
        assert f"--weights {dirs['pretrain.simsiam']}/backbone.safetensors " in " ".join(
            graph["evaluate.simsiam.linear"].commands(TOOLS)[0]
        )
        assert graph["evaluate.simsiam.linear"].task == "linear_3ep"
        assert graph["evaluate.mine.linear"].task == "linear_200ep"
        assert graph["table"].needs == ("pretrain.simsiam", "evaluate.simsiam.linear", "evaluate.mine.linear")

    def test_evaluations_run(self, world: World, capsys: pytest.CaptureFixture[str]) -> None:
        self.graph(world)
        world.order()
        assert world.launch("submit") == 0
        assert set(world.statuses().values()) == {"done"}
        assert "top-1 68.1" in capsys.readouterr().err
        assert set(world.actions("evaluations.linear.overrides={SEED: 5}").values()) == {"run", "done"}

    def test_an_evaluation_s_settings_count_for_it_alone(self, world: World) -> None:
        before = {job.name: job.fingerprint for job in self.graph(world)}
        (world.base / "configs/linear.yaml").write_text("LINEAR: {EPOCHS: 91}\n")
        after = {job.name: job.fingerprint for job in world.open().graph}
        changed = {name for name in before if before[name] != after[name]}
        assert changed == {"evaluate.simsiam.linear", "evaluate.mine.linear", "table"}


def test_several_runs_fill_one_row(world: World) -> None:
    rows = {
        "short": {"table_row": "simsiam", "label": "SimSiam", "expected": "simsiam", "pretrain": recipe(world)},
        "long": {"table_row": "simsiam", "pretrain": recipe(world, **{"SOLVER.EPOCHS": 9})},
    }
    world.edit(rows=rows, tasks={}, evaluations={"linear": {}})
    graph = world.open().graph
    assert [row.as_dict() for row in graph.rows] == [{"key": "simsiam", "label": "SimSiam", "expected": "simsiam"}]
    assert [(job.name, job.row, job.task) for job in graph if job.kind == "evaluate"] == [
        ("evaluate.short.linear", "simsiam", "linear_3ep"),
        ("evaluate.long.linear", "simsiam", "linear_9ep"),
    ]


class TestResources:
    """Layers: built in, site, experiment; in each the default, then the stage."""

    def test_layers(self) -> None:
        site = StageResources(
            default=Resources(
                partition="gpu", account="lab", gpus=4, setup=["module load cuda"], environment={"A": "1"}
            ),
            pretrain=Resources(hours=72),
        )
        experiment = StageResources(
            default=Resources(gpus=8, setup=["ulimit -n 65536"], environment={"B": "2"}, sbatch={"exclusive": True}),
            finetune=Resources(hours=8, qos="short"),
            search=Resources(hours=4),
        )
        pretrain = resources_for("pretrain", (site, experiment))
        assert (pretrain.nodes, pretrain.gpus, pretrain.tasks_per_node) == (1, 8, 8)
        assert (pretrain.hours, pretrain.partition, pretrain.account) == (72, "gpu", "lab")
        assert pretrain.setup == ["module load cuda", "ulimit -n 65536"]
        assert pretrain.environment == {"A": "1", "B": "2"}
        assert pretrain.sbatch == {"exclusive": True}
        search = resources_for("search", (site, experiment))
        assert (search.hours, search.qos, search.gpus) == (4, "short", 8)

    def test_small_stages_get_no_gpus(self) -> None:
        layer = StageResources(
            default=Resources(gpus=8, nodes=4, hours=72, partition="gpu"), table=Resources(memory_gb=2)
        )
        for kind in ("convert", "choose", "table"):
            found = resources_for(kind, (layer,))
            assert (found.nodes, found.gpus, found.tasks_per_node, found.hours) == (1, 0, 1, 1)
            assert found.partition == "gpu"
        assert resources_for("table", (layer,)).memory_gb == 2

    @pytest.mark.parametrize(
        ("sets", "message"),
        [
            ("resources.pretrain={gpu: 8}", "resources.pretrain.gpu: unknown key; did you mean gpus?"),
            ("resources.pretain={gpus: 8}", "resources.pretain: unknown key; did you mean pretrain?"),
            ("resources.default={hours: 0}", "resources.default.hours: must be greater than 0"),
            ("resources.default={sbatch: {--mail-type: END}}", "write sbatch's option '--mail-type' as 'mail-type'"),
            ("resources.table={nodes: 2}", "table is one process: give it one node, one task and one GPU at most"),
            ("slurm={requeus: 1}", "slurm.requeus: unknown key; did you mean requeues?"),
        ],
    )
    def test_mistakes_are_one_line(self, world: World, sets: str, message: str) -> None:
        with pytest.raises(UserError) as caught:
            load_experiment(world.file, [sets])
        assert message in str(caught.value)


class TestArchitectures:
    """A recipe's ResNet and the detector of a task fit together, or `plan` says so before anything is pre-trained."""

    def arch(self, world: World, arch: str, **task: object) -> None:
        tasks = {"voc07": {"config": f"{world.base}/configs/voc07.yaml", "overrides": task}}
        world.edit(rows={"small": {"pretrain": recipe(world, **{"MODEL.ARCH": arch})}}, tasks=tasks)

    @pytest.mark.parametrize(
        ("arch", "task", "names"),
        [
            ("resnet18", {}, ("small", "voc07", "coco_fpn")),
            ("resnet101", {}, ("small", "tasks.voc07.overrides.MODEL.RESNETS.DEPTH=101")),
            ("resnet18_cifar", {"MODEL.RESNETS.DEPTH": 18}, ("resnet18_cifar", "MODEL.ARCH resnet18")),
        ],
    )
    def test_others_are_refused(self, world: World, arch: str, task: dict[str, object], names: tuple[str, ...]) -> None:
        self.arch(world, arch, **task)
        with pytest.raises(UserError) as caught:
            world.open()
        assert all(name in str(caught.value) for name in names)

    @pytest.mark.parametrize(("arch", "backbone"), [("resnet101", ""), ("resnet18", "build_resnet_fpn_backbone")])
    def test_those_that_fit_are_taken(self, world: World, arch: str, backbone: str) -> None:
        named = {"MODEL.BACKBONE.NAME": backbone} if backbone else {}
        self.arch(world, arch, **{"MODEL.RESNETS.DEPTH": int(arch.removeprefix("resnet"))}, **named)
        assert "finetune.small.voc07.s1" in [job.name for job in world.open().graph]
