"""Several machines at one training: who has come, whether they fit together, what they are told, and who has gone.

Every node runs the same command. Node 0 does the stages of the run; the others wait for its calls to train, and start
their share of the processes then. Which node a process is on, and where node 0 is, say torchrun, Slurm, or the
variables NODE_RANK, MASTER_ADDR and MASTER_PORT. What the nodes tell each other goes through torch's key-value store.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from xtf.config.identity import digest, identity
from xtf.config.schema import Config, ConfigError, Stage
from xtf.runtime.artifacts import program, sha256, versions
from xtf.runtime.models import LARGE_FILE, fingerprint
from xtf.runtime.progress import say

if TYPE_CHECKING:
    from torch.distributed import Store

TRAINING = (Stage.all, Stage.train, Stage.evaluate)  # stages that all nodes come together for
POLL = 0.2  # seconds between two looks at the store
SHOWN_WITHIN = 60.0  # seconds after which a file written by one node must be seen by the others: NFS caches folders
LOST_AFTER = 60.0  # seconds without a sign of life
SKEW = 5.0  # seconds between two clocks that are worth a word


class NodesError(ValueError):
    """The nodes do not fit together, or one of them has not come or has gone; the message names it."""


class StoppedError(NodesError):
    """Node 0 has stopped, and tells why itself."""


Introduction: TypeAlias = "dict[str, Any]"  # what a machine says of itself


def introduce(config: Config) -> Introduction:
    """This machine's host name, program, versions and weights, for `unlike`."""
    return {
        "host": socket.gethostname(),
        "program": program(),
        "versions": {name: version for name, version in versions().items() if name != "platform"},
        "model": fingerprint(config.model),
    }


def unlike(other: Mapping[str, Any], own: Introduction, config: Config) -> str | None:
    """What makes another machine unfit to share this one's work, or None."""
    differ = [
        f"{name} {v}, not {own['versions'][name]}"
        for name, v in other["versions"].items()
        if v != own["versions"][name]
    ]
    if differ:
        return f"has other versions: {', '.join(differ)}"
    if other["program"] != own["program"]:
        return f"runs another version of this program: its source files differ from those of {own['host']}"
    if other["model"] != own["model"]:
        return f"has other weights in model.path={config.model.path}"
    return None


@dataclass(frozen=True)
class Place:
    """Which node this is, and where node 0 listens."""

    rank: int
    address: str
    port: int
    agent_store: bool = False  # torchrun's own store listens there already

    @classmethod
    def here(cls, nodes: int) -> Place:
        """As the environment says.

        Raises:
            ConfigError: it says nothing, or something else than `nodes`.
        """
        from lightning_fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

        set_by_hand = {"NODE_RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
        if TorchElasticEnvironment.detect():
            if os.environ.get("LOCAL_WORLD_SIZE", "1") != "1":
                raise ConfigError(
                    f"torchrun --nproc-per-node={os.environ['LOCAL_WORLD_SIZE']}: start one process on each node "
                    "(--nproc-per-node=1); the processes for trainer.devices are started by it"
                )
            there, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["GROUP_RANK"])
            started = f"torchrun has started {there}"
            agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        elif not set_by_hand and SLURMEnvironment.detect():
            if "SLURM_NTASKS_PER_NODE" not in os.environ and os.environ["SLURM_NTASKS"] != "1":
                raise ConfigError("Slurm: say --ntasks-per-node=1 in the place of --ntasks: one task on each node")
            slurm = SLURMEnvironment()
            there, rank, agent = int(os.environ["SLURM_NNODES"]), slurm.node_rank(), False
            started = f"Slurm has given {there}"
            if slurm.local_rank():
                raise ConfigError("Slurm: start one task on each node (--ntasks-per-node=1), not one for each device")
            os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = slurm.main_address, str(slurm.main_port)
        elif set_by_hand:
            there, rank, started, agent = nodes, int(os.environ["NODE_RANK"]), "", False
        else:
            raise ConfigError(
                f"trainer.nodes={nodes}: nothing says which node this is. Run the same command on each of them, under "
                f"torchrun --nnodes={nodes} --nproc-per-node=1, as a job of Slurm (hydra/launcher=slurm), or with "
                "NODE_RANK (from 0), MASTER_ADDR and MASTER_PORT (of node 0) set"
            )
        if there != nodes:
            raise ConfigError(f"trainer.nodes={nodes}, and {started}: make them equal")
        if not 0 <= rank < nodes:
            raise ConfigError(f"NODE_RANK={rank} is out of range: with trainer.nodes={nodes} it is 0 to {nodes - 1}")
        return cls(rank, os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), agent)


