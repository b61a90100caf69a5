"""llama.cpp's own server, which speaks OpenAI's protocol: for a GGUF file, in a process of its own.

python -m helpers.deploy.llama_server MODEL.gguf [--port 8080] [--parallel 4] [--ctx 2048]   serves until Ctrl-C.
"""
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import xllamacpp

from helpers.machine import commands, process, profile
from helpers.machine.ports import find_port

HOST = "127.0.0.1"  # nobody else on the network can ask
PORT, PARALLEL, CONTEXT = 8080, 4, 2048
SMALL = 2**28  # bytes: up to here threads wait for each other longer than they work
LLAMA_CPPS_CHOICE = -1
ERROR = re.compile(r"^\S+ E (.+)$", re.M)  # llama.cpp's way of logging one


@contextmanager
def serve(model: str | Path, port: int = 0, parallel: int = PARALLEL, ctx: int = CONTEXT,
          threads: int = 0) -> Iterator[str]:
    """Serves a GGUF file while the block lasts and gives the address for OpenAI clients; port 0 is any free one.

    Answers `parallel` conversations at the same time, each of at most `ctx` tokens (never more than the model knows),
    with so many threads; 0 is as many as suit the model. What it logs stays beside the model only if something failed.
    """
    model = _existing(model)
    port = find_port(HOST, port)
    log = model.with_suffix(f".{port}.log")  # another kernel may serve the same model
    command = [sys.executable, "-m", __spec__.name, model, "--port", port, "--parallel", parallel, "--ctx", ctx,
               "--threads", threads]
    with log.open("w", encoding="utf-8") as kept:
        server = process.start(command, env=profile.environment(), stdin=subprocess.DEVNULL, stderr=kept)
    try:
        if not server.stdout.readline():  # it says one line when it can be asked
            raise process.Failed(_why(log))
        yield address(port)
    finally:
        process.stop(server)
    log.unlink()


def address(port: int) -> str:
    """Where an OpenAI client finds a server of this machine."""
    return f"http://{HOST}:{port}/v1"


def log_probabilities(url: str, ids: list[int]) -> list[float]:
    """For every token of the vocabulary the logarithm of its probability after these, asked of a server."""
    with httpx.Client(base_url=url.removesuffix("/v1"), timeout=600) as client:
        vocabulary = client.get("/v1/models").json()["data"][0]["meta"]["n_vocab"]
        letter = client.post("/tokenize", json={"content": "a"}).json()["tokens"][-1]
        # Whatever it thinks, it must write a letter: of a token that writes nothing yet it would not tell a thing.
        answer = client.post("/completion", json={"prompt": ids, "n_predict": 1, "n_probs": vocabulary,
                                                  "logit_bias": [[letter, 1000]]}).json()
    written = answer["completion_probabilities"][0]
    by_id = {token["id"]: token["logprob"] for token in written["top_logprobs"]}
    return [by_id[number] for number in range(vocabulary)]


def _existing(model):
    model = Path(model)
    if not model.is_file():
        raise FileNotFoundError(f"没有模型文件 {process.shown(model)}。"
                                "请先用 python -m helpers.deploy.gguf 把模型转成 GGUF，或者改正路径。")
    return model


def _why(log):
    """Why a server did not start: the first error that it logged, or else its last line."""
    logged = log.read_text(encoding="utf-8", errors="replace").strip()
    first = ERROR.search(logged)
    last_line = (logged.splitlines() or ["什么也没有输出"])[-1]
    reason = first[1] if first else last_line
    return (f"llama.cpp 的服务没有启动：{reason.strip()[:300]}。"
            f"文件坏了就重新转换；内存不够就减小 parallel 或 ctx。\n完整的日志：{process.shown(log)}")


def _parameters(model, port, parallel, ctx, threads):
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(model)
    parameters.model_alias = {model.stem}
    parameters.port = port
    parameters.n_parallel = parallel
    parameters.n_ctx = parallel * ctx
    suitable = 1 if model.stat().st_size < SMALL else LLAMA_CPPS_CHOICE
    parameters.cpuparams.n_threads = threads or suitable
    parameters.cpuparams_batch.n_threads = threads or suitable
    return parameters


@commands.command
def main() -> None:
    """The command line."""
    parser = commands.parser(__spec__, "用 llama.cpp 给一个 GGUF 模型开服务")
    parser.add_argument("model", help="GGUF 文件")
    parser.add_argument("--port", type=int, default=PORT, help="默认 %(default)s；0 是随便一个空闲的")
    parser.add_argument("--parallel", type=int, default=PARALLEL, help="同时回答几个对话，默认 %(default)s")
    parser.add_argument("--ctx", type=int, default=CONTEXT, help="每个对话最多多少词元，默认 %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="用几个 CPU 核心，默认看模型大小")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    model = _existing(options.model)
    port = find_port(HOST, options.port)
    parameters = _parameters(model, port, options.parallel, options.ctx, options.threads)
    try:
        _running = xllamacpp.Server(parameters)
        print(f"服务在 {address(port)}，Ctrl-C 关掉它", flush=True)
        signal.pause()
    except RuntimeError:
        sys.exit("[FAIL] llama.cpp 的服务没有启动，上面写着原因。")
    except KeyboardInterrupt:
        print("服务关了")


if __name__ == "__main__":
    main()
