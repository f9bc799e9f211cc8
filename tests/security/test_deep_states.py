"""A bounded fuzz that goes deep: two thousand creations and actions by all interfaces, mixed.

Whatever state they lead to, no request is answered with 5xx, each refusal says its reason, every
page and list can be read, and the tables follow from each other (`support.mixed_load.faults`).
"""

import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest
from support.database import Connection, add_phase, claim, start
from support.mixed_load import faults
from support.serving import Site, served

from pgcoord.actions import ACTIONS, Action

API = "/api/v1"
DEEP = 2_000
TEXTS = ("a", "…", "a\nb", "<b>\"&'", "%s {prompt}", "x" * 900, "\x1b[31mred", "🙂" * 40)
READ = (
    *("/", "/history", "/features/new", "/readyz", "/metrics", "/history.csv", "/history.json"),
    *(f"{API}/queue", f"{API}/planned-features", f"{API}/slots"),
)


@pytest.fixture
async def site(dsn: str, tmp_path: Path) -> AsyncIterator[Site]:
    async with served(dsn, tmp_path, leads=False, patience=3000) as site:
        yield site


class Walk:
    """Random steps over HTTP, by SQL as a client, and as the coordinator."""

    def __init__(self, site: Site, conn: Connection, epoch: int, seed: int) -> None:
        self.site, self.conn, self.epoch = site, conn, epoch
        self.dice = random.Random(seed)
        conn.execute("select setseed(%s)", [seed / 100])
        self.succeeded: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    async def take_step(self) -> None:
        steps = [self.create, self.change, self.execute, self.act, self.report, self.insert]
        weights = [4, 2, 3, 14, 8, 3]
        if self.dice.random() < 0.3:
            self.coordinate()
        await self.dice.choices(steps, weights)[0]()

    def coordinate(self) -> None:
        """Claim, and start what was claimed, or let a process exit."""
        for queue_id in claim(self.conn, self.epoch):
            if self.dice.random() < 0.8:
                start(self.conn, self.epoch, queue_id)
        row = self.conn.execute(
            "select id from pgcoord.attempt where ended_at is null order by random() limit 1"
        ).fetchone()
        if row and self.dice.random() < 0.5:
            self.conn.execute(
                "select pgcoord_private.end_attempt(%s, %s)",
                [row["id"], self.dice.choice((0, 0, 1, 137))],
            )

    async def create(self) -> None:
        body = {"title": self.text() or "a", "phases": self.phases(), "priority": self.priority()}
        execute = self.dice.choice(("true", "false"))
        await self.request("POST", f"{API}/planned-features?execute={execute}", "create", body)

    async def schedule(self) -> str:
        """The name of the one schedule, which is made where it was deleted."""
        body = {
            "name": "s",
            "cron": "0 3 * * *",
            "feature": {"title": "a", "phases": self.phases()},
        }
        await self.request("POST", f"{API}/schedules", "schedule", body)
        return "s"

    async def change(self) -> None:
        changes: dict[str, Any] = {
            "title": self.text(),
            "description": self.text(),
            "tags": [self.text()] * 3,
        }
        if self.dice.random() < 0.3:
            changes["phases"] = self.phases()
        names = self.dice.sample(sorted(changes), 2)
        path = f"{API}/planned-features/{self.feature()}"
        await self.request("PATCH", path, "change", {name: changes[name] for name in names})

    async def execute(self) -> None:
        path = f"{API}/planned-features/{self.feature()}/execute"
        await self.request("POST", path, "execute", None)

    def missing(self) -> set[str]:
        """The steps of which none has succeeded so far."""
        names = {action.name for action in ACTIONS} | {"create", "change", "execute", "report"}
        return names - set(self.succeeded)

    async def act(self) -> None:
        action = self.dice.choice(ACTIONS)
        if action.scope == "all" and self.dice.random() < 0.7:
            return
        target: object = self.queue_id() if action.scope == "phase" else self.feature()
        if action.scope == "schedule":
            target = await self.schedule()
        if action.name in ("pause", "set_slots"):
            await self.set_control(action)
        elif self.dice.random() < 0.5:
            at = {
                "phase": f"queue/{target}",
                "feature": f"planned-features/{target}",
                "all": "queue",
                "schedule": f"schedules/{target}",
            }
            path = f"{API}/{at[action.scope]}/{action.slug}"
            await self.request("POST", path, action.name, self.arguments(action))
        else:
            await self.act_by_panel(action, target)

    async def act_by_panel(self, action: Action, target: object) -> None:
        at = f"/features/{target}"
        if action.scope == "phase":
            _, feature, number = str(target).split("-")
            at = f"/features/{feature}/phases/{number}"
        elif action.scope == "schedule":
            at = f"/schedules/{target}"
        path = f"{'' if action.scope == 'all' else at}/{action.slug}"
        form = {name: str(value) for name, value in (self.arguments(action) or {}).items()}
        answer = await self.site.client.post(path, data=form)
        self.count(action.name, answer, redirects=True)

    async def set_control(self, action: Action) -> None:
        """Pause everything, for one step only; or change the slots."""
        if action.name == "pause":
            await self.request("POST", f"{API}/queue/pause", "pause", {"reason": "a"})
            await self.request("POST", f"{API}/queue/resume", "resume", None)
        else:
            slots = self.dice.randint(1, 12)
            await self.request("PUT", f"{API}/slots", "set_slots", {"slots": slots})

    async def report(self) -> None:
        row = self.conn.execute(
            "select adw_id, queue_id from pgcoord.attempt"
            " order by ended_at is not null, random() limit 1"
        ).fetchone()
        if row is None:
            return
        body = {
            "adw_id": row["adw_id"],
            "queue_id": row["queue_id"],
            "status": self.dice.choice(("completed", "failed", "failed", "nonsense")),
            "error": self.text(),
        }
        answer = await self.site.report(body)
        self.count("report", answer)

    async def insert(self) -> None:
        """A phase by SQL, behind some of its feature."""
        feature = self.feature()
        row = self.conn.execute(
            "select coalesce(max(phase_number), 0) as last from phase_queue where feature_id = %s",
            [feature],
        ).fetchone()
        last = row["last"] if row else 0
        behind = sorted({self.dice.randint(1, last) for _ in range(2)}) if last else []
        try:
            add_phase(self.conn, feature, last + 1, behind)
            self.succeeded["insert"] += 1
        except psycopg.Error as error:
            if not str(error.sqlstate).startswith("PC"):
                raise
            self.refused["insert"] += 1

    async def read_all(self) -> None:
        """Read every page and list, and one feature and phase each in full."""
        feature, queue_id = self.feature(), self.queue_id()
        number = queue_id.rpartition("-")[2]
        of = queue_id.split("-")[1]
        paths = [
            *READ,
            *(f"/features/{feature}", f"/features/{feature}/plan"),
            *(f"/features/{of}/phases/{number}", f"{API}/planned-features/{feature}"),
            *(f"{API}/queue/{queue_id}", f"{API}/queue/{queue_id}/why"),
            *(f"{API}/schedules", "/schedules/s"),
        ]
        for path in paths:
            answer = await self.site.client.get(path, follow_redirects=True)
            assert answer.status_code < 500, (path, answer.text)
        assert faults(self.conn) == []

    async def request(self, method: str, path: str, name: str, body: object) -> None:
        answer = await self.site.client.request(method, path, json=body)
        self.count(name, answer)

    def count(self, name: str, answer: httpx2.Response, *, redirects: bool = False) -> None:
        assert answer.status_code < 500, (name, answer.request.url, answer.text)
        if answer.is_success or (redirects and answer.is_redirect):
            self.succeeded[name] += 1
        else:
            self.refused[name] += 1
            if "json" in answer.headers["content-type"]:
                assert answer.json()["reason"]

    def arguments(self, action: Action) -> dict[str, Any] | None:
        if action.number == "priority":
            return {"priority": self.priority()}
        return {"reason": self.text()} if "reason" in action.arguments else None

    def phases(self) -> list[dict[str, Any]]:
        many = self.dice.randint(1, 6)
        return [
            {
                "phase_number": number,
                "title": self.text(),
                "prompt_content": self.text(),
                "depends_on_phases": [n for n in range(1, number) if self.dice.random() < 0.4],
                "priority": self.priority(),
                "max_attempts": self.dice.choice((None, 1, 3)),
                "gate": self.dice.choice((None, None, None, "may it?")),
            }
            for number in range(1, many + 1)
        ]

    def priority(self) -> int:
        return self.dice.randint(0, 100)

    def text(self) -> str:
        return self.dice.choice(TEXTS)

    def feature(self) -> int:
        row = self.conn.execute(
            "select id from planned_features order by random() limit 1"
        ).fetchone()
        return int(row["id"]) if row else 1

    def queue_id(self) -> str:
        row = self.conn.execute(
            "select queue_id from phase_queue order by status = 'completed', random() limit 1"
        ).fetchone()
        return str(row["queue_id"]) if row else "queue-1-1"


@pytest.mark.scale
@pytest.mark.timeout(3600)
async def test_two_thousand_random_changes_leave_all_readable(
    site: Site, conn: Connection, epoch: int
) -> None:
    walk = Walk(site, conn, epoch, seed=14)
    read_at = 0
    await walk.create()
    while (done := walk.succeeded.total()) < DEEP or (walk.missing() and done < 2 * DEEP):
        await walk.take_step()
        if done >= read_at:
            await walk.read_all()
            read_at += 100
    await walk.read_all()
    assert walk.missing() == set()
