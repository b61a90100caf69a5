import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import psutil
import pytest
from gradio_client import Client
from PIL import Image
from playwright.sync_api import expect

from helpers import cpu
from helpers.ask import models, page
from helpers.knowledge.facts import EXAM_SYSTEM
from helpers.machine import profile
from helpers.machine.profile import Gpu
from helpers.retrieve import database, embeddings, handbook
from helpers.retrieve import page as retrieve_page
from tests import browser

HTML = "<script>alert(1)</script><img src=x onerror=alert(2)> **粗** &lt;i&gt; <iframe src='https://example.com'></iframe>"


@contextmanager
def opened(answerers, questions=()):
    """The page with some answerers, in a browser."""
    blocks = page.build(answerers, questions)
    try:
        with browser.opened(page.serve(blocks, port=0)) as view:
            yield view
    finally:
        blocks.close()


def ask(view, question):
    view.get_by_placeholder("输入问题，回车发送").fill(question)
    view.keyboard.press("Enter")


def answers(view):
    return view.locator(".bot.message .message-content")


def questions(view):
    return view.locator(".user.message .message-content")


def sources(view):
    return view.locator(".thought-group .message-content, .thought")


def echo(messages, temperature, top_p):
    yield f"{[message['content'] for message in messages]} {temperature} {top_p}"


@pytest.fixture(scope="module")
def base():
    return models.load(profile.TINY_BASE)


def test_two_models_answer_a_question_of_the_list_side_by_side_and_nobody_else_is_asked(base):
    question = page.some_questions()[0]
    [expected] = models.ask(*base, [question], system=EXAM_SYSTEM)
    both = {name: page.model_answerer(name, *base) for name in ("微调前", "微调后")}
    with opened(both, page.some_questions()) as view:
        view.get_by_text(question).click()
        expect(view.get_by_placeholder("输入问题")).to_have_value(question)
        view.get_by_role("button", name="发送").click()
        expect(answers(view)).to_have_text([expected, expected])
        assert {url.split("/")[2].split(":")[0] for url in view.asked if not url.startswith("data:")} == {"127.0.0.1"}
        assert "https://" not in re.sub(r"<meta[^>]*>", "", view.request.get(view.url).text().split("gradio_config")[0])


def test_html_from_a_model_or_from_a_student_is_shown_as_text():
    with opened({"模型": lambda *_: iter([HTML])}) as view:
        dialogs = []
        view.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        ask(view, HTML)
        expect(answers(view)).to_have_text([HTML])
        expect(questions(view)).to_have_text([HTML])
        assert view.locator(".message :is(img[src=x], script, iframe)").count() == 0
        assert not dialogs
        assert not [url for url in view.asked if "example.com" in url]


def test_models_are_told_what_was_said_and_not_how_it_is_shown():
    with opened({"模型": echo}) as view:
        ask(view, HTML)
        expect(answers(view)).to_have_text([f"{[EXAM_SYSTEM, HTML]} 0 1"])
        ask(view, "再说一次")
        expect(answers(view).last).to_have_text(f"{[EXAM_SYSTEM, HTML, f'{[EXAM_SYSTEM, HTML]} 0 1', '再说一次']} 0 1")


def test_system_prompt_and_sliders_reach_the_models():
    with opened({"模型": echo}) as view:
        view.get_by_label("系统提示").fill("")
        view.get_by_label("number input for temperature").fill("1.5")
        view.get_by_label("number input for top-p").fill("0.5")
        ask(view, "你好")
        expect(answers(view)).to_have_text(["['你好'] 1.5 0.5"])


def test_both_answers_are_seen_while_they_are_written():
    gate = threading.Event()

    def slow(*_):
        yield "开头"
        gate.wait(30)
        yield "开头和结尾"

    with opened({"左": slow, "右": slow}) as view:
        ask(view, "你好")
        expect(answers(view)).to_have_text(["开头", "开头"])
        gate.set()
        expect(answers(view)).to_have_text(["开头和结尾", "开头和结尾"])


def test_stopping_ends_the_writing_and_one_can_ask_on():
    ended = threading.Event()

    def endless(messages, *_):
        try:
            while "停不下来" in messages[-1]["content"]:
                time.sleep(0.05)
                yield "还在写"
            yield "写完了"
        finally:
            ended.set()

    with opened({"模型": endless}) as view:
        ask(view, "停不下来")
        expect(answers(view)).to_have_text(["还在写"])
        assert not ended.is_set()
        view.get_by_role("button", name="停下").click()
        assert ended.wait(30)
        ask(view, "你好")
        while questions(view).count() == 1:  # the page takes a moment to know that it has stopped
            view.keyboard.press("Enter")
            view.wait_for_timeout(200)
        expect(answers(view).last).to_have_text("写完了")


def test_beginning_again_forgets_everything():
    with opened({"左": echo, "右": echo}) as view:
        ask(view, "第一句")
        expect(answers(view)).to_have_count(2)
        view.get_by_role("button", name="重来").click()
        expect(answers(view)).to_have_count(0)
        ask(view, "第二句")
        expect(answers(view)).to_have_text([f"{[EXAM_SYSTEM, '第二句']} 0 1"] * 2)


