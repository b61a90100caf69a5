"""Lesson 11: whether a score can be trusted: answers known beforehand, blind guesses, differences by chance."""
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import NamedTuple

from scipy.stats import binom, binomtest


class Paired(NamedTuple):
    """The same questions to two models: how many only one of them got right."""

    only_first: int
    only_second: int

    @property
    def p(self) -> float:
        """How often a difference this large comes about by chance between equals: McNemar's exact test."""
        only_one = self.only_first + self.only_second
        return float(binomtest(self.only_first, only_one).pvalue) if only_one else 1.0

    def __str__(self) -> str:
        verdict = "不像是碰巧" if self.p < 0.05 else "可能只是碰巧"
        p = f"p = {self.p:.3f}" if self.p >= 0.001 else "p < 0.001"
        return f"只有前者对 {self.only_first} 题，只有后者对 {self.only_second} 题，{p}：{verdict}"


def paired(first: Iterable[bool], second: Iterable[bool]) -> Paired:
    """Two models compared on the same questions, given which of them each got right."""
    pairs = list(zip(first, second, strict=True))
    return Paired(pairs.count((True, False)), pairs.count((False, True)))


def guess_interval(total: int, options: int = 4) -> tuple[float, float, float]:
    """The share that blind guessing gets right, and between which shares it stays in 95 of 100 exams."""
    share = 1 / options
    low, high = binom.interval(0.95, total, share)
    return share, low / total, high / total


@contextmanager
def serve_answers(models: dict[str, Callable[[str], str]]) -> Iterator[str]:
    """An OpenAI-compatible server on this machine, for as long as the block lasts; gives its address.

    `models` has, by the name of a model, the function that answers a question.
    """
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = models[request["model"]](request["messages"][-1]["content"])
            body = json.dumps({
                "id": "1", "object": "chat.completion", "created": 0, "model": request["model"],
                "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": answer}}],
            }).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