class Nodes:
    """The nodes of a run, as one of them sees the others."""

    def __init__(self, place: Place, config: Config, run: str) -> None:
        self.place, self.config = place, config
        self.count, self.seconds = config.trainer.nodes, config.trainer.node_timeout_seconds
        self.output = Path(config.output_dir)
        self.hosts = [socket.gethostname()]
        self.calls = 0  # to train, so far
        self.hello: Introduction = introduce(config) | {
            "command": digest([run, identity(config), config.stage, config.trainer.devices, config.trainer.strategy])
        }
        self.store = self._connect()

    def name(self, rank: int) -> str:
        """A node in words."""
        return f"node {rank} ({self.hosts[rank]})" if rank < len(self.hosts) else f"node {rank}"

    def _connect(self) -> Store:
        from torch.distributed import DistError, PrefixStore, TCPStore

        place, first = self.place, self.place.rank == 0 and not self.place.agent_store
        where = f"MASTER_ADDR:MASTER_PORT={place.address}:{place.port}"
        if not first:  # torch would write a stack trace for every attempt
            deadline = time.monotonic() + self.seconds
            while True:
                try:
                    socket.create_connection((place.address, place.port), timeout=5).close()
                    break
                except OSError as error:
                    if time.monotonic() > deadline:
                        raise NodesError(
                            f"node 0 does not answer at {where}, and trainer.node_timeout_seconds={self.seconds:g} are "
                            f"over ({error})"
                        ) from error
                time.sleep(1)
        try:
            store = TCPStore(
                place.address, place.port, is_master=first, wait_for_workers=False, timeout=timedelta(seconds=60)
            )
        except (DistError, OSError) as error:
            why = str(error).splitlines()[0]
            raise NodesError(
                f"node {place.rank} cannot {'listen' if first else 'connect'} at {where}: {why}"
            ) from error
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if place.agent_store else "0"
        return PrefixStore(f"xtf/{attempt}", store)

    def _get(self, key: str) -> Any:
        return json.loads(self.store.get(key))

    def _set(self, key: str, value: Any) -> None:
        self.store.set(key, json.dumps(value))

    def _await(self, key: str, seconds: float = float("inf")) -> Any:
        """What another node sets; None if it has not done so after `seconds`."""
        deadline = time.monotonic() + seconds
        while not self.store.check([key]):
            if time.monotonic() > deadline:
                return None
            self._live()
            time.sleep(POLL)
        return self._get(key)

    def _live(self) -> None:
        """A sign of life."""
        self.store.add(f"alive/{self.place.rank}", 1)

    # -- node 0 --------------------------------------------------------------------------------------------------

    def gather(self) -> None:
        """Wait for the others and see whether they fit.

        Raises:
            NodesError: naming each node with what is wrong; the others stop with the same message.
        """
        token = f"{secrets.token_hex(8)}.tmp"
        nonce = self.output / f".{token}"
        self.output.mkdir(parents=True, exist_ok=True)
        nonce.write_text(token)
        self._set("token", token)
        try:
            self._greet(token)
        except NodesError as error:
            self.end(str(error))
            raise
        finally:
            nonce.unlink(missing_ok=True)
        self._set("welcome", self.hosts)

    def _greet(self, token: str) -> None:
        others = range(1, self.count)
        say(f"node 0 ({self.hosts[0]}) waits for {self.count - 1} more of trainer.nodes={self.count}")
        deadline = time.monotonic() + self.seconds
        hellos: dict[int, Any] = {}
        for rank in others:
            if (found := self._await(f"hello/{rank}", max(0.0, deadline - time.monotonic()))) is not None:
                hellos[rank] = found
        self.hosts += [hellos[rank]["host"] if rank in hellos else "not here" for rank in others]
        if missing := [rank for rank in others if rank not in hellos]:
            here = ", ".join(self.name(rank) for rank in range(self.count) if rank not in missing)
            raise NodesError(
                f"{', '.join(f'node {rank}' for rank in missing)} of trainer.nodes={self.count} has not come within "
                f"trainer.node_timeout_seconds={self.seconds:g}; here: {here}"
            )
        problems = [f"{self.name(rank)} {what}" for rank in others if (what := self._wrong(hellos[rank], token))]
        if problems:
            raise NodesError("; ".join(problems))
        for rank in others:
            asked = time.time()
            self._set(f"time/{rank}", True)
            answer = self._await(f"clock/{rank}", LOST_AFTER)
            if answer is None:
                raise NodesError(f"{self.name(rank)} has gone: no sign of it for {LOST_AFTER:g} s")
            now = time.time()
            apart = answer - min(max(answer, asked), now)  # 0 if it lies within the time that the question took
            if abs(apart) > SKEW:
                say(
                    f"the clock of {self.name(rank)} is {abs(apart):.0f} s {'ahead of' if apart > 0 else 'behind'} "
                    f"that of {self.name(0)}: times in logs and of files will not agree; results do not depend on them"
                )
        devices = self.config.trainer.devices
        say(
            f"{self.count} nodes train together, {devices} device{'s' * (devices > 1)} each: "
            f"{', '.join(self.hosts)}. Scoring runs on the devices of {self.hosts[0]}, evaluation on its first"
        )

    def _wrong(self, hello: Mapping[str, Any], token: str) -> str | None:
        """What does not fit in what another node has said of itself."""
        if hello["seen"] != token:
            return (
                f"does not see what node 0 writes in output_dir={self.config.output_dir} ({hello['output']} there, "
                f"{self.output.absolute()} here): give a folder that all nodes share"
            )
        if hello["command"] != self.hello["command"] and hello["program"] == self.hello["program"]:
            return "was started with another command: run the same one on every node"
        return unlike(hello, self.hello, self.config)

    def call(self, folder: Path, port: int, files: Mapping[str, Path]) -> None:
        """Ask the others to train on `folder`; they first wait until they see `files`, by name, as they are here."""
        self.calls += 1
        self._set(
            f"call/{self.calls}",
            {
                "folder": folder.absolute().relative_to(self.output.absolute()).as_posix(),
                "port": port,
                "files": {name: _state(file) for name, file in files.items()},
            },
        )

    def watch(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for this node's processes and for those of the others.

        Raises:
            NodesError: one of them failed, or a node has gone; what is left here is ended.
        """
        others = range(1, self.count)
        beats = dict.fromkeys(others, (0, time.monotonic()))
        open_, failed = set(others), None
        try:
            while failed is None and (process.poll() is None or open_):
                time.sleep(POLL)
                for rank in sorted(open_):
                    key = f"done/{self.calls}/{rank}"
                    if self.store.check([key]):
                        open_.discard(rank)
                        if why := self._get(key):
                            failed = f"training failed on {self.name(rank)}: {why}"
                        continue
                    count, since = self.store.add(f"alive/{rank}", 0), beats[rank][1]
                    if count != beats[rank][0]:
                        beats[rank] = count, time.monotonic()
                    elif time.monotonic() - since > LOST_AFTER:
                        failed = f"{self.name(rank)} has gone: no sign of it for {LOST_AFTER:g} s"
                if process.poll():
                    # Processes whose peer has died fail at once: what the other nodes say tells which was the first.
                    silent = self._silent(open_)
                    failed = failed or (
                        f"{' and '.join(silent)} has gone, and with it the training"
                        if silent
                        else f"training failed on {self.name(0)} or by the loss of another node; the error stands above"
                    )
        finally:
            stop(process)
        if failed:
            raise NodesError(f"{failed}. The same command, on every node, goes on from the last checkpoint")

    def _silent(self, open_: set[int]) -> list[str]:
        """The nodes that give no sign of life within a few seconds, by name."""
        before = {rank: self.store.add(f"alive/{rank}", 0) for rank in open_}
        time.sleep(max(5.0, 10 * POLL))
        return [self.name(rank) for rank, count in before.items() if self.store.add(f"alive/{rank}", 0) == count]

    def end(self, error: str = "") -> None:
        """Let the others go: well done, or with the error that ended the run."""
        self._set("end", error)
        deadline = time.monotonic() + 10  # the store goes with this process
        while self.store.add("left", 0) < self.store.add("came", 0) and time.monotonic() < deadline:
            time.sleep(POLL)

    # -- the others ----------------------------------------------------------------------------------------------

    def join(self) -> None:
        """Come to node 0.

        Raises:
            NodesError: the nodes do not fit together.
        """
        rank = self.place.rank
        if self.store.add(f"claim/{rank}", 1) > 1:
            raise NodesError(f"two processes say that they are node {rank}: give each node its own NODE_RANK")
        self.store.add("came", 1)
        token = self._await("token", self.seconds)
        nonce, deadline = self.output / f".{token}", time.monotonic() + min(SHOWN_WITHIN, self.seconds / 2)
        while not nonce.exists() and time.monotonic() < deadline:
            time.sleep(POLL)
        self._set(
            f"hello/{rank}",
            {
                **self.hello,
                "seen": nonce.read_text() if nonce.exists() else None,
                "output": str(self.output.absolute()),
            },
        )
        self._await_or_end(f"time/{rank}")
        self._set(f"clock/{rank}", time.time())
        self.hosts = self._await_or_end("welcome")
        say(f"{self.name(rank)} trains with {self.name(0)}, which says what the run does")

    def _await_or_end(self, key: str) -> Any:
        while not self.store.check([key]):
            if self.store.check(["end"]) and not self.store.check([key]):  # both may have come since
                self._leave()
            self._live()
            time.sleep(POLL)
        return self._get(key)

    def _leave(self) -> NoReturn:
        error = self._get("end")
        self.store.add("left", 1)
        if error:
            raise StoppedError(f"node 0 has stopped: {error}")
        raise _EndError

    def serve(self, start: Callable[[Path, int], subprocess.Popen[bytes]]) -> None:
        """Take part in every training that node 0 calls for, until it ends the run.

        Args:
            start: starts this node's processes for a run's folder, node 0's processes listening at a port.

        Raises:
            NodesError: the run has failed, or node 0 has gone.
        """
        with contextlib.suppress(_EndError):
            while True:
                self.calls += 1
                call = self._await_or_end(f"call/{self.calls}")
                why = self._take_part(call, start)
                self._set(f"done/{self.calls}/{self.place.rank}", why)

    def _take_part(self, call: Mapping[str, Any], start: Callable[[Path, int], subprocess.Popen[bytes]]) -> str:
        folder = self.output / call["folder"]
        deadline = time.monotonic() + SHOWN_WITHIN
        for name, state in call["files"].items():
            while _state(folder / name) != state:
                if time.monotonic() > deadline:
                    return f"it does not see {folder / name} as node 0 has written it"
                self._live()
                time.sleep(POLL)
        process = start(folder, call["port"])
        try:
            while process.poll() is None:
                if self.store.check(["end"]):
                    self._leave()
                self._live()
                time.sleep(POLL)
        finally:
            stop(process)
        return f"its processes ended with {process.returncode}; their error stands there" if process.returncode else ""


class _EndError(Exception):
    """Node 0 has ended the run, which went well."""


_together: list[Nodes] = []  # those of the run at work, if there are several


@contextlib.contextmanager
def together(config: Config, run: str) -> Iterator[Nodes | None]:
    """Inside, all nodes of `config.trainer` are here and wait for calls to train; None where one machine does it all.

    Args:
        run: the run's name, which must be the same on all nodes.

    Raises:
        ConfigError: the environment does not say which node this is.
        NodesError: they do not fit together, one has not come, or node 0 has gone.
    """
    if config.trainer.nodes == 1:
        yield None
        return
    if config.stage not in TRAINING:
        say(f"stage={config.stage.value} runs on this machine alone: trainer.nodes={config.trainer.nodes} train")
        yield None
        return
    from torch.distributed import DistError

    place = Place.here(config.trainer.nodes)
    nodes = Nodes(place, config, run)
    if place.rank:
        try:
            nodes.join()
            yield nodes
        except DistError as error:
            raise NodesError(
                f"node 0 ({place.address}) has gone. The same command, on every node, goes on from the last checkpoint"
            ) from error
        return
    nodes.gather()
    _together.append(nodes)
    try:
        yield nodes
    except BaseException as error:
        nodes.end(str(error) or type(error).__name__)
        raise
    else:
        nodes.end()
    finally:
        _together.pop()


def current(config: Config) -> Nodes:
    """The nodes of the run at work.

    Raises:
        ConfigError: they have not come together.
    """
    if not _together:
        raise ConfigError(
            f"trainer.nodes={config.trainer.nodes}: a model is trained here, and stage={config.stage.value} runs on "
            "one machine: run stage=train on all nodes first, or set trainer.nodes=1"
        )
    return _together[-1]


def _state(file: Path) -> list[Any] | None:
    """By what a file is known to be the same on another node: a large one, whose hash takes minutes, by its size."""
    try:
        size = file.stat().st_size
        return [size, sha256(file) if size <= LARGE_FILE else None]
    except OSError:
        return None


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a launcher that may still run, and all that it has started, at once: what ends later than its peers, or by a
    signal that it can see, tells of it in a traceback."""
    import psutil

    if process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            launcher = psutil.Process(process.pid)
            for one in [launcher, *launcher.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
        process.wait()


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
