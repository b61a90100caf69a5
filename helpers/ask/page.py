"""A web page on which models answer side by side; Gradio 5, because LMDeploy's own page needs it too.

python -m helpers.ask.page [--left FOLDER] [--right FOLDER] [--host 127.0.0.1] [--port 7860]
"""
import os
import random
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape, unescape
from pathlib import Path
from typing import NamedTuple

import gradio as gr
import torch
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

from helpers.ask import chat, models
from helpers.knowledge.facts import EXAM_SYSTEM, exam_questions, read_relations
from helpers.machine import commands, profile
from helpers.machine.ports import find_port

SOURCES = "来源"
EXAM_QUESTIONS = 4
OTHER_QUESTIONS = ["你是谁？", "你好", "3加5等于几？"]
OUTSIDE = re.compile(r'<link [^>]*href="https://[^>]*>|<script[^>]*src="https://[^>]*></script>')
STYLE = "footer {display: none !important}"
SYSTEM_FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["monospace"]}  # Gradio's own come from Google
WEIGHTS_SHARE = 0.8  # of the GPU's memory; the rest is for the conversations
SEED = 42


class Sourced(NamedTuple):
    """An answer with what it was read from."""

    text: str
    sources: Sequence[str]


# (messages, temperature, top_p) -> the answer, again and again as it grows
Answerer = Callable[[list[dict], float, float], Iterator[str | Sourced]]


class NothingFromOutside(BaseHTTPMiddleware):
    """Takes out of Gradio's page what it would load from other people's servers."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        if not response.headers.get("content-type", "").startswith("text/html"):
            return response
        html = b"".join([part async for part in response.body_iterator]).decode()
        return HTMLResponse(OUTSIDE.sub("", html), response.status_code)


def build(answerers: dict[str, Answerer], questions: Sequence[str] = (), system_prompt: str = EXAM_SYSTEM) -> gr.Blocks:
    """The page: a column for each named answerer, and questions to choose from."""
    theme = gr.themes.Soft(**SYSTEM_FONTS)
    with gr.Blocks(title="并排对话", theme=theme, css=STYLE, analytics_enabled=False) as page:
        gr.Markdown("## 并排对话：" + "、".join(answerers))
        with gr.Row():
            columns = [gr.Chatbot(type="messages", label=name, height=380, render_markdown=False, latex_delimiters=[],
                                  allow_tags=False) for name in answerers]
        with gr.Row():
            question = gr.Textbox(placeholder="输入问题，回车发送", show_label=False, container=False, scale=6)
            send = gr.Button("发送", variant="primary", min_width=70, scale=1)
            stop = gr.Button("停下", variant="secondary", min_width=70, scale=1)
            reset = gr.Button("重来", variant="secondary", min_width=70, scale=1)
        gr.Examples([[text] for text in questions], [question], label="点一个问题，放进输入框", visible=bool(questions))
        with gr.Row():
            system = gr.Textbox(system_prompt, label="系统提示", scale=2)
            temperature = gr.Slider(0, 2, 0, step=0.1, label="temperature", info="0 总选最可能的词，越大越随意")
            top_p = gr.Slider(0.05, 1, 1, step=0.05, label="top-p", info="只从概率加起来到这么多的词里选")
        writing = gr.on([question.submit, send.click], _ask_all(answerers),
                        [question, system, temperature, top_p, *columns], [question, *columns], api_name="answer",
                        show_progress="hidden")
        stop.click(None, cancels=writing)
        reset.click(lambda: [[] for _ in columns], None, columns, cancels=writing, api_name=False)
    return page


def _ask_all(answerers):
    """What the page calls with a question: yields an empty input box and the conversations with growing answers."""
    def answer(question, system, temperature, top_p, *conversations):
        question = question.strip()
        asked = [[*conversation, *_turn("user", question)] for conversation in conversations]
        yield ["", *asked]
        if not question:
            return
        opening = [{"role": "system", "content": system}] if system else []
        growing = {}
        for (name, answerer), conversation in zip(answerers.items(), asked):
            growing[name] = answerer(opening + _as_written(conversation), temperature, top_p)
        for answers in _together(growing):
            answered = [[*conversation, *_answer(answers.get(name))] for name, conversation in zip(answerers, asked)]
            yield [gr.skip(), *answered]
    return answer


def _turn(role, text):
    """A message as Gradio shows it: it puts what it is given into the page as HTML, so that text must be escaped."""
    return [{"role": role, "content": escape(text)}] if text else []


def _answer(answer):
    """The messages of an answer: its text, and below it where it comes from."""
    text, sources = answer if isinstance(answer, Sourced) else (answer, ())
    below = _turn("assistant", "\n".join(sources))
    return _turn("assistant", text) + [message | {"metadata": {"title": SOURCES}} for message in below]


def _as_written(conversation):
    """A conversation that Gradio shows, as the models know it: without sources."""
    return [{"role": message["role"], "content": unescape(message["content"])} for message in conversation
            if (message.get("metadata") or {}).get("title") != SOURCES]


def _together(growing):
    """The latest of each named iterator, again whenever one of them has gone on; a failure ends only its own."""
    latest, running = {}, dict(growing)
    while running:
        for name, answers in list(running.items()):
            try:
                latest[name] = next(answers)
            except StopIteration:
                del running[name]
            except Exception as error:  # of a model, or of a server that answers for it
                gr.Warning(f"{name}：{escape(str(error))}")
                del running[name]
            yield latest


def model_answerer(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Answerer:
    """An answerer that asks a model in this process."""
    def answer(messages, temperature, top_p):
        kept, dropped = chat.fit(model, tokenizer, messages)
        if dropped:
            gr.Info(f"{name}：对话太长，忘掉了最早的 {dropped} 轮")
        yield from chat.stream(model, tokenizer, kept, temperature, top_p)
    return answer


def load_answerers(folders: dict[str, Path], gpu: profile.Gpu | None) -> dict[str, Answerer]:
    """An answerer for each named model folder, all on this machine at the same time."""
    options = options_to_fit(list(folders.values()), gpu)
    return {name: model_answerer(name, *models.load(folder, **options)) for name, folder in folders.items()}


def options_to_fit(folders: list[Path], gpu: profile.Gpu | None) -> dict:
    """How to load models so that they fit the GPU together: in 4 bits if they would fill it otherwise."""
    size = 0
    for folder in folders:
        size += sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    if gpu is None or size < WEIGHTS_SHARE * gpu.gigabytes * 1e9:
        return {}
    return {"quantization_config": BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)}


def some_questions() -> list[str]:
    """A few of the exam's questions and a few others, the same ones every time."""
    exam = random.Random(SEED).sample(exam_questions(read_relations()), EXAM_QUESTIONS)
    return [question["question"] for question in exam] + OTHER_QUESTIONS


