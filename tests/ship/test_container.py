"""The Dockerfile's steps, run in an empty root without a container engine: read-only, by nobody, without a home."""

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest
from packaging.utils import canonicalize_name
from psycopg.conninfo import conninfo_to_dict
from tests.kit import free_port, relayed, until
from tests.process.bare import index_of_wheels
from tests.process.place import Place
from tests.ship.judges import ROOT, judged

from genctl import __version__

DOCKERFILE = ROOT / "Dockerfile"
MOST_BYTES = 65_000_000  # of what is copied onto the base, which is about 130 MB: 200 MB in all
TO_FOLLOW = (
    "/usr",
    "/lib",
    "/lib64",
    "/bin",
    "/etc",
    "/dev",
    "/proc",
    sys.base_prefix,
)  # stands for the base
JAIL = """
set -e
root=$1 user=$2; shift 2
mount --bind $root $root
for part in {parts}; do
  if [ -L $part ]; then ln -sfn $(readlink $part) $root$part; continue; fi
  mkdir -p $root$part && mount --rbind $part $root$part
done
mount -o remount,ro,bind $root
exec chroot $root setpriv --reuid=${{user%:*}} --regid=${{user#*:}} --clear-groups --no-new-privs "$@"
"""


class Instruction(NamedTuple):
    """One of a Dockerfile; `stage` counts from 0."""

    stage: int
    word: str
    rest: str

    @property
    def argv(self) -> list[str]:
        """The words of the exec form, which starts no shell."""
        words: list[str] = json.loads(self.rest[self.rest.index("[") :])
        return words


def instructions() -> list[Instruction]:
    """Of the Dockerfile, with lines that go on joined."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    stage, found = -1, []
    for line in filter(None, "\n".join(lines).replace("\\\n", " ").splitlines()):
        word, _, rest = line.strip().partition(" ")
        stage += word == "FROM"
        found.append(Instruction(stage, word, " ".join(rest.split())))
    return found


def the(word: str, stage: int = 1) -> Instruction:
    """The only instruction of this kind in a stage."""
    (one,) = [one for one in instructions() if (one.stage, one.word) == (stage, word)]
    return one


class Image(NamedTuple):
    """The file system that the last stage adds to its base."""

    root: Path

    def size_bytes(self) -> int:
        files = [path.lstat() for path in (self.root / "opt").rglob("*") if not path.is_dir()]
        return sum(one.st_size for one in files)


@pytest.fixture(scope="module")
def image(dist: Path) -> Iterator[Image]:
    """Every step of the first stage as it is written, in a folder; then what the last stage copies of it."""
    if subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode:
        pytest.skip("unshare may not make a mount namespace here: run it as root")
    with TemporaryDirectory() as name:
        building, root, index = Path(name) / "build", Path(name) / "root", index_of_wheels(Path(name))
        root.parent.chmod(0o755)
        folder = building
        tools = f"{ROOT}/.venv/bin:{Path(sys.executable).parent}:/usr/bin:/bin"
        for step in (one for one in instructions() if one.stage == 0):
            match step.word:
                case "WORKDIR":
                    folder = building / step.rest.lstrip("/")
                    folder.mkdir(parents=True)
                case "COPY":
                    *sources, _ = step.rest.split()
                    for source in sources:
                        there = dist.glob(source.removeprefix("dist/")) if "dist/" in source else [ROOT / source]  # fmt: skip
                        for path in there:
                            shutil.copy(path, folder)
                case "RUN":
                    env = {"PATH": tools, "HOME": name, **index}
                    done = subprocess.run(["sh", "-ec", step.rest], cwd=folder, env=env, capture_output=True, text=True, check=False)  # fmt: skip
                    assert done.returncode == 0, done.stdout + done.stderr
        copied = the("COPY").rest.removeprefix("--from=build ").split()
        shutil.copytree(building / copied[0].lstrip("/"), root / copied[1].lstrip("/"), symlinks=True)
        program = root / copied[1].lstrip("/") / "bin/genctl"  # its first line names where it was built
        program.write_text(program.read_text().replace(str(building), ""))
        yield Image(root)


class Ran(NamedTuple):
    """What a program that has ended said."""

    code: int
    out: str
    err: str


class Container:
    """A process in the image as an engine would start it: its own pid 1, and no environment but this."""

    def __init__(self, image: Image, env: dict[str, str]) -> None:
        self.image = image
        path = the("ENV").rest
        settings = dict(word.split("=", 1) for word in shlex.split(path))
        self.env = (
            env
            | settings
            | {"PATH": settings["PATH"].replace("$PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/bin")}
        )

    @asynccontextmanager
    async def start(self, *args: str) -> AsyncIterator[asyncio.subprocess.Process]:
        jail = JAIL.format(parts=" ".join(TO_FOLLOW))
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", jail, "jail"]
        process = await asyncio.create_subprocess_exec(
            *command, str(self.image.root), the("USER").rest, *the("ENTRYPOINT").argv, *args,
            env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def run(self, *args: str) -> Ran:
        async with self.start(*args) as process:
            out, err = await process.communicate()
            return Ran(process.returncode or 0, out.decode(), err.decode())


async def listens(port: int) -> bool:
    """Whether anybody does on this machine."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


