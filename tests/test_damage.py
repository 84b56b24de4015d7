"""One flipped bit in each artifact that is read back: the run ends with the same record, or refuses by name."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import commands
import hydra
import pytest
from test_end_to_end import ROOT, RUN, SMALL, finish, record

from xtf import cli, pipeline
from xtf.config.checks import resolve
from xtf.config.compose import register, to_config
from xtf.config.identity import overrides
from xtf.config.schema import ConfigError
from xtf.reporting.cells import cells_in
from xtf.reporting.explorer import compared_mask
from xtf.reporting.mask_report import mask_report
from xtf.reporting.sweep_report import jobs_report
from xtf.runtime.artifacts import DamagedError, seal
from xtf.scoring.store import read_pass
from xtf.study.detection import read_planted

FOLDER = f"{RUN}/*/seed0"
REFUSED, MADE_AGAIN = "refused", "made again"
ARTIFACTS = {
    f"{FOLDER}/metrics.json": MADE_AGAIN,
    f"{FOLDER}/generations.jsonl": MADE_AGAIN,
    f"{FOLDER}/mask.parquet": MADE_AGAIN,
    f"{FOLDER}/manifest.json": REFUSED,
    f"{FOLDER}/train_log.csv": REFUSED,
    f"{FOLDER}/hashes.json": REFUSED,
    "outputs/base/*/generations.jsonl": MADE_AGAIN,
    "outputs/scores/*/manifest.json": None,
    "outputs/scores/*/00001.parquet": None,
}


def flip(file: Path, share: float = 0.5) -> None:
    """Flips one bit of the byte at this share of the file."""
    content = bytearray(file.read_bytes())
    content[int(share * (len(content) - 1))] ^= 4
    file.write_bytes(content)


def run(folder: Path, *arguments: str) -> None:
    """The run of `SMALL` in `folder`, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("xtf.reporting.figures.save", commands.blank)
        patch.setenv("XTF_ROOT", str(ROOT))
        register()
        with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            node = hydra.compose("config", overrides=[*SMALL, *arguments])
            default = hydra.compose("config")
        pipeline.run(resolve(to_config(node)), overrides(node, default))


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damage")
    run(folder)
    return folder


@pytest.mark.parametrize("artifact", ARTIFACTS)
def test_one_flipped_bit_is_found_before_use(whole: Path, tmp_path: Path, artifact: str) -> None:
    folder = copied(whole, tmp_path / "copy")
    (file,) = folder.glob(artifact)
    flip(file)
    expected = ARTIFACTS[artifact]
    if expected is REFUSED:
        with pytest.raises(DamagedError, match=re.escape(file.name)):
            run(folder)
        return
    try:
        run(folder)
    except DamagedError:
        assert expected is None
    else:
        assert record(folder) == record(whole)


def experiment(folder: Path) -> object:
    """The table that `experiments=NAME stage=report` makes of the run."""
    (run,) = folder.glob(FOLDER)
    return jobs_report("name", [run], {}, folder / "out")


READ_BY_REPORTS: dict[str, list[tuple[str, Callable[[Path], object]]]] = {  # with what reads it
    "an experiment's report": [(f"{FOLDER}/{name}", experiment) for name in ("mask.parquet", "generations.jsonl")],
    "a report of masks": [
        (artifact, lambda folder: mask_report("name", cells_in(folder.glob(FOLDER), {}, False), folder / "out"))
        for artifact in (f"{FOLDER}/mask.parquet", "outputs/scores/*/manifest.json")
    ],
    "a report of planted noise": [(f"{FOLDER}/mask.parquet", lambda folder: read_planted(list(folder.glob(FOLDER))))],
    "histograms of scores": [
        (artifact, lambda folder: read_pass(next(folder.glob("outputs/scores/*"))))
        for artifact in ("outputs/scores/*/manifest.json", "outputs/scores/*/00001.parquet")
    ],
    "preview.against": [
        (f"{FOLDER}/mask.parquet", lambda folder: compared_mask(str(next(folder.glob(f"{FOLDER}/mask.parquet")))))
    ],
}


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("artifact", "read"),
    [pytest.param(*case, id=f"{name}: {case[0]}") for name, cases in READ_BY_REPORTS.items() for case in cases],
)
def test_what_only_reports_read_is_checked_before_it_is_used(
    whole: Path, tmp_path: Path, artifact: str, read: Callable[[Path], object]
) -> None:
    folder = copied(whole, tmp_path / "copy")
    read(folder)
    (file,) = folder.glob(artifact)
    flip(file)
    with pytest.raises(DamagedError, match=rf"{re.escape(file.name)} is .*not as it was written: run the command"):
        read(folder)


