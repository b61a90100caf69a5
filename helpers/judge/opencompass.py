"""Lesson 11: configs for OpenCompass, and a run of it whose end is the truth: a score, or the reason there is none."""
import csv
import json
import re
import shutil
import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from pprint import pformat
from typing import NamedTuple

from matplotlib.figure import Figure
from pandas import DataFrame

from helpers.data.split import write_samples
from helpers.judge.shares import Share
from helpers.knowledge.exam import LETTERS
from helpers.knowledge.facts import right_names
from helpers.machine import profile
from helpers.machine.charts import grouped_bars, use_chinese_font
from helpers.machine.commands import CourseError
from helpers.machine.files import replaced, sha256
from helpers.machine.model_folder import bytes_of_weights
from helpers.machine.process import Failed, lines, shown

EVALUATION = profile.ROOT / "workspace" / "evaluate"
BATCH_SIZE = 32
LONG = 1000  # tokens of a question with five examples before it
LOGITS = 4 * 2**30  # bytes for those of a batch: some models make them for every token, in 16 and in 32 bits
ANSWER_TOKENS = 32
SYSTEM = {"role": "SYSTEM", "fallback_role": "HUMAN", "prompt": "{system}"}
OPTIONS_FIRST = "；".join(f"{letter}. {{{letter}}}" for letter in LETTERS) + "。{question}"
# Unless it is told, OpenCompass puts the system prompt into the user's mouth.
API_ROLES = {
    "round": [{"role": "HUMAN", "api_role": "HUMAN"}, {"role": "BOT", "api_role": "BOT", "generate": True}],
    "reserved_roles": [{"role": "SYSTEM", "api_role": "SYSTEM"}],
}
# InternLM's template spelt out, as every tutorial did before chat templates came with the tokenizer.
INTERNLM_ROLES = {
    "round": [{"role": "HUMAN", "begin": "<|im_start|>user\n", "end": "<|im_end|>\n"},
              {"role": "BOT", "begin": "<|im_start|>assistant\n", "end": "<|im_end|>\n", "generate": True}],
    "reserved_roles": [{"role": "SYSTEM", "begin": "<|im_start|>system\n", "end": "<|im_end|>\n"}],
}
CONFIG = """\
models = {models}

datasets = {datasets}
"""
CEVAL_CONFIG = """\
from mmengine.config import read_base

with read_base():
    from opencompass.configs.datasets.ceval.ceval_gen_5f30c7 import ceval_datasets as five_shot
    from opencompass.configs.datasets.ceval.ceval_zero_shot_gen_bd40ef import ceval_datasets as zero_shot

models = {models}

names = {names}
datasets = []
for shots, official in ((0, zero_shot), (5, five_shot)):
    for dataset in official:
        if dataset['name'] in names:
            dataset['path'] = {folder}
            dataset['abbr'] = f"{{shots}}-shot-{{dataset['name']}}"
            datasets.append(dataset)

summarizer = dict(summary_groups=[
    dict(name=f'{{shots}}-shot', subsets=[f'{{shots}}-shot-{{name}}' for name in names]) for shots in (0, 5)])
"""
NAMED_PATH = re.compile(r"""['"](/[^'"\n]+)['"]""")
PORT = re.compile(r"127\.0\.0\.1:\d+")
ERROR = re.compile(r"^(?:[\w.]+\.)?\w*(?:Error|Exception|Interrupt)\b.*", re.M)
COLORS = ("#4878a8", "#e0a458", "#4b9b5f")


class Answer(NamedTuple):
    """What a model said to one question, what it should have said, and whether that counts as right."""

    said: str
    expected: str
    right: bool


class Score(NamedTuple):
    """OpenCompass's figure for one model on one test set, and the answers behind it; an average has none."""

    percent: float
    answers: list[Answer]

    @property
    def right(self) -> list[bool]:
        """Which of the questions were answered rightly."""
        return [answer.right for answer in self.answers]

    @property
    def share(self) -> Share:
        """How many of how many questions were answered rightly."""
        return Share.of(self.right)

    def __str__(self) -> str:
        return str(self.share) if self.answers else f"{self.percent:.1f}%"


def with_one_name(samples: list[dict]) -> list[dict]:
    """The samples whose answer has only one right name: OpenCompass compares with one."""
    chosen = []
    for sample in samples:
        turn = sample["conversation"][0]
        if len(right_names(turn["input"], turn["output"])) == 1:
            chosen.append(sample)
    return chosen


