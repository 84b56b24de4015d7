"""A pass on a Ray cluster of two raylets: the bytes of one process, also where a worker or a node is lost.

Ray is a large package and not among those of the tests: without it all but the refusals is skipped. Set
OMP_NUM_THREADS=1, so that each raylet has room for an actor.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from test_store import ALL, ALONE, MODEL, rows, score, shards  # noqa: F401  # a fixture
from transformers import AutoTokenizer

from xtf import tiny
from xtf.config.checks import check_engine
from xtf.config.home import HOME
from xtf.config.schema import Attribute, Config, ConfigError, Engine, RayConfig, ScorerConfig, TaskConfig
from xtf.runtime.artifacts import DamagedError
from xtf.runtime.models import load_model
from xtf.scoring import on_ray
from xtf.scoring.store import Written, scoring_pass

introduce = on_ray.introduce
ON_RAY = dataclasses.replace(ALONE, engine=Engine.ray, shard_examples=1)


def test_without_ray_or_with_its_keys_out_of_place_the_configuration_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigError, match=r"ray\.address=auto is read with trainer\.engine=ray only"):
        check_engine(ALONE, RayConfig("auto"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"trainer\.engine=ray needs Ray, which is not installed: pip install 'xtf\[ray\]'"
    ):
        check_engine(ON_RAY, RayConfig())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    with pytest.raises(ConfigError, match=r"is that of Ray Client: .* ray\.address=auto, or HOST:6379"):
        check_engine(ON_RAY, RayConfig("ray://head:10001"))
    check_engine(ON_RAY, RayConfig("head:6379"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster whose nodes are raylets with one CPU; the first has none, and this process lives there."""
    pytest.importorskip("ray", reason="Ray is not installed (extra `ray`)")
    from ray.cluster_utils import Cluster

    if torch.get_num_threads() > 1:
        pytest.skip("needs OMP_NUM_THREADS=1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        paths = (HOME, Path(__file__).parent, Path(__file__).parents[1])  # of what is pickled here by its name
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
        found = Cluster()
        found.add_node(num_cpus=0, object_store_memory=80 * 2**20)
        yield found
        found.shutdown()


def slow(folder: Path, place: str | None = None) -> Any:
    """The model, each of whose passes takes a while; notes its process."""
    import ray

    (folder / str(os.getpid())).write_text(ray.get_runtime_context().get_node_id())
    model = load_model(MODEL, ALONE, torch.float32, place=place)
    model.base_model.layers[0].register_forward_pre_hook(lambda *_: time.sleep(0.5))
    return model


def on_cluster(folder: Path, found: Any, rows: Any, load: Callable[..., Any], **settings: Any) -> Path:  # noqa: F811
    config = Config(
        scorer=ScorerConfig("xtf", list(Attribute)),
        trainer=ON_RAY,
        model=MODEL,
        task=TaskConfig(name="math"),
        ray=RayConfig(found.address, **{"timeout_seconds": 60.0} | settings),
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny.MODEL_DIR)
    return scoring_pass(folder, rows, ALL, config=config, model={"name": "tiny"}, load=load, tokenizer=tokenizer)


def test_a_killed_worker_and_a_lost_node_lose_nothing(
    rows: Any,  # noqa: F811
    tmp_path: Path,
    cluster: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = dataclasses.replace(ALONE, shard_examples=1)
    expected = shards(score(tmp_path / "alone", rows, one))
    workers = tmp_path / "workers"
    workers.mkdir()
    nodes = {
        node.node_id: node for node in (cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20) for _ in "ab")
    }
    done: list[str] = []
    note = Written.note

    def watched(written: Written, manifest: dict[str, Any], name: str) -> None:
        note(written, manifest, name)
        if len(manifest["shards"]) == 3 and not done:
            first = next(iter(workers.iterdir()))
            os.kill(int(first.name), signal.SIGKILL)
            done.append("worker killed")
        elif len(manifest["shards"]) == 6 and len(done) == 1:
            *_, last = workers.iterdir()
            cluster.remove_node(nodes.pop(last.read_text()), allow_graceful=False)
            done.append("node lost")

    monkeypatch.setattr(Written, "note", watched)
    folder = on_cluster(tmp_path / "ray", cluster, rows, functools.partial(slow, workers))
    assert done == ["worker killed", "node lost"]
    assert shards(folder) == expected
    assert len(list(workers.iterdir())) >= 3, "what was lost was begun again by another process"
    assert not (folder / on_ray.WAITING).exists()
    for node in nodes.values():
        cluster.remove_node(node)


def test_a_pass_resumes_from_the_shards_that_are_there_and_a_failing_one_ends_it_with_its_error(
    rows: Any,  # noqa: F811
    tmp_path: Path,
    cluster: Any,
) -> None:
    node = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    one = dataclasses.replace(ALONE, shard_examples=1)
    expected = shards(score(tmp_path / "alone", rows, one))
    with pytest.raises(ValueError, match=r"scoring on Ray failed: .*no such luck.*Shards that are written are kept"):
        on_cluster(tmp_path / "ray", cluster, rows, functools.partial(unlucky, tmp_path / "ray"))
    (file,) = (tmp_path / "ray").glob("*/manifest.json")
    begun = Written(file.parent).load()["shards"]
    assert 4 <= len(begun) < len(rows)
    times = {name: (file.parent / name).stat().st_mtime_ns for name in begun}
    folder = on_cluster(tmp_path / "ray", cluster, rows, functools.partial(load_model, MODEL, ALONE, torch.float32))
    assert shards(folder) == expected
    assert {name: (folder / name).stat().st_mtime_ns for name in begun} == times, "not scored again"
    cluster.remove_node(node)


def unlucky(folder: Path, place: str | None = None) -> Any:
    """The model, which fails once four shards are noted of a pass below the folder."""
    model = load_model(MODEL, ALONE, torch.float32, place=place)

    def fail(*_: Any) -> None:
        time.sleep(0.3)
        if any(len(Written(file.parent).load()["shards"]) >= 4 for file in folder.glob("*/manifest.json")):
            raise OSError("no such luck")

    model.base_model.layers[0].register_forward_pre_hook(fail)
    return model


def test_a_cluster_that_does_not_answer_or_has_no_room_or_does_not_fit_is_refused_in_a_sentence(
    rows: Any,  # noqa: F811
    tmp_path: Path,
    cluster: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    attempt = functools.partial(on_cluster, tmp_path, rows=rows, load=functools.partial(load_model, MODEL, ALONE))
    with pytest.raises(ValueError, match=r"no node of the Ray cluster has room for one actor, which takes 1 CPU"):
        attempt(cluster)
    nowhere = dataclasses.make_dataclass("Nowhere", [("address", str)])("127.0.0.1:1")
    started = time.monotonic()
    with pytest.raises(
        ValueError, match=r"no Ray cluster can be reached at ray\.address=127\.0\.0\.1:1 \(no answer within"
    ):
        attempt(nowhere, timeout_seconds=5.0)
    assert time.monotonic() - started < 30
    node = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    monkeypatch.setattr(on_ray, "introduce", lambda config: introduce(config) | {"program": "another"})
    with pytest.raises(ValueError, match=r"the Ray cluster does not fit: .* runs another version of this program"):
        attempt(cluster)
    monkeypatch.undo()
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        taken = ray.remote(num_cpus=1)(hold).remote()
        with pytest.raises(
            ValueError, match=r"all of the Ray cluster is taken: room for one actor \(1 CPU\) was not free"
        ):
            attempt(cluster, timeout_seconds=30.0)
        ray.cancel(taken, force=True)
    finally:
        ray.shutdown()
        cluster.remove_node(node)


def hold() -> None:
    """Something else that a cluster does."""
    time.sleep(1000)


def test_a_node_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    config = Config(model=MODEL, ray=RayConfig(timeout_seconds=1))
    why = on_ray.not_fit(str(tmp_path / "elsewhere"), config, {"folder": str(Path.cwd()), "token": "t"})
    assert why is not None and "elsewhere: give an output_dir that all nodes share" in why


def test_a_shard_that_ends_every_worker_is_given_up(tmp_path: Path) -> None:
    actor = object.__new__(on_ray.ShardActor)
    for _ in range(on_ray.DEATHS):
        actor._count(tmp_path / "00000.parquet")
    with pytest.raises(
        RuntimeError, match=r"5 workers were lost over the shard 00000.parquet, on .*tokens_per_score_batch"
    ):
        actor._count(tmp_path / "00000.parquet")


def test_a_block_that_cannot_be_read_and_a_full_disk_are_named(
    rows: Any,  # noqa: F811
    tmp_path: Path,
    full_disk: Callable[[], AbstractContextManager[None]],
) -> None:
    waiting, parts = tmp_path / on_ray.WAITING, {"00000.parquet": range(len(rows))}
    on_ray._write_rows(waiting, rows, parts)
    file = waiting / "00000.parquet"
    assert on_ray._read_rows(file) == list(rows)
    whole = file.read_bytes()
    for content in (b"", whole[:100], whole[: len(whole) // 2]):
        file.write_bytes(content)
        with pytest.raises(DamagedError, match=rf"{file} cannot be read on .*the same command writes it anew"):
            on_ray._read_rows(file)
    file.unlink()
    with pytest.raises(DamagedError, match=rf"{file} cannot be read on .*No such file"):
        on_ray._read_rows(file)
    with full_disk(), pytest.raises(OSError, match=rf"'{file}'"):
        on_ray._write_rows(waiting, list(rows) * 50, {"00000.parquet": range(50 * len(rows))})
