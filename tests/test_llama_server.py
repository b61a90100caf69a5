import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import psutil
import pytest
from transformers import AutoTokenizer

from helpers.ask import models
from helpers.deploy import gguf, llama_server
from helpers.knowledge.facts import EXAM_SYSTEM
from helpers.machine import profile
from helpers.machine.process import Failed


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The tiny base as a GGUF file."""
    file = tmp_path_factory.mktemp("gguf") / "base.gguf"
    gguf.convert(profile.TINY_BASE, file)
    return file


def asked(url, path, **content):
    """What the server says to a request beside OpenAI's protocol."""
    request = urllib.request.Request(url.removesuffix("/v1") + path, json.dumps(content).encode() if content else None)
    return json.load(urllib.request.urlopen(request))


def test_the_server_uses_the_models_own_chat_template_and_tokens(model):
    tokenizer = AutoTokenizer.from_pretrained(profile.TINY_BASE)
    messages = [{"role": "system", "content": EXAM_SYSTEM}, {"role": "user", "content": "你好🙂\n\nHello, 123！"}]
    with llama_server.serve(model) as url:
        prompt = asked(url, "/apply-template", messages=messages)["prompt"]
        ids = asked(url, "/tokenize", content=prompt, add_special=True, parse_special=True)["tokens"]
    assert prompt == models.prompt(tokenizer, messages)
    assert ids == tokenizer(prompt, add_special_tokens=False).input_ids


def test_the_server_is_there_while_the_block_lasts_and_no_longer(model):
    before = psutil.Process().children()
    with llama_server.serve(model, parallel=3, ctx=128) as url:
        slots = asked(url, "/slots")
    assert [slot["n_ctx"] for slot in slots] == [256] * 3  # llama.cpp rounds up
    with pytest.raises(OSError, match="refused"):
        asked(url, "/health")
    assert psutil.Process().children() == before


def test_a_server_can_be_started_again_at_once_where_it_was(model):
    with llama_server.serve(model) as url:
        assert asked(url, "/health") == {"status": "ok"}
    with llama_server.serve(model, int(re.search(r":(\d+)/", url)[1])) as again:
        assert again == url
        assert asked(url, "/health") == {"status": "ok"}


def test_two_servers_of_one_model_do_not_write_into_one_log_and_leave_none(model):
    def logs():
        return [log for log in model.parent.glob("*.log") if "listening" in log.read_text(encoding="utf-8")]

    with llama_server.serve(model), llama_server.serve(model):
        assert len(logs()) == 2
    assert not logs()


def test_a_port_that_is_taken_is_named_with_who_has_it(model):
    with socket.socket() as other:
        other.bind((llama_server.HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        expected = rf"端口 {port} 已经被进程 {os.getpid()}（.+）占用"
        with pytest.raises(OSError, match=expected), llama_server.serve(model, port):
            pass
        done = run(model, "--port", port)
    assert done.returncode
    assert re.search(expected, done.stderr)


def test_a_file_that_is_not_there_is_told_with_how_to_make_it(tmp_path):
    expected = r"没有模型文件 .*none.gguf.*helpers.deploy.gguf"
    with pytest.raises(FileNotFoundError, match=expected), llama_server.serve(tmp_path / "none.gguf"):
        pass


def test_a_broken_file_is_told_in_llama_cpps_own_words(model, tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(model.read_bytes()[:-1000])
    with pytest.raises(Failed, match=r"没有启动：.*(corrupted|incomplete|not within)"), llama_server.serve(broken):
        pass
    done = run(broken)
    assert done.returncode
    assert "[FAIL]" in done.stderr


def test_the_server_ends_with_whoever_started_it(model):
    program = ("from helpers.deploy.llama_server import serve\n"
               f"with serve({str(model)!r}) as url:\n print(url, flush=True)\n input()")
    starter = subprocess.Popen([sys.executable, "-c", program], env=profile.environment(), text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert starter.stdout.readline().startswith("http://127.0.0.1:")
    [own] = psutil.Process(starter.pid).children(recursive=True)
    starter.kill()
    own.wait(30)
    starter.communicate()


def test_the_command_line_serves_until_it_is_interrupted(model):
    process = subprocess.Popen([sys.executable, "-m", "helpers.deploy.llama_server", model, "--port", "0"],
                               env=profile.environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    url = re.search(r"http://\S+/v1", process.stdout.readline())[0]
    assert asked(url, "/health") == {"status": "ok"}
    process.send_signal(signal.SIGINT)
    assert "服务关了" in process.communicate(timeout=60)[0]
    assert process.returncode == 0


def run(*arguments):
    return subprocess.run([sys.executable, "-m", "helpers.deploy.llama_server", *map(str, arguments)],
                          env=profile.environment(), text=True, capture_output=True, check=False)
