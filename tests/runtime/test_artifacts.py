"""Files written whole or not at all, hashes, and locks between processes."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import platform
import re
import subprocess
import time
from pathlib import Path

import pytest

from xtf.runtime import artifacts
from xtf.runtime.artifacts import (
    DamagedError,
    check,
    check_model,
    git_commit,
    intact,
    locked,
    naming,
    read_entry,
    read_json,
    seal,
    sha256,
    temporary_beside,
    with_digest,
    write_atomic,
    write_json,
)


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


# -- what is sealed ---------------------------------------------------------------------------------------------------


def test_damage_to_a_sealed_file_is_found_and_named_with_the_remedy(tmp_path):
    target = tmp_path / "record.json"
    write_json(target, {"a": 1}, sealed=True)
    assert read_json(target, "x") == {"a": 1} and intact(target)
    target.write_text(target.read_text().replace("1", "3"))
    with pytest.raises(DamagedError, match=r"record\.json is damaged, not as it was written: make it again"):
        read_json(target, "make it again")
    assert not intact(target)


def test_damage_within_a_sealed_folder_is_named_with_its_file(tmp_path, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "weights"):
        (folder / name).write_text(name)
    seal(folder)
    assert intact(folder)
    (folder / "notes").write_text("mine")  # what the user adds is the user's
    assert intact(folder)
    (folder / "weights").unlink()
    assert not intact(folder)
    (folder / "weights").write_text("Weights")
    assert not intact(folder)
    said = " ".join(capsys.readouterr().out.split())
    assert "model/weights is missing: it is made again" in said
    assert "model/weights is damaged, not as it was written: it is made again" in said


def test_a_kill_between_the_table_and_the_file_is_no_damage(tmp_path, monkeypatch):
    target = tmp_path / "record.json"
    write_json(target, {"a": 1}, sealed=True)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(Path, "replace", _die_for("record.json", Path.replace))
        write_json(target, {"a": 2}, sealed=True)
    assert read_json(target, "x") == {"a": 1}
    write_json(target, {"a": 3}, sealed=True)
    assert read_json(target, "x") == {"a": 3}


def _die_for(name, replace):
    def replaced(self, target):
        if target.name == name:
            raise RuntimeError("killed")
        return replace(self, target)

    return replaced


def test_files_of_earlier_versions_are_taken_as_they_are_and_that_is_said_once(tmp_path, capsys):
    artifacts._say_unsealed.cache_clear()
    for name in ("a", "b"):
        (tmp_path / name).write_text("{}")
        check(tmp_path / name, "x")
        check(tmp_path / name, "x")
    assert capsys.readouterr().out.count("no stored hash") == 1


def test_a_damaged_table_of_hashes_is_named(tmp_path, capsys):
    write_json(tmp_path / "record.json", {}, sealed=True)
    table = (tmp_path / "hashes.json").read_text()
    hash_of_it = json.loads(table)["record.json"][-1]
    flipped = table.replace(hash_of_it, "0123" + hash_of_it[4:])  # damage to the file, it would seem
    for content in ("{", "[]", '{"record.json": 3}', flipped, table.replace("digest", "digesu")):
        (tmp_path / "hashes.json").write_text(content)
        with pytest.raises(DamagedError, match=r"hashes\.json is damaged.*delete it"):
            check(tmp_path / "record.json", "x")
        check_model(tmp_path / "model")  # of somebody else's, perhaps
        assert re.search(r"model is not checked, for .*hashes\.json is damaged", capsys.readouterr().out)
    (tmp_path / "hashes.json").unlink()
    check(tmp_path / "record.json", "x")


def test_a_file_that_is_no_json_is_one_sentence(tmp_path):
    for content in (b"", b"{", b"\xff", b"[" * 100_000):
        (tmp_path / "x.json").write_bytes(content)
        with pytest.raises(DamagedError, match=r"x\.json is damaged: it is no JSON"):
            read_json(tmp_path / "x.json")


def test_what_killed_runs_left_half_written_is_deleted(tmp_path):
    folder = tmp_path / "run"
    (folder / ".model.tmp").mkdir(parents=True)
    (folder / ".model.tmp" / "weights").touch()
    (folder / ".record.json.77.tmp").touch()
    with locked(folder, print):
        assert [path.name for path in folder.iterdir()] == [".lock"]
    gone, running = (f".record.json.{platform.node()}-{number}.tmp" for number in (2**22 + 1, os.getppid()))
    for name in (gone, running):
        (folder / name).touch()
    write_json(folder / "record.json", {})
    assert {path.name for path in folder.iterdir()} == {".lock", "record.json", running}


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError("Error writing bytes to file. Detail: [errno 28] No space left on device"),  # Arrow
        RuntimeError("[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file data/0"),
    ],
)
def test_a_full_disk_is_told_with_the_path(tmp_path, error):
    def full(path):
        raise error

    with pytest.raises(OSError, match=r"No space left on device: .*/record\.json"):
        write_atomic(tmp_path / "record.json", full)


def test_of_a_full_disk_the_path_nearest_to_the_write_is_told(tmp_path):
    told = pytest.raises(OSError, match=r"No space left on device: .*/inner'$")
    with told, naming(tmp_path), naming(tmp_path / "inner"):
        raise OSError(errno.ENOSPC, "No space left on device")


# -- entries with a digest of their own -------------------------------------------------------------------------------


def test_any_flipped_bit_of_an_entry_is_found_or_changes_nothing(tmp_path):
    entry, file = {"type": "ValueError", "error": "no r\u00f6ws", "at": [1, 2.5, None]}, tmp_path / "error.json"
    write_json(file, with_digest(entry))
    whole, harmless = file.read_bytes(), 0
    for place in range(len(whole)):
        for bit in (1, 4, 128):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            try:
                found = read_entry(file, "make it again", type=str, error=str)
            except DamagedError as error:
                assert str(file) in str(error) and "make it again" in str(error)
            else:
                assert {key: found[key] for key in entry} == entry
                harmless += 1
    assert harmless < 60  # white space, and the name of the digest


@pytest.mark.parametrize("content", ["{}", "[]", "3", '{"type": 3, "error": "x"}'])
def test_an_entry_of_another_program_is_one_sentence(tmp_path, content):
    (tmp_path / "error.json").write_text(content)
    with pytest.raises(DamagedError, match=r"error\.json is damaged, or another program's: it does not say type.*; x"):
        read_entry(tmp_path / "error.json", "x", type=str, error=str)


def test_entries_of_earlier_versions_have_no_digest(tmp_path):
    (tmp_path / "error.json").write_text(json.dumps({"type": "OSError"}))
    assert read_entry(tmp_path / "error.json", "x", type=str) == {"type": "OSError"}


def test_the_folder_that_a_killed_process_left_half_written_is_deleted(tmp_path):
    stale = temporary_beside(tmp_path / "hf").with_name(f".hf.{platform.node()}-{2**22 + 1}.tmp")
    stale.mkdir()
    (stale / "train.parquet").touch()
    assert not temporary_beside(tmp_path / "hf").exists()
    assert list(tmp_path.iterdir()) == []
