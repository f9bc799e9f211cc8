"""DBOS, as a peer (peers.py): `setup`, `work` or `client` on a database."""

import sys
import threading
import time

from dbos import DBOS, DBOSClient
from protocol import Marks


def setup(dsn: str) -> None:
    DBOS(config={"name": "peer", "system_database_url": dsn, "run_admin_server": False})
    DBOS.launch()
    DBOS.destroy()


def work(dsn: str, fifo: str) -> None:
    marks = Marks(fifo)
    DBOS(
        config={
            "name": "peer",
            "system_database_url": dsn,
            "run_admin_server": False,
            "application_version": "1",
        }
    )

    @DBOS.workflow(name="job")
    def job(number: str) -> None:
        marks.put(number)

    DBOS.launch()
    DBOS.register_queue("jobs", worker_concurrency=3, polling_interval_sec=0.1)
    threading.Event().wait()


def client(dsn: str) -> None:
    client = DBOSClient(system_database_url=dsn)
    print("ready", flush=True)
    for line in sys.stdin:
        verb, argument = line.split()
        numbers = [argument] if verb == "one" else [str(each) for each in range(int(argument))]
        begun = time.monotonic_ns()
        for number in numbers:
            client.enqueue(
                {"queue_name": "jobs", "workflow_name": "job", "app_version": "1"}, number
            )
        print(begun, time.monotonic_ns(), flush=True)


VERBS = {"setup": setup, "work": work, "client": client}

if __name__ == "__main__":
    VERBS[sys.argv[1]](*sys.argv[2:])