def write_qa(samples: list[dict], path: str | Path) -> dict:
    """Writes samples as a custom set of questions and answers, each with its own system prompt; gives its entry."""
    turns = [sample["conversation"][0] for sample in samples]
    write_samples([{"system": turn.get("system", ""), "question": turn["input"], "answer": turn["output"]}
                   for turn in turns], path)
    return _described(path, "qa", _asked("{question}", "{answer}"))


def write_choices(rows: list[dict], path: str | Path) -> dict:
    """Writes multiple-choice rows as a custom set that lists the options first; gives its entry for a config."""
    write_samples(rows, path)
    return _described(path, "mcq", _asked(OPTIONS_FIRST, "{answer}"))


def write_choices_ppl(rows: list[dict], path: str | Path, *, say_text: bool) -> dict:
    """Writes the same, to be judged by which answer the model finds the most probable: the option's letter or its text.

    Its entry is for a model that tells probabilities, as `causal_model` does.
    """
    write_samples(rows, path)
    template = {letter: _asked(OPTIONS_FIRST, f"{{{letter}}}" if say_text else letter) for letter in LETTERS}
    return _described(path, "mcq", template, "ppl")


def write_choices_csv(rows: list[dict], path: str | Path) -> dict:
    """Writes multiple-choice rows as a table, to be asked in OpenCompass's own words; gives its entry for a config."""
    columns = ["question", *LETTERS, "answer"]
    with replaced(Path(path)) as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return _entry(path, "mcq")


def _asked(prompt: str, answer: str) -> dict:
    """The turns of a question: the system prompt, what the user says, what the model says."""
    return {"begin": [SYSTEM], "round": [{"role": "HUMAN", "prompt": prompt}, {"role": "BOT", "prompt": answer}]}


def _described(path: str | Path, data_type: str, template: dict, infer_method: str = "gen") -> dict:
    """A custom set's entry; how to ask stands beside the file, where OpenCompass looks for it."""
    with replaced(Path(f"{path}.meta.json")) as file:
        json.dump({"template": template}, file, ensure_ascii=False, indent=1)
    return _entry(path, data_type, infer_method)


def _entry(path: str | Path, data_type: str, infer_method: str = "gen") -> dict:
    """How a config names a custom set: a model writes its answers (gen), or tells how probable each is (ppl)."""
    return {"path": _absolute(path), "data_type": data_type, "infer_method": infer_method}


def _absolute(path: str | Path) -> str:
    """A path that holds wherever OpenCompass works; a relative one it would try to download."""
    return str(Path(path).absolute())


def chat_model(abbr: str, folder: str | Path) -> dict:
    """A model folder, asked by its own chat template."""
    return {"type": "opencompass.models.HuggingFacewithChatTemplate", "abbr": abbr, "path": _absolute(folder),
            "meta_template": API_ROLES, **_in_process(folder)}


def causal_model(abbr: str, folder: str | Path) -> dict:
    """A model folder, asked by InternLM's template written out, as older tutorials do."""
    return {"type": "opencompass.models.HuggingFaceCausalLM", "abbr": abbr, "path": _absolute(folder),
            "tokenizer_path": _absolute(folder), "meta_template": INTERNLM_ROLES, "end_str": "<|im_end|>",
            "tokenizer_kwargs": {"padding_side": "left", "truncation_side": "left", "trust_remote_code": True},
            "batch_padding": True, **_in_process(folder)}


def _in_process(folder: str | Path) -> dict:
    """What every model has in common that OpenCompass loads itself."""
    machine = profile.current()
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    length = config["max_position_embeddings"]
    together = LOGITS // (6 * config["vocab_size"] * min(LONG, length))
    return {"model_kwargs": {"device_map": machine.device, "trust_remote_code": True,
                             "torch_dtype": f"torch.{machine.dtype.removesuffix('32')}"},  # torch.float: both know it
            "max_seq_len": length, "max_out_len": ANSWER_TOKENS, "batch_size": max(1, min(BATCH_SIZE, together)),
            "run_cfg": {"num_gpus": int(machine.device == "cuda")}}


