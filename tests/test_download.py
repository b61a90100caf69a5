import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from helpers.machine import download, files, profile
from helpers.machine.commands import CourseError
from tests import hub

NAME = "author/tiny-base"
WEIGHTS = profile.TINY_BASE / "model.safetensors"
CHUNK = 10 * 2**20  # huggingface_hub writes so many bytes at a time
SECONDS = 60


@pytest.fixture
def server():
    with hub.serving(NAME, profile.TINY_BASE) as serving:
        yield serving


@pytest.fixture
def command(server, tmp_path):
    """Runs the command against the server, as a student does."""
    def start(*arguments, name=NAME, path=""):
        environment = profile.environment() | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"),
                                               "HOME": str(tmp_path / "home")}
        environment["PATH"] = os.pathsep.join(filter(None, [str(path), "/usr/bin", "/bin"]))  # no client but ours
        return subprocess.Popen([sys.executable, "-m", "helpers.machine.download", name, "--into", tmp_path / "base",
                                 *arguments], cwd=profile.ROOT, env=environment, text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, start_new_session=True, preexec_fn=deaf_to_nothing)
    return start


def deaf_to_nothing():
    """A shell lets what it starts in the background ignore Ctrl-C; the command shall hear it nevertheless."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def ended(process):
    """The exit code of a program, and what it said."""
    out, err = process.communicate(timeout=SECONDS)
    return process.returncode, out, err


def same(folder):
    return all((folder / path.name).read_bytes() == path.read_bytes() for path in profile.TINY_BASE.iterdir())


def wait_for(condition):
    end = time.time() + SECONDS
    while not condition():
        assert time.time() < end
        time.sleep(0.05)


def test_a_model_comes_whole_after_its_size_was_told(command, server, tmp_path):
    code, out, err = ended(command())
    assert code == 0, err
    told, client, done, use = out.splitlines()[:2] + out.splitlines()[-2:]
    assert re.fullmatch(rf"\[OK\]   {NAME}（.*{server.url}）：一共 0.02 GB；磁盘还剩 [\d.]+ GB", told)
    assert client.split()[:4] == [f"HF_ENDPOINT={server.url}", "hf", "download", NAME]
    folder = tmp_path / "base" / "tiny-base"
    assert done == f"[OK]   下载完了，而且完整：{folder}"
    assert f"COURSE_BASE_MODEL={folder} make lab" in use
    assert same(folder)
    assert not (tmp_path / "base" / "tiny-base.partial").exists()


def test_what_is_downloaded_is_taken_as_the_base(command, tmp_path, monkeypatch):
    *_, use = ended(command())[1].splitlines()
    variable, _, value = shlex.split(use.partition("：")[2])[0].partition("=")
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("COURSE_PROFILE", "cpu")
    assert profile.current().base_model == tmp_path / "base" / "tiny-base"


def test_where_the_usual_base_is_put_the_profile_looks():
    identifier = download.BASES["InternLM2.5-7B-chat"].hf
    assert profile.DOWNLOADED / identifier.split("/")[1] in profile.PLATFORM_MODELS


def test_a_download_that_was_stopped_goes_on_where_it_stopped(command, server, tmp_path):
    server.stalls_after = CHUNK + 2**20
    process = command()
    partial_folder = tmp_path / "base" / "tiny-base.partial"
    wait_for(lambda: any(path.stat().st_size >= CHUNK for path in partial_folder.rglob("*.incomplete")))
    os.killpg(process.pid, signal.SIGINT)  # Ctrl-C
    code, _, err = ended(process)
    assert code == 1
    assert err.splitlines()[-1].startswith("[FAIL] 下载停下了，已经下好的都还在。修复：再运行一次同样的命令")
    assert not (tmp_path / "base" / "tiny-base").exists()

    server.asked.clear()
    server.stalls_after = None
    code, out, err = ended(command())
    assert code == 0, err
    assert "已经下了 0.01 GB" in out
    assert [told for method, path, told in server.asked if method == "GET" and path.endswith(WEIGHTS.name)] == [
        f"bytes={CHUNK}-"]
    assert same(tmp_path / "base" / "tiny-base")


def test_too_little_disk_is_said_before_anything_is_fetched(command, server, tmp_path):
    server.claimed = 10**15
    code, out, err = ended(command())
    assert code == 1
    assert re.match(r"\[FAIL\] 磁盘不够：.*还要下载 \d+.00 GB.*只剩 [\d.]+ GB.*--into", err)
    assert not server.fetched()
    assert not (tmp_path / "base").exists()


def test_a_dry_run_tells_size_and_command_and_fetches_nothing(command, server, tmp_path):
    code, out, err = ended(command("--dry-run"))
    assert (code, err) == (0, "")
    assert "一共 0.02 GB" in out
    assert f"hf download {NAME} --local-dir {tmp_path}/base/tiny-base.partial" in out
    assert not server.fetched()
    assert not (tmp_path / "base").exists()


def test_the_same_weights_in_other_formats_are_neither_counted_nor_fetched(command, server, tmp_path):
    server.folder = shutil.copytree(profile.TINY_BASE, tmp_path / "served")
    (server.folder / "pytorch_model.bin").write_bytes(bytes(2**26))
    code, out, err = ended(command())
    assert code == 0, err
    assert "一共 0.02 GB" in out
    assert "pytorch_model.bin" not in server.fetched()


def test_a_model_without_safetensors_is_refused_before_anything_is_fetched(command, server, tmp_path):
    server.folder = tmp_path / "served"
    server.folder.mkdir()
    (server.folder / "pytorch_model.bin").write_bytes(b"pickle")
    code, _, err = ended(command())
    assert code == 1
    assert f"{NAME} 里没有 .safetensors 的权重" in err
    assert not server.fetched()


def test_a_model_that_is_there_and_whole_is_not_asked_for_again(command, server, tmp_path):
    shutil.copytree(profile.TINY_BASE, tmp_path / "base" / "tiny-base")
    code, out, _ = ended(command())
    assert code == 0
    assert out == f"[OK]   已经有了，而且完整：{tmp_path / 'base' / 'tiny-base'}\n"
    assert not server.asked


def test_a_shard_that_broke_is_fetched_again_and_nothing_else(command, server, tmp_path):
    assert ended(command())[0] == 0
    weights = tmp_path / "base" / "tiny-base" / WEIGHTS.name
    os.truncate(weights, 1000)
    server.asked.clear()
    code, _, err = ended(command())
    assert code == 0, err
    assert server.fetched() == {WEIGHTS.name}
    assert same(weights.parent)


def test_a_model_that_came_damaged_from_its_source_is_not_given_its_name(command, server, tmp_path):
    server.folder = shutil.copytree(profile.TINY_BASE, tmp_path / "served")
    os.truncate(server.folder / WEIGHTS.name, 1000)
    code, _, err = ended(command())
    assert code == 1
    assert "下载结束了，但是还不能用：" in err
    assert "model.safetensors 从开头就读不懂" in err
    assert not (tmp_path / "base" / "tiny-base").exists()


def test_a_model_that_nobody_has_is_told(command):
    code, _, err = ended(command(name="author/nothing"))
    assert code == 1
    assert re.fullmatch(r"\[FAIL\] http\S+ 说 author/nothing 没有这个模型.*修复：.*--from modelscope.*\n", err)


def test_a_server_that_cannot_be_reached_is_told(command, server):
    server.shutdown()
    server.server_close()
    code, _, err = ended(command())
    assert code == 1
    assert err.startswith(f"[FAIL] 连不上 {server.url}。修复：检查网络，或者换一个平台：--from modelscope")


def test_a_second_download_of_the_same_model_waits_for_nobody(command, server, tmp_path):
    with files.locked(tmp_path / "base" / ".tiny-base.lock", "busy"):
        code, _, err = ended(command())
    assert code == 1
    assert "正在另一个窗口里下载" in err


@pytest.mark.parametrize(("name", "said"), [("Qwen", "不认识 Qwen。修复：.*InternLM2.5-7B-chat"), ("../..", "不认识")])
def test_a_name_that_is_none_is_told_with_those_that_are_known(command, name, said):
    code, _, err = ended(command(name=name))
    assert code == 1
    assert re.search(said, err)


def test_modelscope_is_asked_for_the_size_as_its_client_asks(server):
    sizes = download.PLATFORMS["modelscope"].ask(server.url, NAME)
    assert sizes == server.sizes()


def test_what_no_platform_tells_and_nobody_knows_is_not_begun():
    with pytest.raises(CourseError, match="不知道 a/b 有多大.*--from hf"):
        download.download("a/b", "openxlab")


def test_a_client_that_is_not_installed_is_named_with_how_to_install_it(command, tmp_path):
    code, out, err = ended(command("--from", "openxlab", name="internlm2.5-1.8b-chat"))
    assert code == 1
    assert "OpenLMLab/internlm2_5-1_8b-chat（OpenXLab，https://openxlab.org.cn）：一共 3.78 GB" in out
    assert "       openxlab model download --model-repo OpenLMLab/internlm2_5-1_8b-chat --output " in out
    assert "[FAIL] 这台机器没有 OpenXLab 的客户端 openxlab，什么也没有下载。修复：先安装它：" in err
    assert "uv tool install openxlab" in err
    assert not (tmp_path / "base").exists()


def client(folder, name, script):
    """A program of this name that stands in for a client we do not have."""
    program = folder / name
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\nset -e\n{script}\n")
    program.chmod(0o755)


@pytest.mark.parametrize("deeper", ["", "/internlm2_5-1_8b-chat"])
def test_another_platforms_client_is_run_as_documented_and_its_model_is_checked(command, tmp_path, deeper):
    client(tmp_path / "bin", "openxlab", f'[ "$1 $2 $3 $5" = "model download --model-repo --output" ]\n'
                                         f'mkdir -p "$6{deeper}"; cp {profile.TINY_BASE}/* "$6{deeper}"')
    code, out, err = ended(command("--from", "openxlab", name="InternLM2.5-1.8B-chat", path=tmp_path / "bin"))
    assert code == 0, err
    assert same(tmp_path / "base" / "internlm2_5-1_8b-chat")
    assert not (tmp_path / "base" / "internlm2_5-1_8b-chat.partial").exists()


def test_a_client_that_fails_is_told_with_what_to_do(command, tmp_path):
    client(tmp_path / "bin", "openxlab", "echo no network >&2; exit 7")
    code, _, err = ended(command("--from", "openxlab", name="InternLM2.5-1.8B-chat", path=tmp_path / "bin"))
    assert code == 1
    assert err.splitlines()[0] == "no network"
    assert "openxlab 没有下载完（退出码 7），原因在上面。修复：再运行一次同样的命令" in err


def test_without_a_name_the_known_models_are_listed():
    done = subprocess.run([sys.executable, "-m", "helpers.machine.download"], cwd=profile.ROOT, text=True,
                          capture_output=True, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(download.BASES)
    assert done.stdout.startswith("InternLM2.5-7B-chat    约 15.5 GB\n")
