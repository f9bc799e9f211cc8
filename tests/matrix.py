"""Runs the tests on each PostgreSQL that pgcoord supports, in containers; says so if it cannot.

`python tests/matrix.py [VERSION]…`; the exit status is 0 unless the tests fail on one of them.
"""

import os
import subprocess
import sys

import docker
from docker.errors import DockerException

VERSIONS = ("14", "15", "16", "17", "18")


def main(versions: list[str]) -> int:
    try:
        docker.from_env(timeout=2).ping()
    except DockerException as error:
        reason = str(error).splitlines()[0]
        print(f"skipped: no Docker engine answers, so no other PostgreSQL was tried ({reason})")
        return 0
    failed = [version for version in versions or VERSIONS if not passes(version)]
    print(f"PostgreSQL {', '.join(failed)}: failed" if failed else "all passed")
    return 1 if failed else 0


def passes(version: str) -> bool:
    """Run the tests on a server of this version, which lives as long as they take."""
    from testcontainers.community.postgres import PostgresContainer

    print(f"PostgreSQL {version}", flush=True)
    image = PostgresContainer(f"postgres:{version}", driver=None)
    with image.with_command("postgres -c fsync=off") as server:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-n", "2", "-m", "not scale"],
            env={**os.environ, "PGCOORD_TEST_DSN": server.get_connection_url()},
        )
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