def served_model(abbr: str, url: str, name: str | Path, tokenizer: str | Path) -> dict:
    """A model behind an OpenAI-compatible server; the tokenizer's folder only serves to measure questions."""
    return {"type": "opencompass.models.OpenAISDK", "abbr": abbr, "path": str(name), "key": "EMPTY",
            "openai_api_base": url, "tokenizer_path": _absolute(tokenizer), "meta_template": API_ROLES,
            "temperature": 0, "query_per_second": 100, "max_workers": 4, "retry": 2, "max_seq_len": 2048,
            "max_out_len": ANSWER_TOKENS, "batch_size": BATCH_SIZE, "run_cfg": {"num_gpus": 0}}


def lmdeploy_model(abbr: str, url: str, name: str) -> dict:
    """A model behind `lmdeploy serve api_server`, asked through its completion interface."""
    return {"type": "opencompass.models.turbomind_api.TurboMindAPIModel", "abbr": abbr, "model_name": name,
            "api_addr": url, "meta_template": INTERNLM_ROLES, "end_str": "<|im_end|>", "temperature": 0.01, "top_k": 1,
            "max_seq_len": 2048, "max_out_len": ANSWER_TOKENS, "batch_size": BATCH_SIZE,
            "run_cfg": {"num_gpus": 0}}


def config(models: list[dict], datasets: list[dict]) -> str:
    """The text of a config: these models on these custom sets."""
    return CONFIG.format(models=_python(models), datasets=_python(datasets))


def ceval_config(models: list[dict], folder: str | Path, names: list[str]) -> str:
    """The text of a config: these models on C-Eval's subjects of these names, without and with five examples."""
    return CEVAL_CONFIG.format(models=_python(models), folder=repr(_absolute(folder)), names=_python(names))


def _python(value: list) -> str:
    return pformat(value, width=118, sort_dicts=False)


def command_line(folder: str | Path, entry: dict) -> list[str]:
    """The arguments with which OpenCompass evaluates one model folder on one custom set, without a config."""
    machine = _in_process(folder)
    return ["--hf-type", "chat", "--hf-path", _absolute(folder),
            "--model-kwargs", *(f"{key}={value}" for key, value in machine["model_kwargs"].items()),
            "--hf-num-gpus", str(machine["run_cfg"]["num_gpus"]), "--batch-size", str(machine["batch_size"]),
            "--max-out-len", str(ANSWER_TOKENS), "--custom-dataset-path", entry["path"]]


def evaluate(name: str, text: str) -> dict[tuple[str, str], Score]:
    """What the models of a config score: {(model, test set): Score}; raises Failed if there is no score.

    Evaluates only what has changed since the last time: the config or a file that it names.
    """
    config_file = EVALUATION / name / "config.py"
    with replaced(config_file) as file:
        file.write(text)
    return evaluate_command(name, [config_file.name], text)


def evaluate_command(name: str, arguments: list[str], made_of: str = "") -> dict[tuple[str, str], Score]:
    """What OpenCompass finds with these arguments, as `evaluate` does; `made_of` is what they stand for."""
    folder = EVALUATION / name
    out, log, kept = folder / "outputs", folder / "run.log", folder / "made_of.txt"
    fingerprint = _fingerprint(made_of or repr(arguments))
    if not kept.exists() or kept.read_text(encoding="utf-8") != fingerprint:
        shutil.rmtree(out, ignore_errors=True)
        with replaced(kept) as file:
            file.write(fingerprint)
    if not list(out.glob("*/summary/*.csv")):
        log.unlink(missing_ok=True)
        command = [sys.executable, "-m", "opencompass.cli.main", *arguments, "--debug", "--reuse", "--work-dir", out]
        try:
            for _ in lines(command, log=log, cwd=folder, gpu_bytes=_gpu_bytes(fingerprint)):
                pass
        except Failed as error:
            raise Failed(f"评测没有做完：{_reason([log], error)}\n完整的日志：{shown(log)}") from error
    return read_scores(out)


def _gpu_bytes(text: str) -> float:
    """What the model of a config takes of the GPU's memory; OpenCompass would keep one while it loads the next."""
    on_gpu = len(re.findall(r"device_map\W+cuda", text))
    if on_gpu > 1:
        raise CourseError(f"这份配置里有 {on_gpu} 个要装进显卡的模型：OpenCompass 装入下一个时，不释放前一个。"
                          "修复：一个模型写一份配置，一份一份地评测。")
    folders = {Path(path) for path in NAMED_PATH.findall(text)}
    return on_gpu * (sum(map(bytes_of_weights, folders)) + LOGITS)


