"""A scoring pass on a Ray cluster: Ray Data hands out the shards, and each of its actors scores with one model on one
device.

What Ray hands out is a shard's name; its rows lie encoded in a file of the pass's folder, which all nodes must see. So
the actors of a lost node leave nothing behind that others need, and rows have one reader, that of the whole program.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from xtf.config.schema import Accelerator, Config
from xtf.runtime.artifacts import DamagedError, naming, sha256
from xtf.runtime.nodes import POLL, SHOWN_WITHIN, Introduction, introduce, unlike
from xtf.runtime.progress import say

if TYPE_CHECKING:
    from xtf.data.encode import Encoded

WAITING = "to_score"  # in the folder of a pass: the rows of its shards, a file each; goes with the attempt
RETRIES = 2  # of a shard whose scoring raised an error
DEATHS = 5  # workers that may be lost over one shard: from then on it is the shard


class Writer(Protocol):
    """What scores a shard's rows and writes it; it is pickled."""

    def write(self, name: str, part: Sequence[Encoded]) -> tuple[float, float]:
        """Write the shard `name`; returns seconds and peak MB."""


class ShardActor:
    """What Ray keeps on a device: it has the model, and scores one shard after the other."""

    def __init__(self, writer: Writer, folder: str, config: Config, own: Introduction, threads: int) -> None:
        why = not_fit(folder, config, own)  # of nodes that have come since the pass began
        if why is not None:
            raise RuntimeError(why)
        if config.trainer.accelerator is Accelerator.cpu:
            import torch

            torch.set_num_threads(threads)  # as many as the process that asks: they decide the last bits
        self.writer, self.folder = writer, Path(folder)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Score the shard of a batch of one."""
        name = str(batch["shard"][0])
        rows = self.folder / WAITING / name
        self._count(rows)
        part = _read_rows(rows)
        _, peak = self.writer.write(name, part)
        return {"shard": [name], "sha256": [sha256(self.folder / name)], "peak_mb": [peak]}

    def _count(self, rows: Path) -> None:
        """Ray begins a shard again for as long as its worker dies, be it out of memory, each time."""
        begun = rows.with_suffix(".begun")
        with naming(begun), begun.open("a", encoding="utf-8") as file:
            file.write(f"{platform.node()}\n")
        hosts = begun.read_text(encoding="utf-8").split()[:-1]
        if len(hosts) >= DEATHS:
            raise RuntimeError(
                f"{len(hosts)} workers were lost over the shard {rows.name}, on {', '.join(sorted(set(hosts)))}: if "
                "they ran out of memory, lower trainer.tokens_per_score_batch"
            )


def score_on_ray(
    writer: Writer, folder: Path, rows: Sequence[Encoded], parts: Mapping[str, range], config: Config
) -> Iterator[tuple[str, float]]:
    """Write the shards `parts` of a pass; yields each one's name, and the peak MB of the process that has scored it.

    Args:
        folder: the pass's, which all nodes of the cluster must see under this path.

    Raises:
        ValueError: the cluster cannot be reached, has no room for an actor, a node does not fit, or scoring failed.
    """
    folder = folder.absolute()
    with _connected(config):
        import ray

        threads = _threads(config)
        needs = {"num_cpus": threads, "num_gpus": 0 if config.trainer.accelerator is Accelerator.cpu else 1}
        token = folder / f".{secrets.token_hex(8)}.tmp"
        token.touch()
        own = introduce(config) | {"token": token.name, "folder": str(Path.cwd())}
        try:
            actors = _room(needs, config, folder, own)
            count = min(sum(actors.values()), len(parts))
            say(f"scoring on a Ray cluster: {_many(count, 'actor')} with a model each, on {', '.join(sorted(actors))}")
            _write_rows(folder / WAITING, rows, parts)
            data = ray.data.DataContext.get_current()
            data.enable_progress_bars = False
            data.print_on_execution_start = False
            data.retried_map_errors, data.max_map_retries = True, RETRIES
            data.raise_original_map_exception = True
            data.execution_no_progress_timeout_s = -1  # a shard of a large model may take an hour
            shards = ray.data.from_items([{"shard": name} for name in parts], override_num_blocks=len(parts))
            scored = shards.map_batches(
                ShardActor,
                fn_constructor_args=(writer, str(folder), config, own, threads),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(min_size=1, max_size=count, initial_size=count),
                **needs,
            )
            for found in scored.iter_rows():
                _await(folder / found["shard"], found["sha256"])
                yield found["shard"], found["peak_mb"]
        except ray.exceptions.RayError as error:
            raise ValueError(f"scoring on Ray failed: {_reason(error)}. Shards that are written are kept") from error
        finally:
            token.unlink(missing_ok=True)
            shutil.rmtree(folder / WAITING, ignore_errors=True)


def not_fit(folder: str, config: Config, own: Introduction) -> str | None:
    """Why this process, on a node of the cluster, cannot take part in the pass of the one that is `own`; else None."""
    with contextlib.suppress(OSError):
        os.chdir(own["folder"])  # relative paths are meant from there
    token, deadline = Path(folder, own["token"]), time.monotonic() + min(SHOWN_WITHIN, config.ray.timeout_seconds / 2)
    while not token.exists() and time.monotonic() < deadline:
        time.sleep(POLL)
    here = introduce(config)
    why = (
        unlike(here, own, config)
        if token.exists()
        else f"does not see {folder}: give an output_dir that all nodes share"
    )
    return None if why is None else f"{here['host']} {why}"


def _threads(config: Config) -> int:
    """Processor cores that an actor takes: on the CPU as many as PyTorch uses in this process."""
    if config.trainer.accelerator is not Accelerator.cpu:
        return 1
    import torch

    return torch.get_num_threads()


@contextlib.contextmanager
def _connected(config: Config) -> Iterator[None]:
    """Inside, this process is a driver of the cluster that `ray.address` names."""
    import ray
    import ray.data

    for handler in logging.getLogger("ray.data").handlers:  # what ends a pass is said here, in a sentence
        if handler.name == "console":
            handler.setLevel(logging.CRITICAL)
    if ray.is_initialized():  # by a program that calls this one
        yield
        return
    address = config.ray.address or os.environ.get("RAY_ADDRESS", "local")
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers of every cluster it starts
        say("starting Ray on this machine for the pass; ray.address=auto or HOST:6379 names a cluster that runs")
    else:
        _check_answers(address, config.ray.timeout_seconds)
    # It warns of what cannot be here: that arguments of actors are lost, which this process holds
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        ray.init(address=address, log_to_driver=False, logging_level="warning")
    except (ConnectionError, RuntimeError, ValueError) as error:  # RuntimeError: of another version, or of Python
        raise ValueError(f"the Ray cluster at ray.address={address} does not take this process: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str, seconds: float) -> None:
    """`ray.init` waits for minutes, and then ends the process."""
    asked = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "status", "--address", address]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        why = f"no answer within ray.timeout_seconds={seconds:g}"
    else:
        if done.returncode == 0:
            return
        why = (done.stderr.strip() or done.stdout.strip() or "no reason is given").splitlines()[-1].rstrip(".")
    raise ValueError(
        f"no Ray cluster can be reached at ray.address={address} ({why}): start one (ray start --head), run this on a "
        "node of it, or unset it"
    )


def _room(needs: Mapping[str, int], config: Config, folder: Path, own: Introduction) -> dict[str, int]:
    """How many actors each node of the cluster has room for, by host, once all of these nodes fit.

    Raises:
        ValueError: none has, or it stays taken by others; a node does not fit.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    wanted = {"CPU": needs["num_cpus"], "GPU": needs["num_gpus"]}
    asked = " and ".join(_many(number, what) for what, number in wanted.items() if number)
    found, checks = dict[str, int](), dict[Any, str]()
    for node in filter(lambda node: node["Alive"], ray.nodes()):
        has = node["Resources"]
        number = int(min(has.get(what, 0) // number for what, number in wanted.items() if number))
        if number:
            host = node["NodeManagerHostname"]
            found[host] = found.get(host, 0) + number
            where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            look = ray.remote(num_cpus=0, max_retries=0)(not_fit).options(scheduling_strategy=where)
            checks[look.remote(str(folder), config, own)] = host
    if not found:
        has = ray.cluster_resources()
        remedy = "set OMP_NUM_THREADS lower" if config.trainer.accelerator is Accelerator.cpu else "use trainer=cpu"
        raise ValueError(
            f"no node of the Ray cluster has room for one actor, which takes {asked} (all nodes together have "
            f"{_many(int(has.get('CPU', 0)), 'CPU')} and {_many(int(has.get('GPU', 0)), 'GPU')}): add a node that has, "
            f"or {remedy}"
        )
    limit = config.ray.timeout_seconds
    done, late = ray.wait(list(checks), num_returns=len(checks), timeout=limit)
    if late:
        raise ValueError(
            f"{', '.join(checks[look] for look in late)} gave no answer within ray.timeout_seconds={limit:g}"
        )
    if problems := [why for look in done if (why := _answer(look, checks[look])) is not None]:
        raise ValueError(f"the Ray cluster does not fit: {'; '.join(problems)}")
    free = ray.remote(**needs, max_retries=0)(_nothing).remote()
    if not ray.wait([free], timeout=limit)[0]:
        ray.cancel(free, force=True)
        raise ValueError(
            f"all of the Ray cluster is taken: room for one actor ({asked}) was not free within "
            f"ray.timeout_seconds={limit:g}"
        )
    return found


def _nothing() -> None:
    """What is asked of a cluster to see whether it has room."""


def _answer(look: Any, host: str) -> str | None:
    import ray

    try:
        why: str | None = ray.get(look)
    except Exception as error:  # of a program that cannot be loaded there, of whatever kind
        return f"{host} cannot run this program ({_reason(error)}): install the same version on all nodes"
    return why


def _write_rows(folder: Path, rows: Sequence[Encoded], parts: Mapping[str, range]) -> None:
    """The rows of each shard in a file of its own."""
    import pyarrow as pa

    from xtf.data.stored import SCHEMA, record_batch

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, part in parts.items():
        with naming(folder / name), pa.ipc.new_file(str(folder / name), SCHEMA) as file:
            file.write_batch(record_batch(rows[part.start : part.stop]))


def _read_rows(file: Path) -> list[Encoded]:
    """What `_write_rows` has written.

    Raises:
        DamagedError: it is gone, or not as it was written.
    """
    import pyarrow as pa

    from xtf.data.stored import StoredRows

    try:
        with pa.ipc.open_file(pa.memory_map(str(file))) as opened:
            return list(StoredRows(opened.read_all()))
    except (OSError, pa.ArrowInvalid) as error:
        raise DamagedError(
            f"{file} cannot be read on {platform.node()} ({str(error).splitlines()[0]}): the same command writes it "
            "anew; if it happens again, the shared folder loses what is written to it"
        ) from error


def _await(shard: Path, digest: str) -> None:
    """Shared folders show files late."""
    deadline = time.monotonic() + SHOWN_WITHIN
    while not shard.exists() or sha256(shard) != digest:
        if time.monotonic() > deadline:
            raise ValueError(f"{shard} is not seen here as a node of the Ray cluster has written it")
        time.sleep(POLL)


def _reason(error: BaseException) -> str:
    """What an error of Ray says in one line: of one that it has wrapped the first, of a traceback the last."""
    inner = getattr(error, "cause", None)
    lines = [line.strip() for line in str(inner or error).splitlines() if line.strip()] or [type(error).__name__]
    return f"{type(inner).__name__}: {lines[0]}" if inner else lines[-1]


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
