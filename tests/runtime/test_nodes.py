"""Several nodes: two training processes on "machines" of their own, what is refused before any work, who has gone."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import commands
import pytest
import torch
from safetensors.torch import load_file

from xtf.config.schema import Config, ConfigError, ModelConfig, Stage, ThresholdConfig, TrainerConfig
from xtf.runtime import nodes
from xtf.runtime.nodes import Nodes, NodesError, Place, free_port, together
from xtf.runtime.run_folder import RunFolder
from xtf.runtime.train_log import read_log
from xtf.scoring.methods import METHODS
from xtf.training import device_process

ROOT = Path(__file__).parents[2]
TRAINER = TrainerConfig(name="ddp", strategy="ddp", nodes=2, node_timeout_seconds=20)
NAMES = ("NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT", "LOCAL_WORLD_SIZE", "WORLD_SIZE", "RANK")


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever cluster the tests run on is not theirs."""
    for name in os.environ:
        if name in NAMES or name.startswith(("SLURM_", "TORCHELASTIC_")):
            monkeypatch.delenv(name)


def config(folder: Path, **trainer: Any) -> Config:
    model = ModelConfig(name="tiny", path="xtf.tiny")
    more = {"method": METHODS["xtf"](), "threshold": ThresholdConfig(name="paper")}
    return Config(model=model, output_dir=str(folder), trainer=dataclasses.replace(TRAINER, **trainer), **more)


# -- which node this is --------------------------------------------------------------------------------------


