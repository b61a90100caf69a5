"""Ports of this machine: whether one can be had, and who has it."""
import errno
import socket

import psutil


def find_port(host: str, port: int) -> int:
    """The port, or for 0 a free one; raises OSError with what to do if the port cannot be had."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                message = f"端口 {port} 已经被{_listener(port)}占用。请先关掉它，或者加上 --port {port + 1} 换一个。"
            else:
                message = f"不能使用 {host}:{port}：{error.strerror}。请换一个 --host 或 --port。"
            raise OSError(message) from error
        return probe.getsockname()[1]


def _listener(port: int) -> str:
    """Who listens on a port, as far as we may know."""
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
            return f"进程 {connection.pid}（{psutil.Process(connection.pid).name()}）"
    return "别的程序"