def test_an_experiment_refuses_a_record_beside_completions_that_it_was_not_made_of(whole: Path, tmp_path: Path) -> None:
    folder = copied(whole, tmp_path / "copy")
    (stored,) = folder.glob(f"{FOLDER}/generations.jsonl")
    stored.write_text(stored.read_text().replace('"correct": false', '"correct": true'))
    seal(stored)  # as if another evaluation had left it
    with pytest.raises(ValueError, match=r"metrics\.json and .*generations\.jsonl do not belong together"):
        experiment(folder)


@pytest.mark.parametrize("damage", ["flipped", "cut", "another run's"])
def test_a_damaged_mask_is_named_and_made_again(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    folder = copied(whole, tmp_path / "copy")
    (mask,) = folder.glob(f"{FOLDER}/mask.parquet")
    if damage == "flipped":
        flip(mask)
    else:
        mask.write_bytes(mask.read_bytes()[:1000] if damage == "cut" else b"PAR1")
    run(folder)
    told = " ".join(capsys.readouterr().out.split())
    assert "mask.parquet is damaged, not as it was written: it is made again" in told
    assert record(folder) == record(whole)


@pytest.mark.parametrize("artifact", ["mask.parquet", "generations.jsonl"])
def test_what_a_report_shows_and_was_deleted_is_told(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], artifact: str
) -> None:
    folder = copied(whole, tmp_path / "copy")
    (file,) = folder.glob(f"{FOLDER}/{artifact}")
    file.unlink()
    run(folder)
    assert f"{artifact} is gone, which a report shows" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(ConfigError, match=f"{re.escape(artifact)} is gone"):
        run(folder, "stage=report")
    (file.parent / "metrics.json").unlink()
    run(folder)
    assert file.exists() and record(folder) == record(whole)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_report_says_that_the_runs_tokenizer_is_damaged(whole: Path, tmp_path: Path, share: float) -> None:
    folder = copied(whole, tmp_path / "copy")
    (file,) = folder.glob(f"{FOLDER}/model/tokenizer.json")
    flip(file, share)
    run(folder, "stage=report")
    pages = [page.read_text() for page in folder.glob("outputs/reports/**/report.md")]
    assert any("model/tokenizer.json is damaged, not as it was written" in page for page in pages)