def test_an_answerer_that_fails_says_so_and_leaves_the_other_alone():
    def failing(*_):
        yield "一半"
        raise RuntimeError(f"服务器没有开 {HTML}")

    with opened({"坏的": failing, "好的": echo}) as view:
        ask(view, "你好")
        expect(view.get_by_text(f"坏的：服务器没有开 {HTML}")).to_be_visible()
        expect(answers(view)).to_have_text(["一半", f"{[EXAM_SYSTEM, '你好']} 0 1"])


def test_an_empty_question_is_not_asked():
    with opened({"模型": echo}) as view:
        ask(view, "  ")
        expect(view.get_by_placeholder("输入问题")).to_have_value("")
        view.wait_for_timeout(500)
        assert questions(view).count() == answers(view).count() == 0


def test_sources_stand_below_an_answer_and_the_model_is_never_told_them():
    def sourced(messages, *_):
        yield page.Sourced(f"{[message['content'] for message in messages]}", [HTML, "第二处"])

    with opened({"模型": sourced}) as view:
        ask(view, "你好")
        expect(answers(view).first).to_have_text(f"{[EXAM_SYSTEM, '你好']}")
        expect(sources(view)).to_have_text([f"{HTML}第二处"])
        assert view.locator(".message :is(img[src=x], script, iframe)").count() == 0
        ask(view, "再说一次")
        expect(view.get_by_text(f"{[EXAM_SYSTEM, '你好', str([EXAM_SYSTEM, '你好']), '再说一次']}")).to_be_visible()


def test_a_question_is_looked_up_and_the_passage_that_was_read_is_shown(base, tmp_path):
    embedding = embeddings.characters()
    database.build(tmp_path / "handbook", embedding, handbook.everything())
    found_in = database.load(tmp_path / "handbook", embedding)
    columns = {"只凭记忆": page.model_answerer("只凭记忆", *base), "先查手册": retrieve_page.answerer(*base, found_in)}
    with opened(columns) as view:
        view.get_by_label("系统提示").fill("")
        ask(view, "钟楼是哪一年完工的？")
        expect(view.get_by_text("1761年", exact=True)).to_be_visible()
        expect(sources(view)).to_have_count(1)
        expect(sources(view)).to_contain_text("《慢钟镇手册》2025年版，历史")
        expect(sources(view)).to_contain_text("钟楼立在镇子正中，1761年完工。")
        ask(view, "东门图书馆星期几闭馆？")  # what was asked before does not count
        expect(sources(view).last).to_contain_text("《慢钟镇手册》2025年版，图书馆")
    found_in.close()


def test_a_conversation_that_grew_too_long_is_still_answered(base):
    answer = page.model_answerer("模型", *base)
    turns = [{"role": role, "content": "今天天气很好。" * 5} for _ in range(20) for role in ("user", "assistant")]
    assert list(answer([*turns, {"role": "user", "content": "你好"}], 0, 1))


def test_a_port_that_is_taken_is_named_with_who_has_it():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=rf"端口 {port} 已经被进程 {os.getpid()}（.+）占用.*--port {port + 1}"):
            page.find_port("127.0.0.1", port)


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(OSError, match="不能使用 192.0.2.1:7860"):
        page.find_port("192.0.2.1", 7860)


def test_models_that_would_fill_the_gpu_together_are_loaded_in_4_bits():
    folders, size = [profile.TINY_BASE] * 2, (profile.TINY_BASE / "model.safetensors").stat().st_size / 1e9
    assert cpu  # lets transformers quantize without a GPU
    assert page.options_to_fit(folders, None) == {}
    assert page.options_to_fit(folders, Gpu("", 3 * size, "", True)) == {}
    model, tokenizer = models.load(profile.TINY_BASE, **page.options_to_fit(folders, Gpu("", 2 * size, "", True)))
    assert model.is_loaded_in_4bit
    assert models.ask(model, tokenizer, ["你是谁？"])[0]


def test_the_command_line_serves_this_machine_only_until_it_is_interrupted(base):
    process = subprocess.Popen(
        [sys.executable, "-m", "helpers.ask.page", "--left", profile.TINY_BASE, "--right", profile.TINY_BASE,
         "--port", "0"], cwd=profile.ROOT, env=profile.environment() | {"http_proxy": "http://127.0.0.1:9"},
        text=True, stdout=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    with process:
        try:
            address = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())[0]
            listening = {connection.laddr.ip for connection in psutil.Process(process.pid).net_connections()
                         if connection.status == psutil.CONN_LISTEN}
            assert listening == {"127.0.0.1"}
            _, left, right = Client(address, verbose=False).predict("你是谁？", "", 0, 1, [], [], api_name="/answer")
            assert left[-1]["content"] == right[-1]["content"] == models.ask(*base, ["你是谁？"])[0]
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate()
    assert process.returncode == 0


def test_the_picture_in_the_lesson_is_small():
    path = profile.ROOT / "assets" / "figures" / "chat_page.png"
    assert path.stat().st_size < 300_000
    assert Image.open(path).width >= 1000
