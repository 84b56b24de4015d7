"""Files written whole or not at all, hashes, and locks between processes."""

from __future__ import annotations

import multiprocessing
import subprocess
import time

import pytest

from xtf.runtime import artifacts
from xtf.runtime.artifacts import git_commit, locked, read_json, sha256, write_atomic, write_json


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(tmp_path):
    target = tmp_path / "record.json"
    write_json(target, {"a": 1})

    def half(path):
        path.write_text('{"a": ')
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomic(target, half)
    assert read_json(target) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]


def test_a_record_with_nan_is_refused_because_it_is_not_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "record.json", {"loss": float("nan")})
    assert not (tmp_path / "record.json").exists()


def test_the_hash_of_a_folder_sees_names_and_contents_but_not_hidden_files(tmp_path):
    (tmp_path / "a").write_text("1")
    first = sha256(tmp_path)
    (tmp_path / ".lock").write_text("")
    assert sha256(tmp_path) == first
    (tmp_path / "a").write_text("2")
    second = sha256(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert len({first, second, sha256(tmp_path)}) == 3


def _hold(folder):
    with locked(folder, print):
        (folder / "entered").touch()
        time.sleep(60)


def test_a_second_process_waits_for_the_first_and_a_killed_one_frees_the_folder(tmp_path):
    context, said = multiprocessing.get_context("spawn"), []
    holder = context.Process(target=_hold, args=(tmp_path,), daemon=True)
    holder.start()
    while not (tmp_path / "entered").exists():
        assert holder.is_alive()
        time.sleep(0.01)

    def kill_when_waited_for(message):
        said.append(message)
        holder.kill()

    with locked(tmp_path, kill_when_waited_for):
        pass
    holder.join(30)
    assert len(said) == 1
    assert "another run is writing" in said[0]


def test_a_program_in_an_environment_inside_a_foreign_checkout_has_no_commit(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    installed = tmp_path / ".venv/lib/xtf"
    installed.mkdir(parents=True)
    monkeypatch.setattr(artifacts, "HOME", installed)
    assert git_commit() is None
