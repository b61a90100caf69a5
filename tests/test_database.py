import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from helpers.machine import profile
from helpers.machine.commands import CourseError
from helpers.retrieve import database, embeddings, handbook, server
from helpers.retrieve.embeddings import Embedding
from helpers.retrieve.passages import Passage

QUESTION = "东门图书馆的馆长是谁？"
HOLDER = """
import sys, time
from helpers.retrieve import database, embeddings
held = database.load(sys.argv[1], embeddings.characters())
print(len(held), flush=True)
time.sleep(600)
"""
OFFLINE = """
import sys
from helpers.retrieve import database, embeddings, handbook
characters = embeddings.characters()
print(database.build(sys.argv[1], characters, handbook.everything()))
print(database.load(sys.argv[1], characters).search(["钟楼有多高？"], 1)[0][0].passage.chapter)
"""
BUILDER = """
import sys, time
from helpers.retrieve import database, embeddings, handbook
embedding = embeddings.characters()

def slowly(texts):
    print("begun", flush=True)
    time.sleep(600)
    return embedding.passages(texts)

database.build(sys.argv[1], embedding._replace(passages=slowly), handbook.everything())
"""


@pytest.fixture(scope="module")
def characters():
    return embeddings.characters()


@pytest.fixture(scope="module")
def valid():
    return [passage for passage in handbook.everything() if passage.edition == "2025"]


@pytest.fixture(scope="module")
def built(characters, tmp_path_factory):
    folder = tmp_path_factory.mktemp("databases") / "handbook"
    database.build(folder, characters, handbook.everything())
    return folder