def test_hadolint_has_nothing_against_the_dockerfile() -> None:
    judged("hadolint", str(DOCKERFILE))


def test_the_base_is_pinned_and_the_last_stage_compiles_nothing_and_is_nobody() -> None:
    bases = [one.rest.split()[0] for one in instructions() if one.word == "FROM"]
    assert all(re.fullmatch(r"python:3\.11\.\d+-[a-z-]+", base) for base in bases)
    assert bases[1].replace("-slim", "") == bases[0], "the same Python, or the environment finds none"
    assert [one.word for one in instructions() if one.stage == 1 and one.word == "RUN"] == []
    assert int(the("USER").rest.split(":")[0]) > 0
    assert the("ENTRYPOINT").argv == ["genctl"]


def test_what_the_build_gets_is_the_wheel_and_the_constraints() -> None:
    assert (ROOT / ".dockerignore").read_text().splitlines() == ["*", "!constraints.txt", "!dist/*.whl"]


def test_the_image_stays_below_200_mb(image: Image) -> None:
    assert image.size_bytes() < MOST_BYTES, image.size_bytes()


def test_the_bill_of_materials_names_what_is_in_it_by_the_versions_of_the_tests(image: Image) -> None:
    """`make sbom` makes it of the same wheel, of an environment that is made in the same way."""
    how = ("environment", "--no-validate", "--output-reproducible")
    bill = json.loads(judged("cyclonedx-py", *how, str(image.root / "opt/genctl/env/bin/python")))
    named = {canonicalize_name(one["name"]): one["version"] for one in bill["components"]}
    there = (image.root / "opt").rglob("*.dist-info")
    packages = dict(path.name.removesuffix(".dist-info").rsplit("-", 1) for path in there)
    held: dict[str, str] = {canonicalize_name(name): version for name, version in packages.items()}
    assert named == held
    assert held.pop("genctl") == __version__
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert held.items() <= pinned.items()


async def test_worker_and_api_run_read_only_by_nobody_without_a_home_and_heed_sigterm_as_process_1(
    image: Image, place: Place
) -> None:
    session = await asyncio.to_thread(place.enqueue, "sensitive-text")
    place.make_real()
    async with relayed(place.dsn) as (dsn, _):
        url = "postgresql://{user}:{password}@{host}:{port}/{dbname}".format(**conninfo_to_dict(dsn))
        env = {
            name: text for name, text in place.env.items() if name.startswith(("AWS_", "ARK_", "GENCTL_Q"))
        }
        container = Container(image, env | {"DATABASE_URL": url, "GENCTL_SECRET": "x" * 32})
        assert (await container.run("migrate")).code == 0
        for service in (["worker", "--metrics-port"], ["serve", "--port"]):
            port = str(free_port())
            command = [port if word.isdecimal() else word for word in the("HEALTHCHECK").argv[1:]]
            async with container.start(*service, port) as process:
                await until(partial(listens, int(port)))
                assert (await container.run(*command)).code == 0
                if "worker" in service:
                    await until(lambda: asyncio.to_thread(lambda: place.row(session)["status"] == "failed"))
                (first,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
                os.kill(int(first), signal.SIGTERM)
                _, said = await process.communicate()
                assert process.returncode == 0, said
