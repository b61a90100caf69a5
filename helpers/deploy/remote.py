"""Lesson 08's comparison and lesson 07's web page, asking servers that speak OpenAI's protocol instead of loading.

python -m helpers.deploy.remote compare [--before PLACE] [--after PLACE] [--tokenizer FOLDER] [--out FOLDER]
python -m helpers.deploy.remote page [--left PLACE] [--right PLACE] [--tokenizer FOLDER] [--port 7860]
A PLACE is a model folder, or the address of a server (llama.cpp, LMDeploy, vLLM), such as http://127.0.0.1:8080/v1.
"""
import warnings
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import openai
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from helpers.ask import chat, models, page
from helpers.data.split import read_samples
from helpers.judge import compare, report
from helpers.judge.provenance import provenance
from helpers.knowledge.corpus import Question
from helpers.machine import commands, profile
from helpers.machine.commands import CourseError

AT_ONCE = 16  # questions on their way to a server
MAX_TOKENS = 96  # of an answer in the comparison, as in models.ask


class ServerError(CourseError):
    """A server that does not answer: why, and what to do."""


class Server:
    """A model behind an address; `tokenizer` is its own, so that no text forges a turn: servers do not look."""

    def __init__(self, url: str, tokenizer: PreTrainedTokenizerBase):
        self.url, self.tokenizer = url, tokenizer
        self.client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        with self._errors_explained():
            self.model = self.client.models.list().data[0].id

    def answer(self, messages: list[dict], max_tokens: int = MAX_TOKENS) -> str:
        """The likeliest answer to a conversation."""
        with self._errors_explained():
            done = self._ask(messages, max_tokens=max_tokens, temperature=0)
        return done.choices[0].message.content.strip()

    def answers(self, questions: list[Question], at_once: int = AT_ONCE) -> list[str]:
        """The answer to each question, in order, so many of them asked at the same time."""
        conversations = []
        for question in questions:
            opening = [{"role": "system", "content": question.system}] if question.system else []
            conversations.append([*opening, {"role": "user", "content": question.question}])
        with ThreadPoolExecutor(at_once) as threads:
            return list(threads.map(self.answer, conversations))

    def stream(self, messages: list[dict], temperature: float = 0, top_p: float = 1,
               max_tokens: int = chat.MAX_NEW_TOKENS) -> Iterator[str]:
        """Yields the answer to a conversation again and again as it grows; who stops reading stops the writing."""
        answer = ""
        with self._errors_explained(), self._ask(messages, max_tokens=max_tokens, temperature=temperature, top_p=top_p,
                                       stream=True) as pieces:
            for piece in pieces:
                if text := piece.choices and piece.choices[0].delta.content:
                    answer += text
                    yield answer

    def _ask(self, messages, **options):
        plain = [message | {"content": models.plain(self.tokenizer, message["content"])} for message in messages]
        return self.client.chat.completions.create(model=self.model, messages=plain, **options)

    @contextmanager
    def _errors_explained(self):
        """Turns an error between us and the server into a sentence that says what to do."""
        try:
            yield
        except openai.APIConnectionError as error:
            raise ServerError(f"连不上 {self.url}：服务没有开，或者中途断了。请重新启动它，再问一次。") from error
        except openai.APIError as error:
            raise ServerError(f"{self.url} 的服务说：{error.message}。对话太长就重新开始一个；"
                              "别的原因请看服务的日志。") from error


def answers_of(place: str | Path, questions: list[Question], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The answers to all questions of the model in a folder or behind an address."""
    if is_address(place):
        return Server(place, tokenizer).answers(questions)
    return compare.answers_of(place, questions)


def load_answerers(places: dict[str, str | Path], tokenizer: PreTrainedTokenizerBase) -> dict[str, Callable]:
    """The page's answerer for each named place, a folder or an address."""
    loaded = page.load_answerers({name: place for name, place in places.items() if not is_address(place)})
    answerers = {}
    for name, place in places.items():  # the page shows them in this order
        answerers[name] = Server(place, tokenizer).stream if is_address(place) else loaded[name]
    return answerers


def is_address(place: str | Path) -> bool:
    """Whether a place is a server's address and not a folder."""
    return str(place).startswith(("http://", "https://"))


def _compare(options):
    before, after = _places(options.before, options.after)
    exam = profile.made_by("第 2 课", compare.WORKSPACE / "test.jsonl")
    name = options.name or profile.current().own_name
    tokenizer = _tokenizer(options)
    questions = compare.make_questions(read_samples(exam), name=name)
    rows = compare.compare(questions, answers_of(before, questions, tokenizer), answers_of(after, questions, tokenizer))
    settings = compare.settings(name)
    for side, place in (("微调前", before), ("微调后", after)):
        if is_address(place):
            settings[f"{side}的服务"] = place
    comparison = compare.Comparison(rows, provenance(before, after, exam, settings))
    print(*report.conclusions(comparison), sep="\n")
    print(f"报告：{report.write(comparison, options.out / 'report.html')}")


def _page(options):
    left, right = _places(options.left, options.right)
    answerers = load_answerers({f"左：{left}": left, f"右：{right}": right}, _tokenizer(options))
    warnings.simplefilter("ignore", DeprecationWarning)  # Gradio's, about what its version 6 will want
    blocks = page.build(answerers, page.some_questions())
    print(f"网页在 {page.serve(blocks, port=options.port)}，Ctrl-C 关掉它", flush=True)
    blocks.block_thread()


def _places(first, second):
    """Two places; those not given are the base model and lesson 06's."""
    return first or profile.current().base_model, second or profile.made_by("第 6 课", chat.MERGED)


def _tokenizer(options):
    folder = options.tokenizer or profile.made_by("第 6 课", chat.MERGED)
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=True)


@commands.command
def main() -> None:
    """The command line."""
    parser = commands.parser(__spec__, "对比和网页，模型可以在服务器上")
    choices = parser.add_subparsers(required=True, metavar="compare|page")
    comparison = choices.add_parser("compare", help="前后对比，写一份报告")
    comparison.set_defaults(run=_compare)
    _add_places(comparison, "--before", "--after")
    comparison.add_argument("--name", help="助手该怎样称呼自己（默认：基座自己的名字）")
    comparison.add_argument("--out", type=Path, default=compare.WORKSPACE / "deploy", help="报告写到哪里")
    dialogue = choices.add_parser("page", help="并排对话的网页")
    dialogue.set_defaults(run=_page)
    _add_places(dialogue, "--left", "--right")
    dialogue.add_argument("--port", type=int, default=7860, help="默认 %(default)s；0 是随便一个空闲的")
    options = parser.parse_args()
    options.run(options)


def _add_places(parser: ArgumentParser, first: str, second: str) -> None:
    """The options for two models, which both commands have."""
    parser.add_argument(first, help="模型文件夹，或者服务的地址（默认：这台机器的基座）")
    parser.add_argument(second, help="模型文件夹，或者服务的地址（默认：workspace/merged）")
    parser.add_argument("--tokenizer", help="服务器上模型的分词器在哪个文件夹（默认：workspace/merged）")


if __name__ == "__main__":
    main()
