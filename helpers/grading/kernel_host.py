"""Beside a student's kernel, in the sandbox with it: runs the cells that come in, and says what came of them.

It may be lied to or taken over by the student's code. So it knows no secret, and nothing that it says is believed.
"""
import json
import queue
import subprocess
import sys
import time

from jupyter_client import KernelManager

MOST_CHARS = 20_000  # of what a cell prints, or of any other text of a student's
SECONDS_TO_START = 60
SECONDS_TO_STOP = 5
ENDED = "内核结束了"
TOO_LONG = "超过 {} 秒，被中断"


class Kernel:
    """A kernel that runs cells, one after another."""

    def __init__(self):
        self._manager = KernelManager(transport="ipc", connection_file="/tmp/kernel.json")
        self._manager.start_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                   extra_arguments=["--HistoryManager.enabled=False"])
        self._client = self._manager.blocking_client()
        self._client.start_channels()
        self._client.wait_for_ready(SECONDS_TO_START)

    def run(self, code: str, seconds: float, expression: str = "") -> dict[str, str | None]:
        """What a cell printed, its error, and what an expression is then worth, as text; None where there is none."""
        sent = self._client.execute(code, store_history=False, allow_stdin=False,
                                    user_expressions={"value": expression} if expression else None)
        text, error = self._printed(sent, seconds)
        value = None if error else self._value(sent)
        return {"text": text, "error": error, "value": value}

    def _value(self, sent):
        """What the expression that was sent along is worth."""
        answered = self._reply(sent).get("user_expressions", {}).get("value", {})
        return answered.get("data", {}).get("text/plain")

    def _reply(self, sent):
        while True:  # after an error the reply was left where it is
            reply = self._client.get_shell_msg(timeout=SECONDS_TO_STOP)
            if reply["parent_header"].get("msg_id") == sent:
                return reply["content"]

    def _printed(self, sent, seconds):
        text, error, end = "", None, time.monotonic() + seconds
        while True:
            if time.monotonic() > end:
                if error:
                    return text, ENDED
                error, end = TOO_LONG.format(seconds), time.monotonic() + SECONDS_TO_STOP
                self._manager.interrupt_kernel()
            try:
                message = self._client.get_iopub_msg(timeout=0.2)
            except queue.Empty:
                if not self._manager.is_alive():
                    return text, ENDED
                continue
            if message["parent_header"].get("msg_id") != sent:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "error":
                error = error or f"{content['ename']}: {content['evalue']}"
            elif kind == "status" and content["execution_state"] == "idle":
                return text, error
            elif len(text) < MOST_CHARS:
                text += content.get("text") or content.get("data", {}).get("text/plain", "")
                text = text[:MOST_CHARS]


def main() -> None:
    """A request per line in, an answer per line out."""
    kernel = Kernel()
    for line in sys.stdin:
        print(json.dumps(kernel.run(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