def test_a_damaged_model_is_trained_again_where_it_is_needed(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(whole, tmp_path / "copy")
    (weights,) = folder.glob(f"{FOLDER}/model/model.safetensors")
    flip(weights)
    for name in ("metrics.json", "generations.jsonl"):
        (weights.parents[1] / name).unlink()
    run(folder)
    assert "model/model.safetensors is damaged, not as it was written" in " ".join(capsys.readouterr().out.split())
    assert record(folder) == record(whole)


def test_damaged_weights_are_named_wherever_they_would_be_used_again(whole: Path, tmp_path: Path) -> None:
    folder = copied(whole, tmp_path / "copy")
    (weights,) = folder.glob(f"{FOLDER}/model/model.safetensors")
    flip(weights)
    run(folder, "stage=evaluate")  # its completions are graded again without it
    named = r"model/model\.safetensors is damaged, not as it was written: run the command that made it with stage=train"
    with pytest.raises(DamagedError, match=named):
        run(folder, "stage=score", f"model.path={weights.parent}", "task.source=bundled", "output_dir=out")
    (key,) = folder.glob(f"{FOLDER}/generations.json")
    key.unlink()  # so that they are made again, as for another device's precision
    with pytest.raises(DamagedError, match=named):
        run(folder, "stage=evaluate")
    run(folder, "stage=train")
    run(folder)
    assert record(folder) == record(whole)
    assert weights.read_bytes() == next(whole.glob(f"{FOLDER}/model/model.safetensors")).read_bytes()


def test_a_record_beside_completions_that_it_was_not_made_of_is_refused(whole: Path, tmp_path: Path) -> None:
    folder = copied(whole, tmp_path / "copy")
    (stored,) = folder.glob(f"{FOLDER}/generations.jsonl")
    stored.write_text(stored.read_text().replace('"correct": false', '"correct": true'))
    (stored.parent / "hashes.json").unlink()  # as if both came from elsewhere
    with pytest.raises(ValueError, match=r"metrics\.json and .*generations\.jsonl do not belong together"):
        run(folder, "stage=report")
    run(folder, "stage=evaluate")
    run(folder, "stage=report")


@pytest.mark.parametrize(
    ("killed_at", "times", "damaged"),
    [
        (rf"{RUN}/[^/]+/seed0/checkpoints/last\.ckpt$", 3, f"{FOLDER}/checkpoints/last.ckpt"),
        (rf"{RUN}/[^/]+/seed0/generations\.partial\.jsonl$", 2, f"{FOLDER}/generations.partial.jsonl"),
    ],
    ids=["checkpoint", "partial completions"],
)
def test_what_a_killed_run_goes_on_from_is_checked_first(
    whole: Path, tmp_path: Path, killed_at: str, times: int, damaged: str
) -> None:
    commands.run(SMALL, tmp_path, prepare=commands.Kill(killed_at, times).watch)
    (file,) = tmp_path.glob(damaged)
    flip(file)
    assert "damaged" in finish(tmp_path)
    assert record(tmp_path) == record(whole)


# -- a full disk ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SmallDisk:
    """A file system in memory at `folder`, for one process: what it leaves there is copied to `copy` as it ends."""

    folder: Path
    kilobytes: int
    copy: Path

    def mount(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        user, group = os.getuid(), os.getgid()
        done = libc.unshare(CLONE_NEWUSER | CLONE_NEWNS)
        assert done == 0, os.strerror(ctypes.get_errno())
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
        self.folder.mkdir()
        done = libc.mount(b"tmpfs", os.fsencode(self.folder), b"tmpfs", 0, f"size={self.kilobytes}k".encode())
        assert done == 0, os.strerror(ctypes.get_errno())
        original = cli.main

        def main(arguments: list[str]) -> int:
            try:
                return original(arguments)
            finally:
                shutil.copytree(self.folder, self.copy)

        cli.main = main  # type: ignore[assignment]


CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
NAMESPACES = (
    shutil.which("unshare") is not None
    and subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode == 0
)


@pytest.mark.skipif(not NAMESPACES, reason="this machine lets nobody make namespaces")
@pytest.mark.parametrize(
    ("kilobytes", "path"),
    [(60, r"outputs/scores/[\w-]+/0000\d\.parquet"), (3000, rf"{RUN}/[\w-]+/seed0/checkpoints/last\.ckpt")],
    ids=["scores", "checkpoint"],
)
def test_a_full_disk_is_named_by_its_path_and_leaves_nothing_half_written(
    whole: Path, tmp_path: Path, kilobytes: int, path: str
) -> None:
    disk = SmallDisk(tmp_path / "outputs", kilobytes, tmp_path / "copy")
    done = commands.run(SMALL, tmp_path, prepare=disk.mount)
    assert done.returncode == 1
    assert re.search(rf"^error: .*No space left on device: '{path}'$", done.stderr, re.MULTILINE), done.stderr
    assert "Traceback" not in done.stderr
    assert not list(disk.copy.rglob("*.tmp"))
    shutil.rmtree(disk.folder)
    disk.copy.rename(disk.folder)  # where there is room again, the same command goes on
    finish(tmp_path)
    assert record(tmp_path) == record(whole)
