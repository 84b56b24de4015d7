"""Memory of a device: its peak (on a GPU what tensors took, on the CPU what the process held), and what is free."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_M_MMAP_THRESHOLD = -3  # malloc.h
_CGROUP = Path("/sys/fs/cgroup")  # of a container, under cgroup v2


def reset_peak_memory(device: torch.device) -> None:
    """Count the peak from now on: earlier work of this process may have held more.

    On the CPU only Linux can; elsewhere the peak is that since the process began.
    """
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
    elif os.access(_RESET, os.W_OK):
        _RESET.write_text("5")  # see proc(5): resets VmHWM


def peak_memory(device: torch.device) -> int:
    """Bytes at most since `reset_peak_memory`."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    if _STATUS.exists():  # ru_maxrss would start from what the parent held when it started this process
        found = re.search(r"^VmHWM:\s+(\d+) kB", _STATUS.read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def free_memory(device: torch.device | None = None) -> int:
    """Bytes that this process could still take: of the machine (or the container's limit), or of a GPU."""
    if device is not None and device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    import psutil

    available = int(psutil.virtual_memory().available)
    limit = _CGROUP / "memory.max"
    if limit.exists() and (text := limit.read_text(encoding="utf-8").strip()) != "max":
        held = re.search(r"^anon (\d+)$", (_CGROUP / "memory.stat").read_text(encoding="utf-8"), re.MULTILINE)
        available = min(available, int(text) - int(held[1] if held else 0))
    return available


def return_freed_memory() -> None:
    """From now on blocks of a MiB and more go back to the system when they are freed, where the C library is glibc.

    It else keeps them for reuse, and where their sizes differ, as activations' do, in pieces that fit nothing.
    """
    libc = ctypes.CDLL(None)
    if sys.platform == "linux" and hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 2**20)
