"""Lesson 08's comparison and lesson 07's web page, asking servers that speak OpenAI's protocol instead of loading.

python -m helpers.served compare [--before PLACE] [--after PLACE] [--tokenizer FOLDER] [--out FOLDER]
python -m helpers.served page [--left PLACE] [--right PLACE] [--tokenizer FOLDER] [--port 7860]
A PLACE is a model folder, or the address of a server (llama.cpp, LMDeploy, vLLM), such as http://127.0.0.1:8080/v1.
"""
import argparse
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import openai
from transformers import AutoTokenizer

from helpers import chat, compare, page, probe, profile, report
from helpers.split import read_samples

AT_ONCE = 16  # questions on their way to a server
MAX_TOKENS = 96  # of an answer in the comparison, as in probe.ask


class ServerError(RuntimeError):
    """A server that does not answer: why, and what to do."""


class Server:
    """A model behind an address; `tokenizer` is its own, so that no text forges a turn: servers do not look."""

    def __init__(self, url, tokenizer):
        self.url, self.tokenizer = url, tokenizer
        self.client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        with self._spoken():
            self.model = self.client.models.list().data[0].id

    def answer(self, messages, max_tokens=MAX_TOKENS):
        """The likeliest answer to a conversation."""
        with self._spoken():
            done = self._ask(messages, max_tokens=max_tokens, temperature=0)
        return done.choices[0].message.content.strip()

    def stream(self, messages, temperature=0, top_p=1, max_tokens=chat.MAX_NEW_TOKENS):
        """Yields the answer to a conversation again and again as it grows; who stops reading stops the writing."""
        answer = ""
        with self._spoken(), self._ask(messages, max_tokens=max_tokens, temperature=temperature, top_p=top_p,
                                       stream=True) as pieces:
            for piece in pieces:
                if text := piece.choices and piece.choices[0].delta.content:
                    answer += text
                    yield answer

    def _ask(self, messages, **options):
        plain = [message | {"content": probe.plain(self.tokenizer, message["content"])} for message in messages]
        return self.client.chat.completions.create(model=self.model, messages=plain, **options)

    @contextmanager
    def _spoken(self):
        """Says in a sentence what goes wrong between us and the server."""
        try:
            yield
        except openai.APIConnectionError as error:
            raise ServerError(f"连不上 {self.url}：服务没有开，或者中途断了。请重新启动它，再问一次。") from error
        except openai.APIError as error:
            raise ServerError(f"{self.url} 的服务说：{error.message}。对话太长就重新开始一个；"
                              "别的原因请看服务的日志。") from error


def from_server(url, tokenizer, at_once=AT_ONCE):
    """What answers the comparison's questions with the model behind an address, so many of them at the same time."""
    server = Server(url, tokenizer)

    def answer(question):
        opening = [{"role": "system", "content": question.system}] if question.system else []
        return server.answer([*opening, {"role": "user", "content": question.question}])

    def answers(questions):
        with ThreadPoolExecutor(at_once) as threads:
            return list(threads.map(answer, questions))
    return answers


def answerer(place, tokenizer):
    """What answers the comparison's questions with the model in a folder or behind an address."""
    return from_server(place, tokenizer) if is_address(place) else compare.from_folder(place)


def load_answerers(places, tokenizer, gpu):
    """The page's answerer for each named place, a folder or an address."""
    folders = {name: place for name, place in places.items() if not is_address(place)}
    loaded = page.load_answerers(folders, gpu)
    return {name: loaded.get(name) or Server(place, tokenizer).stream for name, place in places.items()}


def is_address(place):
    """Whether a place is a server's address and not a folder."""
    return str(place).startswith(("http://", "https://"))


def _compare(options):
    before, after = _places(options.before, options.after)
    exam = profile.made_by("第 2 课", compare.WORKSPACE / "test.jsonl")
    name, tokenizer = options.name or profile.current().own_name, _tokenizer(options)
    rows = compare.compare(answerer(before, tokenizer), answerer(after, tokenizer),
                           compare.questions(read_samples(exam), name=name))
    made = compare.provenance(Path(before), Path(after), exam, name)
    made["settings"] |= {f"{side}的服务": place for side, place in (("微调前", before), ("微调后", after))
                         if is_address(place)}
    comparison = compare.Comparison(rows, made)
    print(*report.conclusions(comparison), sep="\n")
    print(f"报告：{report.write(comparison, options.out / 'report.html')}")


def _page(options):
    left, right = _places(options.left, options.right)
    answerers = load_answerers({f"左：{left}": left, f"右：{right}": right}, _tokenizer(options), profile.current().gpu)
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


def main():
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m helpers.served", description="对比和网页，模型可以在服务器上")
    commands = parser.add_subparsers(required=True, metavar="compare|page")
    comparison = commands.add_parser("compare", help="前后对比，写一份报告")
    comparison.add_argument("--name", help="助手该怎样称呼自己（默认：基座自己的名字）")
    comparison.add_argument("--out", type=Path, default=compare.WORKSPACE / "deploy", help="报告写到哪里")
    dialogue = commands.add_parser("page", help="并排对话的网页")
    dialogue.add_argument("--port", type=int, default=7860, help="默认 %(default)s；0 是随便一个空闲的")
    for command, run, sides in ((comparison, _compare, ("--before", "--after")),
                                (dialogue, _page, ("--left", "--right"))):
        command.set_defaults(run=run)
        for side, default in zip(sides, ("这台机器的基座", "workspace/merged")):
            command.add_argument(side, help=f"模型文件夹，或者服务的地址（默认：{default}）")
        command.add_argument("--tokenizer", help="服务器上模型的分词器在哪个文件夹（默认：workspace/merged）")
    options = parser.parse_args()
    try:
        options.run(options)
    except (OSError, ServerError, profile.ProfileError) as error:
        sys.exit(f"[FAIL] {error}")


if __name__ == "__main__":
    main()
