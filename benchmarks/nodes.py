"""Training on several nodes, each in a network namespace of this machine, beside the same training by one process.

    python -m benchmarks.nodes [NODES] [KEY=VALUE ...]

The nodes have addresses and host names of their own and reach each other over virtual Ethernet alone; no rights are
needed where user namespaces are allowed. Prints how far losses and weights are apart.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
INSIDE = "XTF_NODES_INSIDE"
PORT = "29500"
COMMON = ("stage=train", "task.train.limit=48", "tuning.batch_size=8", "tuning.epochs=2")
TOKENS = "trainer.tokens_per_microbatch=8192"  # what several devices take


def sh(command: str) -> None:
    subprocess.run(command.split(), check=True)


class Node:
    """A network namespace with one interface, held by a process that sleeps."""

    def __init__(self, rank: int) -> None:
        self.rank, self.interface = rank, f"eth{rank}"
        hold = f"hostname node{rank} && exec sleep infinity"
        self.holder = subprocess.Popen(["unshare", "--net", "--uts", "sh", "-c", hold])
        while Path(f"/proc/{self.holder.pid}/ns/net").readlink() == Path("/proc/self/ns/net").readlink():
            time.sleep(0.02)
        sh(f"ip link add port{rank} type veth peer name {self.interface} netns {self.holder.pid}")
        sh(f"ip link set port{rank} master switch up")
        for command in (f"addr add 10.77.0.{rank + 1}/24 dev {self.interface}", f"link set {self.interface} up"):
            sh(" ".join([*self.enter, "ip", command]))
        sh(" ".join([*self.enter, "ip link set lo up"]))

    @property
    def enter(self) -> list[str]:
        return ["nsenter", f"--target={self.holder.pid}", "--net", "--uts"]

    def start(self, folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
        environment = os.environ | {
            "NODE_RANK": str(self.rank), "MASTER_ADDR": "10.77.0.1", "MASTER_PORT": PORT,
            "GLOO_SOCKET_IFNAME": self.interface, "TORCH_CPP_LOG_LEVEL": "ERROR",
        }  # fmt: skip
        return subprocess.Popen(
            [*self.enter, sys.executable, str(ROOT / "run.py"), *arguments], cwd=folder, env=environment
        )


def trained(folder: Path) -> tuple[list[float], dict[str, Any]]:
    """Losses, and weights by name."""
    from safetensors.torch import load_file

    from xtf.runtime.train_log import read_log

    log = read_log(next(folder.rglob("train_log.csv")))
    return [row["loss"] for row in log], load_file(next(folder.rglob("model/model.safetensors")))


def compare(nodes: int, *arguments: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        one, several = Path(name, "one"), Path(name, "several")
        for folder in (one, several):
            folder.mkdir()
        subprocess.run([sys.executable, str(ROOT / "run.py"), *COMMON, TOKENS, *arguments], cwd=one, check=True)
        sh("ip link add switch type bridge")
        sh("ip link set switch up")
        found = [Node(rank) for rank in range(nodes)]
        try:
            each = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=1", f"trainer.nodes={nodes}")
            processes = [node.start(several, *COMMON, *each, *arguments) for node in found]
            if any(process.wait() for process in processes):
                sys.exit("a node failed; its error stands above")
        finally:
            for node in found:
                node.holder.kill()
        (losses, weights), (others, other_weights) = trained(one), trained(several)
        apart = max(abs(a - b) / a for a, b in zip(losses, others, strict=True))
        difference = sum(float((weights[key] - other_weights[key]).double().pow(2).sum()) for key in weights)
        size = sum(float(value.double().pow(2).sum()) for value in weights.values())
        largest = max(float((weights[key] - other_weights[key]).abs().max()) for key in weights)
        print(f"{nodes} nodes, {len(losses)} steps: losses at most {apart:.1e} apart (relative)")
        print(f"weights {(difference / size) ** 0.5:.1e} apart in relative norm, {largest:.1e} at most")


if __name__ == "__main__":
    if INSIDE not in os.environ:
        command = ["unshare", "--map-root-user", "--net", sys.executable, "-m", "benchmarks.nodes", *sys.argv[1:]]
        os.execvpe("unshare", command, os.environ | {INSIDE: "1"})
    count = int(sys.argv[1]) if sys.argv[1:2] and sys.argv[1].isdigit() else 2
    compare(count, *(argument for argument in sys.argv[1:] if "=" in argument))
