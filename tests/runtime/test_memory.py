from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from xtf.runtime.memory import peak_memory, reset_peak_memory

CPU = torch.device("cpu")
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux can reset the peak")


@linux
def test_the_peak_is_that_since_the_reset():
    reset_peak_memory(CPU)
    before = peak_memory(CPU)
    held = np.ones(25_000_000)
    assert peak_memory(CPU) - before == pytest.approx(held.nbytes, rel=0.05)
    del held
    assert peak_memory(CPU) - before > 100_000_000
    reset_peak_memory(CPU)
    assert peak_memory(CPU) - before < 100_000_000


@linux
def test_a_child_does_not_start_from_its_parents_peak():
    held = np.ones(60_000_000)
    code = "import xtf.runtime.memory as m; print(m.peak_memory(type(str(), (), {'type': 'cpu'})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < held.nbytes / 2
