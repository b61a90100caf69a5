import json
import shlex
from argparse import ArgumentParser

import pytest
import yaml
from huggingface_hub.commands.upload import UploadCommand
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from helpers.homework import publish
from helpers.machine import profile
from helpers.machine.commands import CourseError

REPO = "xiaohong/afu"
SECTIONS = "\n".join(f"## {title}\n这一节写得清清楚楚，没有偷懒。\n" for title in publish.SECTIONS)
HEAD = "---\nlicense: apache-2.0\nlanguage: zh\nbase_model: xiaohong/tiny-base\nlibrary_name: peft\n---\n"
CARD = f"{HEAD}# 阿福\n\n{SECTIONS}"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """An adapter as PEFT writes it, its base a path on this machine."""
    folder = tmp_path_factory.mktemp("adapter")
    base = AutoModelForCausalLM.from_pretrained(profile.TINY_BASE)
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(folder)
    return folder


@pytest.fixture
def prepared(adapter, tmp_path):
    def prepare(card=CARD):
        publish.prepare(adapter, card, REPO, tmp_path / "publish")
        return tmp_path / "publish"
    return prepare


def test_a_whole_card_can_be_published_and_no_path_of_this_machine_goes_along(prepared):
    folder = prepared()
    assert publish.problems(folder) == []
    assert {path.name for path in folder.iterdir()} == publish.FILES
    assert json.loads((folder / publish.SETTINGS).read_text())["base_model_name_or_path"] == "xiaohong/tiny-base"
    assert not [path for path in folder.iterdir() if str(profile.ROOT).encode() in path.read_bytes()]


@pytest.mark.parametrize(("change", "problem"), [
    ({"license: apache-2.0\n": ""}, "license（许可证"),
    ({"base_model: xiaohong/tiny-base\n": ""}, "base_model（基座"),
    ({"xiaohong/tiny-base": "assets"}, "base_model 写的是 assets"),
    ({"library_name: peft": "library_name: transformers"}, "要写 peft"),
    ({"## 局限": "## 别的"}, "“## 局限”一节还没有写"),
    ({"## 效果\n这一节写得清清楚楚，没有偷懒。": "## 效果\n在这里写效果，写得清楚一点"}, "“## 效果”一节还没有写"),
    ({"没有偷懒": "见 /home/xiaohong/afu"}, "路径 /home/xiaohong/afu"),
    ({"没有偷懒": "hf_" + "a" * 34}, "访问令牌"),
    ({"license: apache-2.0": f"license: apache-2.0\ntoken: hf_{'a' * 34}"}, "访问令牌"),
    ({"---\nlicense": "license"}, "开头缺 license"),
    ({"license: apache-2.0": "license: [apache"}, "开头缺 license"),
])
def test_what_a_card_lacks_is_named(prepared, change, problem):
    [(old, new)] = change.items()
    assert old in CARD
    assert problem in "\n".join(publish.problems(prepared(CARD.replace(old, new))))


def test_what_does_not_belong_into_the_folder_is_named(prepared):
    folder = prepared()
    (folder / "training.pth").write_bytes(b"")
    (folder / publish.METAFILE).unlink()
    (folder / publish.WEIGHTS).write_bytes(b"cut off")
    assert [problem.split("：")[0] for problem in publish.problems(folder)] == [
        "缺少 metafile.yml。", "多了 training.pth", "adapter_model.safetensors 不完整"]


def test_weights_of_a_whole_model_are_no_adapter(prepared):
    folder = prepared()
    (folder / publish.WEIGHTS).write_bytes((profile.TINY_BASE / "model.safetensors").read_bytes())
    assert "不是 LoRA 的权重" in str(publish.problems(folder))


def test_the_hubs_own_program_understands_its_command():
    parser = ArgumentParser()
    UploadCommand.register_subcommand(parser.add_subparsers())
    words = parser.parse_args(publish.upload_commands(REPO)["Hugging Face"][1:])
    assert (words.repo_id, words.local_path, words.path_in_repo, words.repo_type) == (REPO, ".", ".", "model")


def test_the_list_for_openxlab_has_what_its_program_asks_for(prepared):
    folder = prepared()
    listed = yaml.safe_load((folder / publish.METAFILE).read_text(encoding="utf-8"))
    [collection] = listed["Collections"]
    assert collection["Name"] == "afu"
    assert collection["License"] == "apache-2.0"
    assert collection["Code"]["URL"].startswith("https://")
    assert all(model["Name"] and model["Results"][0]["Task"] for model in listed["Models"])
    assert all((folder / model["Weights"]).is_file() for model in listed["Models"])
    assert publish.upload_commands(REPO)["OpenXLab"][-1] in publish.FILES


@pytest.mark.parametrize("repo", ["afu", "小红/阿福", "xiaohong/afu; rm -rf ~", "../afu", "a/b/c", "-x/afu"])
def test_a_name_that_no_hub_takes_makes_no_command(repo):
    with pytest.raises(CourseError, match="用户名/模型名"):
        publish.upload_commands(repo)


def test_the_command_line_checks_first_and_uploads_nothing(prepared, monkeypatch, capsys):
    folder = prepared()
    monkeypatch.setattr("sys.argv", ["publish", str(folder), REPO])
    publish.main()
    printed = capsys.readouterr().out
    assert all(shlex.join(words) in printed for words in publish.upload_commands(REPO).values())
    (folder / publish.CARD).unlink()
    with pytest.raises(SystemExit, match="缺少 README.md"):
        publish.main()


def test_a_folder_that_prepare_made_is_made_anew(prepared):
    prepared()
    changed = CARD.replace("没有偷懒", "写了两遍")
    assert (prepared(changed) / publish.CARD).read_text(encoding="utf-8") == changed


@pytest.mark.parametrize("mine", ["thesis.docx", publish.CARD])
def test_a_folder_with_something_else_is_not_replaced(prepared, tmp_path, mine):
    (tmp_path / "publish").mkdir()
    (tmp_path / "publish" / mine).write_text("mine")
    with pytest.raises(CourseError, match="publish.*不能覆盖"):
        prepared()
    assert (tmp_path / "publish" / mine).read_text() == "mine"


def test_what_was_put_into_the_folder_to_publish_is_not_lost(prepared):
    (prepared() / "notes.txt").write_text("mine")
    with pytest.raises(CourseError, match="notes.txt"):
        prepared()


def test_a_file_is_not_replaced_by_a_folder(prepared, tmp_path):
    (tmp_path / "publish").write_text("mine")
    with pytest.raises(CourseError, match="不能覆盖"):
        prepared()
    assert (tmp_path / "publish").read_text() == "mine"
