"""The jobs of a sweep in Slurm's queue: whether they wait, run or are gone, and an error for those that left none.

submitit would ask `sacct`. A cluster without accounting has nothing to say there, and then a job that was cancelled, or
was killed for its memory, is waited for without end.
"""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from xtf.runtime.progress import say
from xtf.runtime.run_folder import finished
from xtf.sweeps.jobs import Planned

LIST = ["squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i|%T|%r"]
EVERY = 30.0  # seconds between two looks at the queue, once a sweep runs for a minute
# Slurm's states of a job that will not run again. One whose time limit sends it again is COMPLETING, then PENDING.
ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "REVOKED", "TIMEOUT",
}  # fmt: skip
NEVER = {"BadConstraints", "PartitionConfig", "PartitionNodeLimit", "PartitionTimeLimit"}  # what waiting does not mend
GONE = "no longer in the queue"


class LostError(Exception):
    """A job that ended without a word of its own."""


class Queue:
    """What submitit asks of its jobs (`SlurmJob.watcher`), by squeue. Says what changes."""

    def __init__(self) -> None:
        self.states: dict[str, tuple[str, str]] = {}  # state and reason by Slurm's number, in the order of the jobs
        self.began = self.asked = float("-inf")
        self.said = ""

    def register_job(self, job_id: str) -> None:
        """A job that was sent. Of an array also the whole is, which is none."""
        if not self.states:
            self.began = time.monotonic()
        self.states.setdefault(job_id, ("PENDING", "None"))

    def get_state(self, job_id: str, mode: str = "standard") -> str:
        """Slurm's word for it; "standard" asks squeue from time to time, "force" at once, "cache" does not."""
        now = time.monotonic()
        if mode == "force" or (mode == "standard" and now - self.asked > min(EVERY, max(2.0, (now - self.began) / 2))):
            self._ask()
            self.asked = now
        return self.states[job_id][0]

    def is_done(self, job_id: str, mode: str = "standard") -> bool:
        """Whether it will not run again."""
        state = self.get_state(job_id, mode)
        return state in ENDED or state == GONE

    def jobs(self) -> list[str]:
        """Slurm's numbers, one for each job of the sweep that was sent, in their order."""
        arrays = {number.partition("_")[0] for number in self.states if "_" in number}
        return [number for number in self.states if number not in arrays]

    def _ask(self) -> None:
        done = subprocess.run(LIST, capture_output=True, text=True, check=False)
        if done.returncode:  # the controller is away for a while: what is known stands
            self._say(f"Slurm's queue cannot be read, and is tried again: {done.stderr.strip() or LIST[0]}")
            return
        found = {}
        for line in done.stdout.splitlines():
            number, state, why = line.split("|", 2)
            found[number] = state, why
        for number in self.jobs():
            if not self.is_done(number, "cache"):
                self.states[number] = found.get(number, (GONE, ""))
        self._say(self._left())

    def _left(self) -> str:
        """What the queue still has of the jobs, in words."""
        left = [self.states[number] for number in self.jobs() if not self.is_done(number, "cache")]
        why = {reason for state, reason in left if state == "PENDING" and reason != "None"}
        words = ", ".join(f"{many} {state.lower()}" for state, many in Counter(state for state, _ in left).items())
        text = f"Slurm: {words or 'no job is left'}" + (f" ({', '.join(sorted(why))})" if why else "")
        if why & NEVER:
            text += (
                ". No machine has what hydra.launcher asks for: stop this command, scancel the job, and ask for less "
                "(cpus_per_task, mem_gb, timeout_min, nodes, gpus_per_node)"
            )
        return text

    def _say(self, text: str) -> None:
        if text != self.said:
            say(text)
        self.said = text


def sent_again(error: BaseException | None) -> bool:
    """Whether an error in a job says that Slurm runs it again: submitit asks for that by scontrol, which Slurm may
    end together with the job before it returns."""
    while error is not None:
        if isinstance(error, subprocess.CalledProcessError) and error.returncode < 0:
            return list(error.cmd)[:2] == ["scontrol", "requeue"]
        error = error.__cause__ or error.__context__
    return False


def watched() -> Queue:
    """The queue that submitit asks from now on."""
    from submitit.slurm.slurm import SlurmJob

    queue = Queue()
    SlurmJob.watcher = queue
    return queue


def settle(queue: Queue, sent: Sequence[Planned], logs: str) -> bool:
    """Wait until no job is in the queue any more, and leave an error for each that left neither results nor one.

    Args:
        sent: the jobs in the order in which they were sent; those that were not are left as they are.
        logs: where submitit keeps a job's, with %j for its number.

    Returns:
        Whether such a job was found.
    """
    lost = False
    for number, job in zip(queue.jobs(), sent, strict=False):
        while not queue.is_done(number):
            time.sleep(1)
        if job.folder.failure() is None and not finished(job.config, job.folder):
            lost = True
            log = Path(logs.replace("%j", number)) / f"{number}_0_log.err"
            lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
            said = next((line.strip() for line in reversed(lines) if line.strip()), "nothing was logged")
            job.folder.record_error(
                LostError(f"Slurm's job {number} ended without a result ({queue.states[number][0]}): {said} ({log})")
            )
    return lost
