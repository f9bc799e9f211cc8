"""What fails where a place of a recipe (CONTRIBUTING.md) was forgotten, and nothing else says."""

import dataclasses
import inspect
import re
from pathlib import Path

from support.database import MOVES

from pgcoord import actions
from pgcoord.configuration import pools
from pgcoord.configuration.model import LOCAL
from pgcoord.coordination import engines
from pgcoord.database import panel
from pgcoord.http import api

ROOT = Path(__file__).parents[1]

# Those with a shared folder, and those without.
_OF_ENGINES = ("test_contract.py", "test_apart.py")


def test_the_design_lists_the_moves_that_the_tests_expect() -> None:
    section = (ROOT / "docs/design.md").read_text().split("\n## 4.")[1].split("\n## ")[0]
    table = section.split("| from | may become |\n|---|---|\n")[1].split("\n\n")[0]
    moves = {}
    for line in table.splitlines():
        before, after = line.strip("|").split("|")
        words = re.sub(r"\([^)]*\)", "", after)
        moves[before.strip(" `")] = set(re.findall(r"`(\w+)`", words))
    assert moves == MOVES


def test_every_engine_has_its_keys() -> None:
    declared = pools.launchers(lambda value: value)
    assert set(declared) - {LOCAL} == set(engines.LAUNCHERS)


def test_every_handler_of_the_api_is_offered() -> None:
    offered = {each.call for each in api.OPERATIONS} | {each for each, _ in api._ANSWERS.values()}
    handlers = inspect.getmembers(api, inspect.iscoroutinefunction)
    ours = {name: each for name, each in handlers if each.__module__ == api.__name__}
    assert [n for n, each in ours.items() if n[0] != "_" and each not in offered] == []


def test_every_engine_is_tested_on_a_real_one_or_a_stand_in() -> None:
    tests = "".join((ROOT / "tests/runs" / name).read_text() for name in _OF_ENGINES)
    assert [name for name in engines.LAUNCHERS if f'"{name}"' not in tests] == []


def test_every_column_that_the_panel_reads_is_shown() -> None:
    shown = "".join(
        path.read_text()
        for folder in ("web/templates", "pgcoord/http/panel")
        for path in (ROOT / folder).rglob("*.*")
        if path.suffix in (".html", ".py", ".svg", ".txt")
    )
    unused = [
        f"{name}.{field.name}"
        for name, each in inspect.getmembers(panel, dataclasses.is_dataclass)
        if each.__module__ == panel.__name__
        for field in dataclasses.fields(each)
        if not re.search(rf"\.{field.name}\b", shown)
    ]
    assert unused == []


def test_every_action_of_the_panel_has_its_button() -> None:
    templates = "".join(path.read_text() for path in (ROOT / "web/templates").rglob("*.html"))
    without = [
        each.name
        for each in actions.ACTIONS
        if each.question and not re.search(rf"/{each.verb}\b", templates)
    ]
    assert without == []
