import os
import shutil
import subprocess
import sys

import pytest
import torch

from helpers.machine import profile


def test_without_a_gpu_the_course_runs_on_the_cpu_with_its_own_model(monkeypatch):
    monkeypatch.delenv("COURSE_PROFILE", raising=False)
    monkeypatch.delenv("COURSE_BASE_MODEL", raising=False)
    found = profile.current()
    assert found.name == ("gpu" if torch.cuda.is_available() else "cpu")
    assert (found.base_model / "config.json").exists()


def test_an_unknown_profile_is_refused_by_name(monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "tpu")
    with pytest.raises(profile.ProfileError, match="COURSE_PROFILE=tpu.*cpu 或 gpu"):
        profile.current()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_profile_without_a_gpu_is_refused(monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "gpu")
    with pytest.raises(profile.ProfileError, match="nvidia-smi"):
        profile.current()


@pytest.fixture
def own_model(monkeypatch, tmp_path):
    """A student's own model, which is chosen."""
    folder = shutil.copytree(profile.TINY_BASE, tmp_path / "own")
    monkeypatch.setenv("COURSE_BASE_MODEL", str(folder))
    monkeypatch.setenv("COURSE_PROFILE", "cpu")
    return folder


def test_a_base_model_without_a_model_is_refused(own_model):
    (own_model / "config.json").unlink()
    with pytest.raises(profile.ProfileError, match=f"COURSE_BASE_MODEL={own_model} 不能用：.*config.json"):
        profile.current()


def test_a_base_model_that_is_half_downloaded_is_refused(own_model):
    os.truncate(own_model / "model.safetensors", 10**6)
    with pytest.raises(profile.ProfileError, match="model.safetensors 没有下载完：应该有 .*修复："):
        profile.current()


def test_a_students_own_model_is_taken(own_model):
    assert profile.current().base_model == own_model


def test_of_the_places_where_the_7b_may_be_the_first_with_a_whole_model_is_taken(monkeypatch, tmp_path):
    monkeypatch.delenv("COURSE_BASE_MODEL", raising=False)
    shared, downloaded = (shutil.copytree(profile.TINY_BASE, tmp_path / name) for name in ("shared", "downloaded"))
    monkeypatch.setattr(profile, "PLATFORM_MODELS", (tmp_path / "none", shared, downloaded))
    assert profile._base_model("gpu") == shared
    os.truncate(shared / "model.safetensors", 10**6)
    assert profile._base_model("gpu") == downloaded
    (downloaded / "tokenizer.json").unlink()
    with pytest.raises(profile.ProfileError, match=f"{shared}/model.safetensors 没有下载完"):
        profile._base_model("gpu")


def test_without_the_7b_the_command_that_downloads_it_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("COURSE_BASE_MODEL", raising=False)
    monkeypatch.setattr(profile, "PLATFORM_MODELS", (tmp_path / "none",))
    with pytest.raises(profile.ProfileError, match="没有找到 InternLM2.5-7B-chat.*make base MODEL=InternLM2.5-7B-chat"):
        profile._base_model("gpu")


def test_whatever_the_course_launches_finds_our_python_and_no_hub():
    seen = subprocess.run(
        ["python", "-c", "import os, sys; print(sys.prefix, *map(os.getenv, ('HF_HUB_OFFLINE', 'GOMP_SPINCOUNT')))"],
        env=profile.environment(), capture_output=True, text=True, check=True).stdout
    assert seen.split() == [sys.prefix, "1", "3000"]


def test_something_of_the_course_that_is_missing_is_named_from_its_folder_on():
    with pytest.raises(FileNotFoundError, match=r"缺少 workspace/none：请先运行第 6 课"):
        profile.made_by("第 6 课", profile.ROOT / "workspace" / "none")


def test_something_elsewhere_that_is_missing_is_named_with_its_whole_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"缺少 {tmp_path / 'none'}：请先运行第 6 课"):
        profile.made_by("第 6 课", tmp_path / "none")


@pytest.mark.parametrize("given", ["no_proxy", "NO_PROXY"])
def test_what_the_student_reaches_without_a_proxy_and_our_own_pages_are_reached_so(monkeypatch, given):
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv(given, "lab.example,10.0.0.1")
    program = ("from urllib.request import proxy_bypass\n"
               "print([bool(proxy_bypass(host)) for host in ('lab.example', '10.0.0.1', '127.0.0.1', 'far.example')])")
    seen = subprocess.run(["python", "-c", program], env=profile.environment(), capture_output=True, text=True,
                          check=True).stdout
    assert seen.strip() == "[True, True, True, False]"


@pytest.mark.parametrize("path", [None, ""])
def test_without_a_path_the_systems_programs_are_found_and_nothing_in_the_current_folder(monkeypatch, path):
    monkeypatch.delenv("PATH")
    if path is not None:
        monkeypatch.setenv("PATH", path)
    environment = profile.environment()
    assert "" not in environment["PATH"].split(os.pathsep)
    subprocess.run(["setpriv", "--version"], env=environment, stdout=subprocess.DEVNULL, check=True)


def test_a_bad_override_stops_the_run_before_anything_starts():
    done = subprocess.run([sys.executable, "-m", "helpers.machine.lessons"], cwd=profile.ROOT, text=True,
                          capture_output=True, env={**profile.environment(), "COURSE_PROFILE": "tpu"}, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("[FAIL] COURSE_PROFILE=tpu")


def test_a_limit_found_on_the_tiny_base_holds_for_it(monkeypatch):
    monkeypatch.delenv("COURSE_BASE_MODEL", raising=False)
    monkeypatch.setenv("COURSE_PROFILE", "cpu")
    assert profile.current().tiny
    with pytest.raises(AssertionError), profile.tiny_base_must("别的基座会不同。"):
        assert not profile.current().tiny


def test_another_base_is_told_what_the_limit_means(own_model, capsys):
    assert not profile.current().tiny
    with profile.tiny_base_must("它本来就答得简短。"):
        assert profile.current().tiny
    told = "自测没有过线。这条线是照教学小模型定的，换了基座，不一定是做错了：它本来就答得简短。\n"
    assert capsys.readouterr().out == told
    with profile.tiny_base_must("……"):
        print("自测 1.1：过了")
    assert capsys.readouterr().out == "自测 1.1：过了\n"


def test_what_goes_wrong_otherwise_is_not_taken_for_a_limit(own_model):
    with pytest.raises(KeyError), profile.tiny_base_must("……"):
        {}["none"]
