import subprocess

import pytest

from helpers.machine.commands import CourseError
from helpers.machine.files import locked, replaced_folder


def test_a_folder_appears_when_it_is_whole_and_a_former_one_stays_until_then(tmp_path):
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(FileNotFoundError), replaced_folder(folder) as new:
        (new / "new" / "missing").touch()
    assert [path.name for path in folder.iterdir()] == ["old"]
    with replaced_folder(folder) as new:
        (new / "new").touch()
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_folder_whose_successor_cannot_take_its_place_stays(tmp_path):
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(FileNotFoundError), replaced_folder(folder) as new:
        new.rmdir()
    assert [path.name for path in folder.iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_folder_that_a_kill_left_under_its_former_name_is_put_back(tmp_path):
    former = tmp_path / "made.former"
    former.mkdir()
    (former / "old").touch()
    with pytest.raises(KeyboardInterrupt), replaced_folder(tmp_path / "made"):
        raise KeyboardInterrupt
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_lock_keeps_others_away_until_its_block_ends(tmp_path):
    with locked(tmp_path / "lock", "有人在用"), pytest.raises(CourseError, match="有人在用"), \
            locked(tmp_path / "lock", "有人在用"):
        pass
    with locked(tmp_path / "lock", "有人在用"):
        pass


def test_a_lock_lasts_as_long_as_a_program_that_was_given_its_file(tmp_path):
    with locked(tmp_path / "lock", "有人在用") as lock:
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[lock.fileno()])
    with pytest.raises(CourseError, match="有人在用"), locked(tmp_path / "lock", "有人在用"):
        pass
    child.communicate()
    with locked(tmp_path / "lock", "有人在用"):
        pass
