"""Forked commands are processes like any other."""

import signal
import socket
import subprocess
from pathlib import Path

from tests.process import forks
from tests.process.forks import Forked


def test_a_signal_to_one_whose_end_is_not_told_yet_is_for_nobody() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    ours, server = socket.socketpair()
    with server:
        server.sendall(f"{ended.pid}\n".encode())
        process = Forked(ours, ["true"])
        process.send_signal(signal.SIGTERM)
        process.kill()
        server.sendall(b"0\n")
        assert process.wait(10) == 0


def test_what_is_typed_without_words_is_forked(tmp_path: Path) -> None:
    forks.program(tmp_path / "genctl")
    said = subprocess.run([tmp_path / "genctl"], check=False, capture_output=True, text=True, timeout=60)
    assert "genctl COMMAND -h" in said.stderr, said
