"""The reference says what the code reads: nothing is missing, and nothing is dead."""

import ast
from collections.abc import Iterator
from pathlib import Path

from pgcoord import errors, judge
from pgcoord.commands import reference, running
from pgcoord.commands.doctor import EXIT_STATUSES
from pgcoord.configuration.reading import known_keys
from pgcoord.runs import job

ROOT = Path(__file__).parents[2]


def rows() -> Iterator[tuple[str, str, str]]:
    for _, tables in reference.TOPICS.values():
        for table in tables():
            for first, *_, meaning in table.rows:
                yield table.title, first, meaning


def test_the_reference_page_follows_from_the_code() -> None:
    page = (ROOT / "docs" / "reference.md").read_text()
    assert page == reference.markdown(), "renew it: make reference"


def test_each_key_variable_and_status_has_its_words() -> None:
    actual = list(rows())
    assert len(actual) > 150
    assert [each for each in actual if not each[2]] == [], (
        "say in pgcoord/reference.toml what it is"
    )


def test_the_reference_describes_no_removed_item() -> None:
    said = reference.words()
    keys: dict[str, set[str]] = {}
    for name, readers in known_keys().items():
        keys.setdefault(name.partition(".")[0], set()).update(readers)
    assert {name: set(words) for name, words in said["toml"].items()} == keys
    shown = {first for _, first, _ in rows()}
    assert set(said["sqlstate"]) <= shown
    assert {f"{{{name}}}" for name in said["placeholder"]} <= shown
    assert {name.capitalize() for name in said["plan"]} <= shown
    named = {name for group in said["environment"].values() for name in group}
    assert {name for name in named if name.startswith("PGCOORD_")} == reference.variables()


def test_keys_that_take_a_file_are_not_described_as_folders() -> None:
    table = {
        (table.title, row[0]): row[1]
        for _, tables in reference.TOPICS.values()
        for table in tables()
        for row in table.rows
    }
    called = {key for key, takes in table.items() if takes.startswith("a file such as")}
    assert called == {
        ("[planner]", "template"),
        ("[github]", "private_key_file"),
        ("[pool.kubernetes]", "template"),
        ("[pool.kubernetes]", "kubeconfig"),
        ("[schedule.NAME]", "plan"),
    }
    assert ("Placeholders", "{param.NAME}") in table


def test_the_reference_has_each_exit_status() -> None:
    module = ast.parse(Path(errors.__file__).read_text())
    classes = [getattr(errors, each.name) for each in module.body if isinstance(each, ast.ClassDef)]
    statuses = {each.exit_status for each in classes} | set(EXIT_STATUSES.values())
    statuses |= {128 + number for number in running._SIGNALS} | {judge.TRY_LATER, job.REFUSED}
    assert {str(each) for each in statuses} <= set(reference.words()["exit"])
