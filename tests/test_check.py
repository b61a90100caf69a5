"""The check before training: what it lets pass trains, what it fails does not, and it says where and what to do."""
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from mmengine.config import Config
from transformers import AutoTokenizer
from xtuner.registry import BUILDER

from helpers.data.split import write_samples
from helpers.knowledge.corpus import Corpus
from helpers.machine import profile
from helpers.train.check import check_config
from helpers.train.config import edit, for_model
from helpers.train.pretrain import train_tokenizer
from helpers.train.tokens import coloured
from tests import bases, finetune

ONE_BY_ONE = {"pack_to_max_length": "False", "batch_size": "1", "max_epochs": "1"}


@pytest.fixture(autouse=True)
def _on_a_laptop(monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "cpu")
    monkeypatch.delenv("COURSE_BASE_MODEL", raising=False)


@pytest.fixture
def write(tmp_path):
    """Writes a config of the course for some rows, or for bytes that should have been rows."""
    def write(rows, changes=None):
        data = tmp_path / "train.jsonl"
        if isinstance(rows, bytes):
            data.write_bytes(rows)
        else:
            write_samples(rows, data)
        finetune.write_config(tmp_path / "config.py", data, {"save_steps": "8", "max_epochs": "6"} | (changes or {}))
        return tmp_path / "config.py"
    return write


def exam(count):
    return finetune.split_exam()[0][:count]


def turn(**values):
    return {"conversation": [{"system": "", "input": "问", "output": "答"} | values]}


def found(report, level):
    return [line for line in report.lines if line.startswith(f"[{level}]")]