def test_torchrun_slurm_or_three_variables_say_which_node_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def here(nodes: int = 2, **environment: str) -> Place:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            return Place.here(nodes)

    by_hand = {"NODE_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "5"}
    torchrun = {
        "TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_USE_AGENT_STORE": "True", "GROUP_RANK": "1", "RANK": "1",
        "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "a", "MASTER_PORT": "5",
    }  # fmt: skip
    slurm = {
        "SLURM_NTASKS": "2", "SLURM_JOB_NAME": "xtf", "SLURM_JOB_ID": "10042", "SLURM_NODEID": "1", "SLURM_PROCID": "1",
        "SLURM_LOCALID": "0", "SLURM_NNODES": "2", "SLURM_NODELIST": "rack[7-8]", "SLURM_NTASKS_PER_NODE": "1",
    }  # fmt: skip
    assert here(**by_hand) == Place(1, "a", 5)
    assert here(**torchrun) == Place(1, "a", 5, agent_store=True)
    assert here(**slurm) == Place(1, "rack7", 15042)
    for change, problem in (
        ({}, "nothing says which node this is"),
        (by_hand | {"NODE_RANK": "2"}, "NODE_RANK=2 is out of range: with trainer.nodes=2 it is 0 to 1"),
        (torchrun | {"LOCAL_WORLD_SIZE": "8"}, "start one process on each node"),
        (torchrun | {"WORLD_SIZE": "3"}, "trainer.nodes=2, and torchrun has started 3"),
        (slurm | {"SLURM_NNODES": "4"}, "trainer.nodes=2, and Slurm has given 4"),
        (slurm | {"SLURM_LOCALID": "3"}, "start one task on each node"),
        ({name: slurm[name] for name in slurm if "PER_NODE" not in name}, "say --ntasks-per-node=1"),
    ):
        with pytest.raises(ConfigError, match=problem):
            here(**change)


# -- before any work -----------------------------------------------------------------------------------------


def both(*configs: Config, run: str = "run", runs: tuple[str, str] | None = None) -> list[str | None]:
    """Bring one node for each configuration together; what each of them raised."""
    port, found = free_port(), dict[int, str | None]()

    def one(rank: int) -> None:
        try:
            node = Nodes(Place(rank, "127.0.0.1", port), configs[rank], runs[rank] if runs else run)
            if rank:
                node.join()
                node.serve(lambda folder, port: pytest.fail("nothing is trained"))
            else:
                node.gather()
                node.end()
            found[rank] = None
        except NodesError as error:
            found[rank] = str(error)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(len(configs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [found[rank] for rank in range(len(configs))]


def test_nodes_that_fit_come_together_and_leave_nothing_behind(tmp_path: Path) -> None:
    assert both(*[config(tmp_path, nodes=3)] * 3) == [None] * 3
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_shared_is_found_before_any_work(tmp_path: Path) -> None:
    here, there = (config(tmp_path / name, node_timeout_seconds=4) for name in "ab")
    for said in both(here, there):
        assert said is not None and "does not see what node 0 writes in output_dir" in said and "node 1" in said
        assert str(tmp_path / "b") in said and "give a folder that all nodes share" in said


def test_a_node_with_another_program_versions_command_or_weights_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = config(tmp_path)
    first, _ = both(own, dataclasses.replace(own, seed=1), runs=("runs/seed0", "runs/seed1"))
    assert first is not None and "was started with another command: run the same one on every node" in first
    hello = dict.fromkeys(("host", "output"), "x") | {"seen": "t", "program": "p", "versions": {"torch": "1"}}
    hello |= {"command": "c", "model": nodes.fingerprint(own.model)}
    node = Nodes(Place(0, "127.0.0.1", free_port()), own, "run")
    node.hello = dict(hello)
    assert node._wrong(hello, "t") is None
    for change, problem in (
        ({"versions": {"torch": "2"}}, "has other versions: torch 2, not 1"),
        ({"program": "q"}, "runs another version of this program"),
        ({"model": {"path": "xtf.tiny", "sha256": "0"}}, "has other weights in model.path=xtf.tiny"),
    ):
        assert problem in str(node._wrong(hello | change, "t"))


def test_a_node_that_never_comes_is_named_and_those_that_came_end_with_it(tmp_path: Path) -> None:
    here = config(tmp_path, nodes=3, node_timeout_seconds=3)
    for said in both(here, here):
        assert said is not None and "node 2 of trainer.nodes=3 has not come within" in said
        assert "trainer.node_timeout_seconds=3" in said and "here: node 0" in said and "node 1" in said
    with pytest.raises(NodesError, match=r"node 0 does not answer at MASTER_ADDR:MASTER_PORT=127\.0\.0\.1:"):
        Nodes(Place(1, "127.0.0.1", free_port()), config(tmp_path, node_timeout_seconds=1), "run")


def test_two_processes_with_one_rank_are_refused(tmp_path: Path) -> None:
    store = Nodes(Place(0, "127.0.0.1", free_port()), config(tmp_path), "run")
    first, second = (Nodes(Place(1, "127.0.0.1", store.place.port), config(tmp_path), "run") for _ in range(2))
    first.store.add("claim/1", 1)
    with pytest.raises(NodesError, match="two processes say that they are node 1"):
        second.join()


def test_clocks_that_are_apart_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = time.time
    # The second node's thread asks once, for its answer; the first one before and after.
    monkeypatch.setattr(
        nodes.time, "time", lambda: real() + (90 if threading.current_thread().name.startswith("second") else 0)
    )
    start = threading.Thread.start

    def named(thread: threading.Thread) -> None:
        if thread._args == (1,):  # type: ignore[attr-defined]
            thread.name = "second"
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", named)
    assert both(*[config(tmp_path)] * 2) == [None] * 2
    assert "the clock of node 1" in (said := " ".join(capsys.readouterr().out.split())) and "90 s ahead of" in said


def test_stages_that_train_nothing_run_on_one_machine_and_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = dataclasses.replace(config(tmp_path), stage=Stage.mask)
    with together(alone, "run") as found:
        assert found is None
    assert "stage=mask runs on this machine alone: trainer.nodes=2 train" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="run stage=train on all nodes first"):
        device_process._train_on_nodes(alone, RunFolder(tmp_path))


# -- while training ------------------------------------------------------------------------------------------


def test_a_node_that_fails_or_goes_ends_the_training_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "LOST_AFTER", 2.0)

    def sleeper() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])

    node = Nodes(Place(0, "127.0.0.1", free_port()), config(tmp_path), "run")
    node.hosts += ["other"]
    node.calls = 1
    for report, problem in (("it broke", r"training failed on node 1 \(other\): it broke"), (None, "no sign of it")):
        if report:
            node._set("done/1/1", report)
        process = sleeper()
        with pytest.raises(NodesError, match=rf"{problem}.*goes on from the last checkpoint"):
            node.watch(process)
        assert process.poll() is not None, "what is left here is ended"
        node.store.delete_key("done/1/1")