def _fingerprint(text: str) -> str:
    """What scores depend on: the config but for its ports, the files that it names, and who evaluates them."""
    versions = [f"{package} {version(package)}" for package in ("opencompass", "transformers", "torch")]
    files = sorted({file for path in NAMED_PATH.findall(text) for file in _files(Path(path))})
    digests = [f"{_digest(file, file.stat().st_size, file.stat().st_mtime_ns)} {file}" for file in files]
    return "\n".join([PORT.sub("127.0.0.1", text), *versions, *digests])


@cache
def _digest(file: Path, _size: int, _changed: int) -> str:
    """The SHA-256 of a file; what has not changed is not read again, for weights may have many gigabytes."""
    return sha256(file)


def _files(path: Path) -> list[Path]:
    """The files in a folder; or a file, and what OpenCompass reads beside it."""
    paths = path.rglob("*") if path.is_dir() else path.parent.glob(f"{path.name}*")
    return [path for path in paths if path.is_file()]


def read_scores(out: str | Path) -> dict[tuple[str, str], Score]:
    """The scores of OpenCompass's newest run in a work dir; one that is missing is an error with the reason."""
    runs = sorted(Path(out).glob("*/"))  # named by the time when they began
    newest = runs[-1] if runs else Path(out)
    summaries = sorted(newest.glob("summary/*.csv"))
    if not summaries:
        raise Failed(f"{shown(out)} 里没有成绩单。原因：{_reason(newest.rglob('*.out'))}")
    with summaries[-1].open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    scores = {}
    for model in list(rows[0])[4:]:  # after the set, its version, the metric and the mode
        for row in rows:
            if row[model] == "-":
                raise Failed(f"{model} 在 {row['dataset']} 上没有成绩。"
                             f"原因：{_reason(newest.glob(f'logs/*/{model}/*.out'))}")
            score = Score(float(row[model]), _answers(newest / "results" / model / f"{row['dataset']}.json"))
            if score.answers and abs(100 * score.share.value - score.percent) > 0.01:
                raise Failed(f"{model} 在 {row['dataset']} 上的成绩是 {score.percent}，逐题数却是 {score.share}。"
                             "修复：删掉这个文件夹，重新评测。")
            scores.setdefault((model, row["dataset"]), score)
    return scores


def _answers(file: Path) -> list[Answer]:
    """The answers that OpenCompass judged, in the order of the questions; behind an average there are none."""
    if not file.exists():
        return []
    details = json.loads(file.read_text(encoding="utf-8"))["details"]
    if isinstance(details, list):  # of the evaluator for choices
        return [Answer(*judged["pred"], *judged["refr"], *judged["correct"]) for judged in details]
    if details.pop("type") == "PPL":  # nothing was said: the letter of the most probable answer
        return [Answer(judged["predictions"], judged["references"], judged["correct"]) for judged in details.values()]
    return [Answer(judged["origin_prediction"], judged["references"], judged["predictions"] == judged["references"])
            for judged in details.values()]


def _reason(logs: Iterable[Path], otherwise: object = "日志里没有写") -> str:
    """The last error in these logs; inference is logged after evaluation."""
    text = "\n".join(log.read_text(encoding="utf-8", errors="replace") for log in sorted(logs))
    errors = ERROR.findall(text)
    return errors[-1] if errors else str(otherwise)


def scores_table(scores: dict[tuple[str, str], Score]) -> DataFrame:
    """A row per test set, a column per model; each share with its interval."""
    models, sets = _names(scores)
    return DataFrame({model: [_cell(scores[model, name]) for name in sets] for model in models}, index=sets)


def _cell(score: Score) -> str:
    if not score.answers:
        return f"{score.percent:.1f}%"
    low, high = score.share.interval
    return f"{score.share.value:.1%}（{low:.0%}–{high:.0%}）"


def _names(scores: dict[tuple[str, str], Score]) -> tuple[list[str], list[str]]:
    """The models and the test sets, each once, in order."""
    models, sets = zip(*scores)
    return list(dict.fromkeys(models)), list(dict.fromkeys(sets))


def chart(scores: dict[tuple[str, str], Score], title: str = "") -> Figure:
    """A bar with its interval for every model on every test set."""
    use_chinese_font()
    models, sets = _names(scores)
    shares = {name: [scores[model, name].share for model in models] for name in sets}
    axes = Figure(figsize=(8, 3.2), layout="constrained").subplots()
    return grouped_bars(axes, models, shares, COLORS, title)