def train(config):
    """What XTuner itself does with a config: its exit code, its output, the learning rate of each iteration."""
    done = subprocess.run([sys.executable, "-m", "xtuner.tools.train", config, "--work-dir", "work"], cwd=config.parent,
                          env=profile.environment() | {"PYTHONPATH": str(profile.ROOT)}, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    logs = config.parent.glob("work/*/vis_data/scalars.json")
    rates = [json.loads(line)["lr"] for log in logs for line in log.read_text().splitlines()]
    return done.returncode, done.stdout, rates


def test_a_config_made_as_the_course_makes_it_passes_without_a_warning(write):
    report = check_config(write(exam(400)))
    assert report.ok
    assert not found(report, "WARN")
    (first,) = exam(1)[0]["conversation"]
    assert "".join(text for text, learnt in report.sample if learnt) == first["output"] + "<|im_end|>"
    assert first["input"] in "".join(text for text, learnt in report.sample if not learnt)


def test_the_sample_is_what_xtuner_trains_on_token_by_token(write):
    talk = {"conversation": [{"system": "甲", "input": "问", "output": "答"}, {"input": "再问", "output": "再答"}]}
    config = write([talk, *exam(70)], ONE_BY_ONE)
    row = BUILDER.build(Config.fromfile(config).train_dataloader.dataset)[0]
    tokenizer = AutoTokenizer.from_pretrained(profile.TINY_BASE)
    assert check_config(config).sample == [
        (tokenizer.decode([token]), label >= 0) for token, label in zip(row["input_ids"], row["labels"])]


def test_the_learning_rates_are_those_that_xtuner_logs(write):
    config = write(exam(12), ONE_BY_ONE | {"warmup_ratio": "0.25", "default_hooks.logger.interval": "1"})
    report = check_config(config)
    code, printed, rates = train(config)
    assert code == 0, printed
    assert report.steps == len(rates) == 12
    assert report.learning_rates == pytest.approx(rates)


def test_too_few_steps_for_a_warm_up_fail_as_they_do_in_xtuner(write):
    config = write(exam(9), ONE_BY_ONE | {"warmup_ratio": "0.1"})
    code, printed, _ = train(config)
    assert code != 0
    (line,) = found(check_config(config), "FAIL")
    for text in (printed, line):
        assert "end should be larger than begin" in text
    assert "warmup_ratio 改成 0.23" in line
    assert "config.py 第" in line


@pytest.mark.parametrize(("rows", "level"), [(33, "FAIL"), (34, "WARN"), (66, "WARN"), (67, "OK")])
def test_steps_are_judged_by_the_warm_up_that_they_leave(write, rows, level):
    report = check_config(write(exam(rows), ONE_BY_ONE))
    assert report.steps == rows
    assert any("步数：" in line for line in found(report, level))


@pytest.mark.parametrize("rows", [3, 8, 20, 25, 50])
def test_the_warm_up_ratio_that_is_advised_works(write, rows):
    advice = next(line for line in check_config(write(exam(rows), ONE_BY_ONE)).lines if "步数：" in line)
    ratio = advice.split("warmup_ratio 改成 ")[1].split("，")[0]
    report = check_config(write(exam(rows), ONE_BY_ONE | {"warmup_ratio": ratio}))
    assert max(report.learning_rates) == pytest.approx(4e-4)


def test_packing_by_many_processes_that_loses_data_is_a_warning(write):
    one = check_config(write(exam(100)))
    many = check_config(write(exam(100), {"alpaca_en.map_num_proc": "16"}))
    assert many.steps < one.steps
    assert any("map_num_proc=1" in line for line in found(many, "WARN"))


@pytest.mark.parametrize(("path", "said"), [("internlm/internlm2_5-7b-chat", "联网"), ("/no/such/model", "不存在")])
def test_a_model_path_that_is_no_folder_fails(write, path, said):
    config = write(exam(400), {"pretrained_model_name_or_path": repr(path)})
    row = config.read_text(encoding="utf-8").split("\n").index(f"pretrained_model_name_or_path = {path!r}") + 1
    (line,) = found(check_config(config), "FAIL")
    assert said in line
    assert f"（config.py 第 {row} 行）" in line


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_model_folder_with_a_file_missing_fails(write, tmp_path, missing):
    folder = shutil.copytree(profile.TINY_BASE, tmp_path / "model")
    (folder / missing).unlink()
    (line,) = found(check_config(write(exam(400), {"pretrained_model_name_or_path": repr(str(folder))})), "FAIL")
    assert "模型：" in line


def test_a_model_that_is_half_downloaded_fails_before_it_trains(write, tmp_path):
    folder = shutil.copytree(profile.TINY_BASE, tmp_path / "model")
    os.truncate(folder / "model.safetensors", 10**6)
    (line,) = found(check_config(write(exam(400), {"pretrained_model_name_or_path": repr(str(folder))})), "FAIL")
    assert "model.safetensors 没有下载完：应该有" in line


ROWS = [turn(), turn(), turn()]
LINES = [json.dumps(row, ensure_ascii=False) for row in ROWS]


@pytest.mark.parametrize(("data", "said"), [
    (b"", "是空的"),
    ("\n".join(LINES).encode("gb18030"), "第 1 行不是 UTF-8"),
    (LINES[0].encode() + b"\n" + LINES[1].encode("gb18030"), "第 2 行不是 UTF-8"),
    ("\n".join([*LINES, LINES[0][:-3]]).encode(), "第 4 行"),
    (",\n".join(LINES).encode(), "第 1 行、第 2 行"),
    ([*ROWS, {"question": "问"}], "第 4 行：没有 conversation"),
    ([*ROWS, {"conversation": []}], "第 4 行：没有 conversation"),
    ([turn(), turn(input=1949)], "第 2 行：input 或 output"),
    ([turn(), {"conversation": [{"input": "问"}]}], "第 2 行：input 或 output"),
    ([turn(), turn(system=["甲"])], "第 2 行：system"),
    ([turn(), turn(output=""), turn(output=" \n")], "第 2 行、第 3 行：output 是空的"),
    ([turn(output="")] * 8, "第 5 行等 8 处：output 是空的"),
])
def test_rows_that_cannot_be_trained_on_fail_by_number(write, data, said):
    assert any(said in line for line in found(check_config(write(data)), "FAIL"))


@pytest.mark.parametrize("data", [
    "\ufeff" + "\r\n".join(LINES),
    "\n\n".join(LINES) + "\n\n",
    "\n".join([*LINES, json.dumps(turn(input="一\u2028二\x85三"), ensure_ascii=False)]),
])
def test_json_lines_as_other_programs_write_them_pass(write, data):
    report = check_config(write(data.encode(), ONE_BY_ONE | {"warmup_ratio": "0.67", "save_steps": "1"}))
    assert report.steps == data.count("conversation")


def test_an_array_named_jsonl_is_told_as_such_and_counted(write):
    report = check_config(write(json.dumps(exam(80), ensure_ascii=False, indent=2).encode(), ONE_BY_ONE))
    (line,) = found(report, "WARN")
    assert "JSON 数组" in line
    assert report.steps == 80


def test_a_column_of_mixed_types_fails_as_it_would_in_xtuner(write):
    rows = [turn() | {"score": 1}, turn() | {"score": "一"}]
    assert any("做不成训练集" in line for line in found(check_config(write(rows)), "FAIL"))


@pytest.mark.parametrize(("change", "said"), [
    ({"alpaca_en_path": '"no.jsonl"'}, "读不到 no.jsonl"),
    ({"alpaca_en.dataset": 'dict(type=load_dataset, path="tatsu-lab/alpaca")'}, "本机的 JSON 文件"),
    ({"alpaca_en.dataset_map_fn": "alpaca_map_fn"}, "dataset_map_fn=None"),
    ({"alpaca_en.template_map_fn": "None"}, "没有 template_map_fn"),
    ({"prompt_template": "PROMPT_TEMPLATE.minicpm"}, "写不了 system"),
    ({"model.llm": "dict()"}, "读不懂"),
])
def test_a_data_setting_that_cannot_work_fails(write, change, said):
    assert any(said in line for line in found(check_config(write(exam(400), change)), "FAIL"))


def test_answers_that_are_cut_and_questions_that_are_dropped_are_named(write):
    rows = [turn(), turn(output="很长" * 400), turn(input="很长" * 400)]
    cut, dropped = (next(line for line in check_config(write(rows)).lines if word in line) for word in ("截断", "丢掉"))
    assert "第 2 行。" in cut
    assert "第 3 行。" in dropped
    assert "max_length=256" in cut


def test_data_of_which_nothing_is_left_fails(write):
    assert any("丢掉" in line for line in found(check_config(write([turn(input="很长" * 400)] * 2)), "FAIL"))


def test_a_max_length_beyond_the_model_is_a_warning(write):
    assert any("不大于 512" in line for line in found(check_config(write(exam(100), {"max_length": "2048"})), "WARN"))


@pytest.mark.parametrize("wrong", ["default", "internlm_chat", "llama3_chat"])
def test_a_wrong_template_fails_with_the_first_token_that_differs_and_the_right_name(write, wrong):
    (line,) = found(check_config(write(exam(400), {"prompt_template": f"PROMPT_TEMPLATE.{wrong}"})), "FAIL")
    assert "第 2 个词元起不同，配置写 '<'，模型要 '<|im_start|>'" in line
    assert "PROMPT_TEMPLATE.internlm2_chat" in line


def test_a_template_that_differs_by_a_space_is_only_a_warning(write):
    template = ('dict(SYSTEM="<|im_start|>system\\n {system}<|im_end|>\\n", SUFFIX="<|im_end|>", SUFFIX_AS_EOS=True, '
                'INSTRUCTION="<|im_start|>user\\n{input}<|im_end|>\\n<|im_start|>assistant\\n", SEP="\\n")')
    report = check_config(write(exam(400), {"prompt_template": template}))
    (line,) = found(report, "WARN")
    assert "PROMPT_TEMPLATE.internlm2_chat" in line
    assert report.ok


def test_a_tokenizer_without_a_template_is_a_warning(write, tmp_path):
    folder = shutil.copytree(profile.TINY_BASE, tmp_path / "model")
    tokenizer = train_tokenizer(Corpus().pieces())
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    report = check_config(write(exam(400), {"pretrained_model_name_or_path": repr(str(folder))}))
    (line,) = found(report, "WARN")
    assert "chat_template" in line
    assert report.ok


@pytest.mark.parametrize(("change", "said"), [
    ({"accumulative_counts": "3"}, "改成 9"),
    ({"save_steps": "5000"}, "没有检查点"),
    ({"save_total_limit": "1"}, "save_total_limit=2"),
    ({"custom_hooks.1.max_new_tokens": "600"}, "max_new_tokens=64"),
])
def test_settings_that_cost_work_or_time_are_warnings(write, change, said):
    report = check_config(write(exam(400), change))
    (line,) = found(report, "WARN")
    assert said in line
    assert "config.py 第" in line
    assert report.ok


def test_a_system_prompt_with_braces_that_xtuner_cannot_format_fails(write):
    config = write(exam(400), {"SYSTEM": repr('只输出 {"答案": 1}')})
    (line,) = found(check_config(config), "FAIL")
    assert "花括号" in line
    assert "config.py 第" in line


@pytest.mark.parametrize(("change", "name"), [
    ({"optim_wrapper.type": "AmpOptimWrapper"}, "optim_wrapper.type"),
    ({"optim_wrapper.dtype": '"float16"'}, "optim_wrapper.dtype"),
    ({"model.llm.torch_dtype": "torch.float16"}, "model.llm.torch_dtype"),
    ({"env_cfg.dist_cfg.backend": '"nccl"'}, "env_cfg.dist_cfg.backend"),
    ({"model.use_activation_checkpointing": "True"}, "model.use_activation_checkpointing"),
])
def test_an_edit_that_this_machine_needs_and_the_config_lacks_fails(write, change, name):
    (line,) = found(check_config(write(exam(400), change)), "FAIL")
    assert f"还要改 {name}" in line


def test_xtuners_own_class_on_a_cpu_fails(write):
    path = write(exam(400))
    source = path.read_text(encoding="utf-8")
    path.write_text(source.replace("helpers.cpu", "xtuner.model"), encoding="utf-8")
    assert any("SupervisedFinetune" in line for line in found(check_config(path), "FAIL"))


def test_a_training_that_does_not_fit_the_gpu_fails(write):
    machine = profile.current()
    small, large = (replace(machine, gpu=profile.Gpu("GPU", size, "550", True)) for size in (1.0, 25.7))
    config = write(exam(400))
    assert any("放不下" in line for line in found(check_config(config, small), "FAIL"))
    assert any("25 GB：放得下" in line for line in check_config(config, large).lines)


def test_the_command_exits_1_on_a_failure(tmp_path):
    done = subprocess.run([sys.executable, "-m", "helpers.train.check", finetune.TEMPLATE], cwd=profile.ROOT,
                          env=profile.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.startswith("[FAIL] 模型：internlm/internlm2_5-7b-chat")


@pytest.fixture
def for_base(write):
    """Writes a config of the course for a base of another family, with changes made after all others."""
    def for_base(folder, changes=None):
        path = write(exam(400))
        source = for_model(path.read_text(encoding="utf-8"), folder)
        path.write_text(edit(source, changes or {}), encoding="utf-8")
        return path
    return for_base


def test_a_gemma_without_eager_attention_fails(for_base, tmp_path):
    config = for_base(bases.write_random(tmp_path / "base", "gemma2"), {"model.llm.attn_implementation": None})
    (line,) = found(check_config(config), "FAIL")
    assert 'model.llm.attn_implementation="eager"' in line
    assert "for_model" in line


def test_a_template_of_ours_with_xtuners_function_fails(for_base, tmp_path):
    config = for_base(bases.write_random(tmp_path / "base", "gemma2"))
    source = config.read_text(encoding="utf-8")
    config.write_text(source.replace("helpers.train.tokens", "xtuner.dataset.map_fns"), encoding="utf-8")
    (line,) = found(check_config(config), "FAIL")
    assert "不认得模板里的 SYSTEM_IN_INPUT" in line


def test_a_tokenizer_without_a_first_token_fails_as_it_would_in_xtuner(for_base, tmp_path):
    config = for_base(bases.write_random(tmp_path / "base", "glm"),
                      {"tokenizer.type": "AutoTokenizer.from_pretrained", "tokenizer.start": None})
    (line,) = found(check_config(config), "FAIL")
    assert "没有 bos_token" in line
    with pytest.raises(TypeError, match="NoneType"):
        BUILDER.build(Config.fromfile(config).train_dataloader.dataset)


def test_a_qwen_with_xtuners_template_fails_where_a_conversation_has_no_system_prompt(for_base, tmp_path):
    base = bases.write_qwen2(tmp_path / "base")
    bases.tokenizer_of("qwen2.5").save_pretrained(base)
    config = for_base(base, {"prompt_template": "PROMPT_TEMPLATE.qwen_chat"})
    (line,) = found(check_config(config), "FAIL")
    assert "for_model" in line
    assert not found(check_config(for_base(base)), "FAIL")


def test_an_unknown_architecture_is_a_warning_that_names_the_known(write, tmp_path):
    folder = shutil.copytree(profile.TINY_BASE, tmp_path / "model")
    shape = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(shape | {"model_type": "falcon"}), encoding="utf-8")
    (line,) = found(check_config(write(exam(400), {"pretrained_model_name_or_path": repr(str(folder))})), "WARN")
    assert "模型结构 falcon 不支持：课程只认得 llama、" in line


def test_a_sample_is_shown_as_text_whatever_is_in_it():
    shown = coloured([("<script>", True), ("&\n", False)])
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert "&amp;" in shown