def test_a_node_that_does_not_see_what_it_shall_train_on_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "SHOWN_WITHIN", 0.3)
    node = Nodes(Place(0, "127.0.0.1", free_port()), config(tmp_path), "run")
    (tmp_path / "run").mkdir()
    file = tmp_path / "run/config.yaml"
    file.write_text("new")
    node.call(file.parent, 5, {"config.yaml": file})
    call = node._get("call/1")
    assert (call["folder"], call["port"]) == ("run", 5)
    file.write_text("old")
    said = node._take_part(call, lambda folder, port: pytest.fail("it must not start"))
    assert said == f"it does not see {file} as node 0 has written it"
    file.write_text("new")
    done = [sys.executable, "-c", "raise SystemExit(3)"]
    assert "ended with 3" in node._take_part(call, lambda folder, port: subprocess.Popen(done))


SMALL = (
    "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.nodes=2", "task.train.limit=24",
    "tuning.batch_size=4", "tuning.epochs=3", "trainer.checkpoint_every=3", "trainer.node_timeout_seconds=120",
    "stage=train",
)  # fmt: skip


class Started:
    """A node: one process that runs the command, on this machine."""

    def __init__(self, folder: Path, rank: int, port: int, *arguments: str) -> None:
        self.log = folder / f"node{rank}.log"
        environment = os.environ | {
            "NODE_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT), "HYDRA_FULL_ERROR": "0",
        }  # fmt: skip
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "run.py"), *SMALL, *arguments],
                cwd=folder,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def die(self) -> None:
        """The machine is gone, with all its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def ended(self, seconds: float = 400) -> int:
        return self.process.wait(seconds)


@pytest.fixture
def started() -> Iterator[list[Started]]:
    found: list[Started] = []
    yield found
    for one in found:
        one.die()


def weights(folder: Path) -> torch.Tensor:
    state = load_file(next(folder.rglob("model/model.safetensors")))
    return torch.cat([state[name].double().flatten() for name in sorted(state)])


def test_two_nodes_train_like_one_also_when_one_of_them_is_killed(tmp_path: Path, started: list[Started]) -> None:
    """The whole command on both nodes. A killed node ends the training by name; started again, it goes on."""
    folder, one = tmp_path / "two", tmp_path / "one"
    for each in (folder, one):
        each.mkdir()
    alone = [text for text in SMALL if not text.startswith("trainer")]
    done = commands.run([*alone, "trainer.tokens_per_microbatch=8192"], one, environment={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr

    port = free_port()
    started += [Started(folder, rank, port) for rank in (0, 1)]
    deadline = time.monotonic() + 400
    while not list(folder.rglob("last.ckpt")):
        assert time.monotonic() < deadline and started[0].process.poll() is None, started[0].log.read_text()
        time.sleep(0.05)
    started[1].die()
    assert started[0].ended() == 1
    said = " ".join(started[0].log.read_text().split())
    assert "error: node 1" in said and "has gone" in said and "goes on from the last checkpoint" in said
    (run,) = (path.parent for path in folder.rglob("mask.parquet"))
    before = read_log(run / "train_log.csv")
    assert 3 <= len(before) < 18 and not (run / "model").exists()

    port = free_port()
    started += [Started(folder, rank, port) for rank in (0, 1)]
    assert [each.ended() for each in started[2:]] == [0, 0], started[2].log.read_text()
    found, expected = (read_log(next(path.rglob("train_log.csv"))) for path in (folder, one))
    assert [row["kept_tokens"] for row in found] == [row["kept_tokens"] for row in expected]
    losses, wanted = ([row["loss"] for row in log] for log in (found, expected))
    assert losses[:12] == pytest.approx(wanted[:12], abs=1e-6)
    assert losses == pytest.approx(wanted, abs=1e-5)  # what rounding has become after 18 steps, 1e-6 where it was seen
    two, alone_ = weights(folder), weights(one)
    assert float((two - alone_).norm() / alone_.norm()) < 1e-5
