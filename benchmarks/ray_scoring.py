"""A scoring pass on a Ray cluster of this machine that loses a node in the middle, beside the same pass by one process.

    OMP_NUM_THREADS=1 python -m benchmarks.ray_scoring [KEY=VALUE ...]

Needs Ray (extra `ray`). The cluster is two raylets with one CPU each, beside one with none for this process; one of the
two is killed once a quarter of the shards is there. Prints whether the shards have the same bytes, and seconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
COMMON = ("stage=score", "task.train.limit=240", "trainer.shard_examples=4", "trainer.tokens_per_score_batch=512")
OBJECTS = 80 * 2**20  # bytes of a raylet's object store, the least that it takes


def start(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    folder.mkdir()
    return subprocess.Popen([sys.executable, str(ROOT / "run.py"), *COMMON, *arguments], cwd=folder)


def manifest(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Of the pass in a folder, with its place; an empty one before the first shard."""
    for file in folder.glob("outputs/scores/*/manifest.json"):
        return file, json.loads(file.read_text())
    return folder, {"shards": {}}


def shards(folder: Path) -> dict[str, bytes]:
    file, found = manifest(folder)
    assert found["complete"]
    return {name: (file.parent / name).read_bytes() for name in found["shards"]}


def main(*arguments: str) -> int:
    from ray.cluster_utils import Cluster

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory() as name:
        one, several = Path(name, "one"), Path(name, "several")
        began = time.monotonic()
        if start(one, *arguments).wait():
            return 1
        alone, expected = time.monotonic() - began, shards(one)
        cluster = Cluster()
        cluster.add_node(num_cpus=0, object_store_memory=OBJECTS)
        nodes = [cluster.add_node(num_cpus=1, object_store_memory=OBJECTS) for _ in range(2)]
        began = time.monotonic()
        process = start(several, *arguments, "trainer.engine=ray", f"ray.address={cluster.address}")
        killed = 0
        while process.poll() is None:
            if not killed and len(manifest(several)[1]["shards"]) * 4 >= len(expected):
                killed = len(manifest(several)[1]["shards"])
                cluster.remove_node(nodes[0], allow_graceful=False)
            time.sleep(0.1)
        seconds = time.monotonic() - began
        cluster.shutdown()
        if process.returncode:
            return 1
        same = shards(several) == expected
        print(f"one process: {len(expected)} shards in {alone:.0f} s")
        print(f"Ray, a node killed at shard {killed}: {len(shards(several))} shards in {seconds:.0f} s")
        print(f"the same bytes: {same}")
        return 0 if same and killed else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