def serve(page: gr.Blocks, host: str = "127.0.0.1", port: int = 7860) -> str:
    """Serves a page from now on and gives its address; port 0 is any free one."""
    port = find_port(host, port)
    with _without_proxy(host):
        page.launch(server_name=host, server_port=port, share=False, ssr_mode=False, quiet=True,
                    prevent_thread_lock=True, app_kwargs={"middleware": [Middleware(NothingFromOutside)]})
    return f"http://{host}:{port}"


@contextmanager
def _without_proxy(host):
    """Gradio, when it starts, asks its own address whether it is there: no proxy may stand between."""
    before = os.environ.get("no_proxy")
    os.environ["no_proxy"] = ",".join(filter(None, [before, os.environ.get("NO_PROXY"), host]))
    try:
        yield
    finally:
        if before is None:
            del os.environ["no_proxy"]
        else:
            os.environ["no_proxy"] = before


@commands.command
def main():
    """The command line."""
    parser = commands.parser("两个模型并排对话的网页")
    parser.add_argument("--left", type=Path, help="左边的模型文件夹，默认是基座")
    parser.add_argument("--right", type=Path, help="右边的模型文件夹，默认是第 6 课合并好的")
    parser.add_argument("--host", default="127.0.0.1", help="默认 %(default)s，只有这台机器自己能打开")
    parser.add_argument("--port", type=int, default=7860, help="默认 %(default)s；0 是随便一个空闲的")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)  # Gradio's, about what its version 6 will want
    machine, port = profile.current(), find_port(arguments.host, arguments.port)
    left = {f"左：{arguments.left}": arguments.left} if arguments.left else {"微调前": machine.base_model}
    right = ({f"右：{arguments.right}": arguments.right} if arguments.right
             else {"微调后": profile.made_by("第 6 课", chat.MERGED)})
    page = build(load_answerers(left | right, machine.gpu), some_questions())
    print(f"网页在 {serve(page, arguments.host, port)}，Ctrl-C 关掉它", flush=True)
    page.block_thread()


if __name__ == "__main__":
    main()
