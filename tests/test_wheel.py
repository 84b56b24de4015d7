"""The built wheel, away from the repository: the console script, a sweep with its report, the explorer."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds nothing but what the wheel installs; its dependencies come from this environment."""
    built, target = tmp_path_factory.mktemp("built"), tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "--wheel-dir", str(built)]
    subprocess.run(build, check=True)
    (wheel,) = built.glob("xtf-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)], check=True)
    return target


def run(installed: Path, folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(installed / "bin" / "xtf"), *arguments],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if k != "XTF_ROOT"}
        | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_wheel_holds_the_package_and_hydras_plugin_and_nothing_else_at_the_top(installed: Path) -> None:
    assert {path.name for path in installed.iterdir()} - {"bin", "__pycache__"} == {
        "xtf", "hydra_plugins", next(installed.glob("xtf-*.dist-info")).name
    }  # fmt: skip
    for file in ("py.typed", "conf/model/tiny.yaml", "experiments/table2.yaml", "tiny/model/model.safetensors"):
        assert (installed / "xtf" / file).is_file()
    assert not list((installed / "xtf/experiments").glob("*[!l]"))  # no archives, no pages


def test_a_sweep_its_report_and_the_explorer_from_another_folder(installed: Path, tmp_path: Path) -> None:
    shown = run(installed, tmp_path, "--help")
    assert "usage: xtf [-m]" in shown and "table2" in shown and "run.py" not in shown
    assert shown.count(".md") == shown.count(".md in the repository") == 2  # the wheel has neither
    assert str(installed / "xtf/config/schema.py") in shown
    small = ["task.train.limit=8", "task.eval.limit=2", "task.max_new_tokens=8", "tuning.max_steps=1"]
    run(
        installed,
        tmp_path,
        "-m",
        "experiments=controls",
        "model=tiny",
        "task=math",
        "method=xtf,normal",
        "seed=0",
        *small,
    )
    assert len(list(tmp_path.glob("outputs/runs/**/metrics.json"))) == 2
    assert list(tmp_path.glob("outputs/reports/**/*.html"))
    run(installed, tmp_path, "stage=preview", *small)
    assert list(tmp_path.glob("outputs/**/preview.html"))
    told = [
        path
        for path in tmp_path.rglob("*")
        if path.suffix in (".html", ".md", ".json", ".yaml") and str(ROOT) in path.read_text(encoding="utf-8")
    ]
    assert told == []  # nothing came from the repository


# What only the extra `run` brings: hidden from the process, as where `pip install xtf` is all that was done.
HIDDEN = "import sys; sys.modules.update(dict.fromkeys(xtf_run)); "
LIBRARY = """
import xtf
from xtf.tiny import MODEL_DIR
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
rows = [{"prompt": f"What is {n} + 3?", "response": f"{n} + 3 = {n + 3}"} for n in range(8)]
masked = xtf.mask(xtf.score(MODEL_DIR, tokenizer, rows), "quantile", tokenizer=tokenizer)
print(xtf.summary(masked, tokenizer))
xtf.preview(masked, tokenizer, "preview.html")
xtf.export(masked, to="trl", folder="for-trl")
print(xtf.grade("number", "It is 1,000.", "1000").correct)
assert not [name for name in xtf_run if sys.modules.get(name) is not None]
"""


def alone(installed: Path, folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Runs code where what the extra `run` brings cannot be imported."""
    from xtf.cli import RUN

    program = f"xtf_run = {RUN!r}; {HIDDEN}\n{code}"
    environment = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_library_needs_the_small_core_alone(installed: Path, tmp_path: Path) -> None:
    done = alone(installed, tmp_path, LIBRARY)
    assert done.returncode == 0, done.stderr
    assert "this mask: " in done.stdout and done.stdout.rstrip().endswith("True")
    assert (tmp_path / "preview.html").is_file() and (tmp_path / "for-trl" / "train.py").is_file()
    (metadata,) = installed.glob("xtf-*.dist-info/METADATA")
    needed = [line for line in metadata.read_text(encoding="utf-8").splitlines() if line.startswith("Requires-Dist")]
    core = {re.match(r"[\w-]+", line.split()[1])[0] for line in needed if "extra ==" not in line}
    wanted = "datasets filelock jinja2 numpy plotly pyarrow pyyaml rich torch transformers"
    assert " ".join(sorted(core)) == wanted


def test_the_command_line_without_its_extra_says_so_in_a_sentence(installed: Path, tmp_path: Path) -> None:
    done = alone(installed, tmp_path, "from xtf.cli import main; raise SystemExit(main(['stage=mask']))")
    assert done.returncode == 2
    assert done.stderr.startswith("error: the command line needs more than the library, here hydra, ")
    assert done.stderr.endswith("pip install 'xtf[run]'\n")
    done = alone(installed, tmp_path, "from xtf.cli import main; raise SystemExit(main(['--help']))")
    assert done.returncode == 0 and "usage: xtf" in done.stdout


def test_importing_xtf_imports_nothing_else(installed: Path, tmp_path: Path) -> None:
    code = "import sys; before = set(sys.modules); import xtf; print(sorted(set(sys.modules) - before))"
    done = alone(installed, tmp_path, code)
    others = {name.split(".")[0] for name in ast.literal_eval(done.stdout)} - set(sys.stdlib_module_names)
    assert others == {"xtf"}, done.stderr


def test_the_wheel_is_small(installed: Path) -> None:
    assert sum(path.stat().st_size for path in installed.rglob("*") if path.is_file()) < 12_000_000
