"""Talk with a model while its answer is being written.

python -m helpers.ask.chat [MODEL] [--adapter FOLDER] [--system TEXT] [--temperature T] [--top-p P]
"""
import sys
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from threading import Event

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextIteratorStreamer

from helpers.ask import models
from helpers.knowledge.facts import EXAM_SYSTEM
from helpers.machine import commands, profile

MERGED = profile.ROOT / "workspace" / "merged"
MAX_NEW_TOKENS = 512
QUESTION_SHARE = 0.75  # of the context: an older conversation leaves the rest to the answer
SEED = 42
LEAVE, RESET = ("", "退出"), "重来"


def stream(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, messages: list[dict],
           temperature: float = 0, top_p: float = 1, max_new_tokens: int = MAX_NEW_TOKENS,
           seed: int | None = None) -> Generator[str, None, None]:
    """Yields the answer to a conversation again and again as it grows; who stops reading stops the writing."""
    inputs = _encode(tokenizer, messages, return_tensors="pt").to(model.device)
    length, context = inputs.input_ids.shape[1], model.config.max_position_embeddings
    if length >= context:
        raise ValueError(f"太长了：一共 {length} 个词元，模型一次最多读 {context} 个。请说短一点。")
    # The model's own settings may sample: what is not asked for is switched off by name.
    choice = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if temperature:
        choice = {"do_sample": True, "temperature": float(temperature), "top_p": float(top_p), "top_k": 0}
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    unwanted = Event()

    def write():
        if seed is not None:
            torch.manual_seed(seed)
        model.generate(**inputs, **choice, max_new_tokens=min(max_new_tokens, context - length), streamer=streamer,
                       stopping_criteria=[lambda *_, **__: unwanted.is_set()])

    answer = ""
    with ThreadPoolExecutor(1) as thread:
        writing = thread.submit(write)
        writing.add_done_callback(lambda _: streamer.end())  # also when it failed
        try:
            for piece in streamer:
                if piece:
                    answer += piece
                    yield answer
        finally:
            unwanted.set()
    writing.result()  # raises what went wrong in the thread


def fit(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase,
        messages: list[dict]) -> tuple[list[dict], int]:
    """The messages without the oldest turns if they leave too little room for an answer, and how many turns went."""
    longest = int(model.config.max_position_embeddings * QUESTION_SHARE)
    opening = [message for message in messages[:1] if message["role"] == "system"]
    kept = messages[len(opening):]
    dropped = 0
    while len(kept) > 1 and len(_encode(tokenizer, opening + kept).input_ids) > longest:
        kept = kept[2:]  # a question and its answer
        dropped += 1
    return opening + kept, dropped


def _encode(tokenizer, messages, **options):
    return tokenizer(models.prompt(tokenizer, messages), add_special_tokens=False, **options)


def say(answers: Generator[str, None, None]) -> str:
    """Prints a growing answer as it grows and gives what it has become; Ctrl-C ends it."""
    printed = ""
    try:
        with closing(answers):
            for answer in answers:
                print(answer[len(printed):], end="", flush=True)
                printed = answer
    except KeyboardInterrupt:
        print("（停下了）", end="")
    print(flush=True)
    return printed


def converse(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, system: str, temperature: float,
             top_p: float) -> None:
    """Questions from the standard input, answers to the standard output, until an empty line or the end."""
    opening = [{"role": "system", "content": system}] if system else []
    messages = opening
    print("直接输入问题。空行或“退出”离开，“重来”忘掉前面的对话，Ctrl-C 停下正在写的回答。")
    while (question := _read_question()) not in LEAVE:
        if question == RESET:
            messages = opening
            print("（好的，重新开始）")
            continue
        kept, dropped = fit(model, tokenizer, [*messages, {"role": "user", "content": question}])
        if dropped:
            print(f"（对话太长，忘掉了最早的 {dropped} 轮）")
        print("模型：", end="", flush=True)
        try:
            answer = say(stream(model, tokenizer, kept, temperature, top_p))
        except ValueError as error:
            print(f"（{error}）")
            continue
        messages = [*kept, {"role": "assistant", "content": answer}]


def _read_question():
    """The next question; nothing at the end of the input."""
    try:
        question = input("你：").strip()
    except EOFError:
        return ""
    except KeyboardInterrupt:
        print("\n（要离开，请输入空行或“退出”）")
        return _read_question()
    if not sys.stdin.isatty():
        print(question)
    return question


@commands.command
def main():
    """The command line."""
    parser = commands.parser(__spec__, "在命令行里和模型对话")
    parser.add_argument("model", nargs="?", help="模型文件夹，默认是第 6 课合并好的；有 --adapter 时是基座")
    parser.add_argument("--adapter", help="第 5 课的适配器文件夹")
    parser.add_argument("--system", default=EXAM_SYSTEM, help="系统提示，默认“%(default)s”")
    parser.add_argument("--temperature", type=float, default=0, help="0 每次都选最可能的词，越大越随意")
    parser.add_argument("--top-p", type=float, default=1, help="只从概率加起来到这么多的词里选，1 不限制")
    arguments = parser.parse_args()
    sys.stdin.reconfigure(errors="replace")
    if arguments.model:
        folder = arguments.model
    elif arguments.adapter:
        folder = profile.current().base_model
    else:
        folder = profile.made_by("第 6 课", MERGED)
    model, tokenizer = models.load(folder, arguments.adapter)
    torch.manual_seed(SEED)
    converse(model, tokenizer, arguments.system, arguments.temperature, arguments.top_p)


if __name__ == "__main__":
    main()