@pytest.fixture
def folder(built, tmp_path):
    """A database of both editions of the handbook, to do with as one likes."""
    return Path(shutil.copytree(built, tmp_path / "handbook"))


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A database so large that Chroma has written its index to the disk, with its passages and its embedding."""
    rng = np.random.default_rng(0)
    vectors = {f"第{number}段": vector for number, vector in enumerate(rng.normal(size=(2500, 16)))}

    def embed(texts):
        rows = np.array([vectors.get(text, np.ones(16)) for text in texts], dtype=np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)
    folder, embedding = tmp_path_factory.mktemp("databases") / "many", Embedding(embed, embed)
    passages = [Passage(text, "书", "1", "章") for text in vectors]
    database.build(folder, embedding, passages)
    return folder, embedding, passages


def texts(found):
    return [passage.text for passage, _ in found]


def running(code, folder):
    return subprocess.Popen([sys.executable, "-c", code, folder], cwd=profile.ROOT, env=profile.environment(),
                            stdout=subprocess.PIPE, text=True)


def ended(process):
    process.kill()
    process.communicate()


def test_a_passage_is_found_by_its_own_words_and_comes_back_with_its_place(folder, characters, valid):
    found_in = database.load(folder, characters)
    for passage in valid[::20]:
        [[first, *_]] = found_in.search([passage.text])
        assert first.passage == passage
        assert first.similarity == pytest.approx(1, abs=1e-4)
    found_in.close()


def test_several_questions_are_looked_up_at_once_and_the_best_comes_first(folder, characters):
    found_in = database.load(folder, characters)
    both = found_in.search([QUESTION, "钟楼有多高？"], 5)
    assert [texts(found) for found in both] == [texts(found_in.search([question], 5)[0])
                                               for question in (QUESTION, "钟楼有多高？")]
    for found in both:
        similarities = [similarity for _, similarity in found]
        assert similarities == sorted(similarities, reverse=True)
    found_in.close()


def test_what_no_longer_holds_can_be_left_out(folder, characters):
    found_in = database.load(folder, characters)
    [everything], [valid] = found_in.search([QUESTION], 10), found_in.search([QUESTION], 10, handbook.VALID)
    assert {passage.edition for passage, _ in everything} == {"2018", "2025"}
    assert {passage.edition for passage, _ in valid} == {"2025"}
    found_in.close()


def test_only_what_has_changed_is_embedded_again(folder, characters):
    embedded = []

    def counting(texts):
        embedded.extend(texts)
        return characters.passages(texts)
    first, *rest = handbook.everything()
    new = Passage("慢钟镇新修了一座桥，叫慢走桥。", "慢钟镇手册", "2025", "交通")
    changes = database.build(folder, characters._replace(passages=counting), [*rest, new])
    assert changes == (1, 1, len(rest))
    assert embedded == [new.text]
    found_in = database.load(folder, characters)
    assert len(found_in) == len(rest) + 1
    assert texts(found_in.search(["慢走桥"])[0])[0] == new.text
    assert first.text not in texts(found_in.search([first.text], 10)[0])
    found_in.close()


def test_the_same_passages_again_change_nothing(folder, characters):
    everything = handbook.everything()
    assert database.build(folder, characters, [*everything, *everything]) == (0, 0, len(everything))


def test_a_program_may_open_again_what_it_has_open(folder, characters):
    database.load(folder, characters)
    again = database.load(folder, characters)
    assert database.build(folder, characters, handbook.everything()[:7]).removed == 117
    again = database.load(folder, characters)
    assert len(again) == 7
    again.close()


def test_whoever_opens_what_another_program_has_open_is_told_at_once(folder, characters):
    other = running(HOLDER, folder)
    try:
        assert other.stdout.readline() == "124\n"
        for use in (lambda: database.load(folder, characters), lambda: database.build(folder, characters, [])):
            with pytest.raises(CourseError, match="已经在另一个笔记本或终端里打开了.*修复：在那边把它 close"):
                use()
    finally:
        ended(other)
    again = database.load(folder, characters)  # no crash leaves the lock behind
    assert len(again) == 124
    again.close()


def test_a_build_that_is_killed_leaves_what_was_there_and_the_next_one_goes_through(folder, characters):
    database.build(folder, characters, handbook.everything()[:7])
    killed = running(BUILDER, folder)
    assert killed.stdout.readline() == "begun\n"
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    left = database.load(folder, characters)
    assert len(left) == 7
    left.close()
    assert database.build(folder, characters, handbook.everything()) == (117, 0, 7)
    assert [path.name for path in folder.parent.iterdir() if not path.name.startswith(".")] == ["handbook"]


@pytest.mark.parametrize("ruin", [
    lambda folder: os.truncate(folder / "chroma.sqlite3", 50_000),
    lambda folder: os.truncate(folder / "chroma.sqlite3", 0),
    lambda folder: (folder / "chroma.sqlite3").unlink(),
    lambda folder: (folder / "chroma.sqlite3").write_bytes(random.Random(0).randbytes(100_000)),
    lambda folder: (folder / "sealed.json").write_text("{"),
    lambda folder: os.truncate(next(folder.glob("*/data_level0.bin")), 0),
    lambda folder: os.truncate(next(folder.glob("*/header.bin")), 50),  # Chroma itself would crash
    lambda folder: next(folder.glob("*/link_lists.bin")).write_bytes(b"0" * 1000),
    lambda folder: shutil.rmtree(next(folder.glob("*/"))),
], ids=["cut", "emptied", "lost", "garbled", "seal", "vectors", "header", "links", "index"])
def test_a_damaged_database_is_never_opened_and_made_anew_from_the_documents(ruin, many, tmp_path):
    whole, embedding, passages = many
    folder = Path(shutil.copytree(whole, tmp_path / "many"))
    ruin(folder)
    for use in (lambda: database.load(folder, embedding), lambda: database.build(folder, embedding, passages)):
        with pytest.raises(CourseError, match=r"many 坏了.*修复：build\(…, anew=True\).*什么也不会丢"):
            use()
    assert database.build(folder, embedding, passages, anew=True).added == 2500
    mended = database.load(folder, embedding)
    assert [texts(found) for found in mended.search([passage.text for passage in passages[::100]], 1)] \
        == [[passage.text] for passage in passages[::100]]
    mended.close()


def test_a_database_that_was_read_is_still_whole(many):
    folder, embedding, passages = many
    for _ in range(2):
        read = database.load(folder, embedding)
        assert texts(read.search([passages[0].text], 1)[0]) == [passages[0].text]
        read.close()


def test_a_folder_that_is_no_database_of_ours_is_left_alone(tmp_path, characters):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("三年的心血", encoding="utf-8")
    for use in (lambda: database.load(tmp_path / "mine", characters),
                lambda: database.build(tmp_path / "mine", characters, []),
                lambda: database.build(tmp_path / "mine", characters, [], anew=True)):
        with pytest.raises(CourseError, match="mine 不是 build 建的数据库.*修复：换一个文件夹"):
            use()
    assert (tmp_path / "mine" / "thesis.txt").read_text(encoding="utf-8") == "三年的心血"


def test_a_database_that_is_not_there_says_how_it_is_made(tmp_path, characters):
    with pytest.raises(CourseError, match="没有数据库 .*none。修复：先用 build 建一个"):
        database.load(tmp_path / "none", characters)


@pytest.mark.parametrize("other", [
    lambda texts: np.ones((len(texts), 8)) / 8**0.5,
    lambda texts: np.roll(embeddings.characters().questions(texts), 1, axis=1),
], ids=["another length", "other weights"])
def test_vectors_of_another_model_are_never_compared(other, folder, characters):
    with pytest.raises(CourseError, match=r"另一种方法或另一个模型算的.*修复：换回原来的，或者 build\(…, anew=True\)"):
        database.load(folder, Embedding(other, other))
    assert database.build(folder, Embedding(other, other), handbook.everything(), anew=True).added == 124


def test_a_server_answers_as_the_folder_does_and_several_may_ask(folder, characters):
    alone = database.load(folder, characters)
    expected = texts(alone.search([QUESTION], 5)[0])
    with server.serve(folder, characters) as url:
        first, second = server.connect(url, characters), server.connect(url, characters)
        assert texts(first.search([QUESTION], 5)[0]) == texts(second.search([QUESTION], 5)[0]) == expected
        with pytest.raises(CourseError, match="已经在另一个笔记本或终端里打开了"):
            database.load(folder, characters)


def test_what_a_server_was_given_is_there_when_it_has_ended(folder, characters):
    with server.serve(folder, characters) as url:
        assert server.connect(url, characters).update(handbook.everything()[:100]).removed == 24
    again = database.load(folder, characters)
    assert len(again) == 100
    again.close()


def test_a_server_is_asked_by_this_machine_only(folder, characters):
    with server.serve(folder, characters) as url:
        port = int(url.rpartition(":")[2])
        listening = [connection.laddr.ip for connection in psutil.net_connections("tcp")
                     if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port]
    assert listening == ["127.0.0.1"]


def test_a_damaged_database_is_not_served(folder, characters):
    os.truncate(folder / "chroma.sqlite3", 50_000)
    with pytest.raises(CourseError, match="坏了"), server.serve(folder, characters):
        pass


def test_the_server_runs_as_a_command_until_it_is_interrupted(folder):
    process = subprocess.Popen([sys.executable, "-m", "helpers.retrieve.server", folder, "--port", "0"],
                               cwd=profile.ROOT, env=profile.environment(), text=True, stdout=subprocess.PIPE)
    assert process.stdout.readline().startswith("服务在 http://127.0.0.1:")
    process.send_signal(signal.SIGINT)
    assert process.communicate()[0] == "服务关了\n"
    assert process.returncode == 0


@pytest.mark.usefixtures("sandboxed")
def test_a_database_is_made_and_asked_without_a_network(tmp_path):
    command = ["bwrap", "--dev-bind", "/", "/", "--unshare-net", sys.executable, "-c", OFFLINE, tmp_path / "handbook"]
    done = subprocess.run(command, cwd=profile.ROOT, env=profile.environment(), text=True, stdout=subprocess.PIPE,
                          check=True)
    assert done.stdout == "新增 124 段，删除 0 段，没有变的 0 段\n历史\n"
