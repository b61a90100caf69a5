"""A database for several programs at once: Chroma's own server, which alone has the folder open.

python -m helpers.retrieve.server FOLDER [--port 8000]   serves until Ctrl-C.
"""
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import chromadb
import httpx

from helpers.machine import commands, process, profile
from helpers.machine.ports import find_port
from helpers.retrieve import embeddings
from helpers.retrieve.database import Database, alone, check, seal_again, settings
from helpers.retrieve.embeddings import Embedding

HOST = "127.0.0.1"  # nobody else on the network can ask
PORT = 8000
CHROMA = Path(sys.executable).with_name("chroma")


@contextmanager
def serve(folder: str | Path, embedding: Embedding, port: int = 0) -> Iterator[str]:
    """Serves the database in a folder while the block lasts and gives its address; port 0 is any free one."""
    folder = Path(folder).resolve()
    port = find_port(HOST, port)
    with alone(folder) as lock:
        check(folder, embedding)
        server = process.start([CHROMA, "run", "--path", folder, "--host", HOST, "--port", port],
                               env=profile.environment(), stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT,
                               pass_fds=[lock.fileno()])
        try:
            url = f"http://{HOST}:{port}"
            _wait(server, url)
            yield url
        finally:
            process.stop(server)
            seal_again(folder)


def connect(url: str, embedding: Embedding) -> Database:
    """The database behind an address, which others may be asking at the same time."""
    address = httpx.URL(url)
    return Database(chromadb.HttpClient(address.host, address.port, settings=settings()), embedding)


def _wait(server, url):
    """Waits until a server answers; raises Failed if it ends before."""
    while server.poll() is None:
        with suppress(httpx.TransportError):
            httpx.get(f"{url}/api/v2/heartbeat", trust_env=False).raise_for_status()
            return
        time.sleep(0.1)
    last_line = (server.stdout.read().strip().splitlines() or ["什么也没有输出"])[-1]
    raise process.Failed(f"Chroma 的服务没有启动：{last_line[:300]}。修复：先用 build 建好数据库，再试一次。")


@commands.command
def main() -> None:
    """The command line."""
    parser = commands.parser("给一个向量数据库开服务，几个程序可以同时问它")
    parser.add_argument("folder", type=Path, help="build 建好的数据库")
    parser.add_argument("--port", type=int, default=PORT, help="默认 %(default)s；0 是随便一个空闲的")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with serve(arguments.folder, embeddings.current(), arguments.port) as url:
            print(f"服务在 {url}，Ctrl-C 关掉它", flush=True)
            signal.pause()
    except KeyboardInterrupt:
        print("服务关了")


if __name__ == "__main__":
    main()
