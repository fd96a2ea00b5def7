"""Forked commands are processes like any other."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from tests import servers
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


def test_who_is_killed_while_it_asks_costs_nobody_else_the_server(tmp_path: Path) -> None:
    """Before its first byte, in mid-word, and before it is told of its fork, which then ends unseen."""
    address = forks.servers[sys.executable]
    asked = {"argv": ["genctl", "version"], "cwd": str(tmp_path), "env": forks.surroundings()}
    whole = json.dumps(asked).encode() + b"\n"
    with Path(os.devnull).open("r+") as nothing:
        for text in (b"", whole[:1], whole[:-1], whole):
            with socket.socket(socket.AF_UNIX) as conn:
                conn.connect(address)
                if text:
                    socket.send_fds(conn, [text], [nothing.fileno()] * 3)
    with (tmp_path / "said").open("w") as said:
        alive = [sys.executable, "-m", "genctl", "version"]
        env = forks.surroundings()
        forks.spawn(alive, cwd=tmp_path, env=env, stdout=said, stderr=said).wait(30)
    assert (tmp_path / "said").read_text().startswith("genctl ")


def test_who_is_killed_while_it_asks_for_the_servers_costs_nobody_else_them() -> None:
    with socket.socket(socket.AF_UNIX) as conn:
        conn.connect(os.environ[servers.ADDRESS])
    assert servers.ask() == servers.ask()
