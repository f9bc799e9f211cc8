"""Each rule of the database stands once, and a long function says why it is long."""

import re
from pathlib import Path

from pgcoord import assets

FUNCTIONS = sorted((assets.SQL / "functions").glob("*.sql"))
PYTHON = sorted(Path(__file__).parents[2].joinpath("pgcoord").rglob("*.py"))


def statements_of(path: Path) -> str:
    """What a file says without comments and quotes of Python, each blank once, in lower case."""
    text = re.sub(r"--.*$|[\"\\]", " ", path.read_text(), flags=re.MULTILINE)
    return re.sub(r"\s+", " ", text).lower()


def test_only_the_view_claimable_holds_the_predicate_of_claims() -> None:
    # The two conditions that nothing else has together, in either order.
    retry, held = r"retry_at is null", r"not (?:\w+\.)?held"
    rule = re.compile(rf"{retry}.{{0,60}}\b{held}\b|\b{held}\b.{{0,60}}{retry}")
    actual = [path.name for path in (*FUNCTIONS, *PYTHON) if rule.search(statements_of(path))]
    assert actual == ["20_claimable.sql"]


def test_the_states_in_which_a_phase_has_ended_are_listed_once() -> None:
    ended = re.compile(r"in \((?:'(?:completed|failed|cancelled)'(?:, )?){3}\)")
    actual = [path.name for path in (*FUNCTIONS, *PYTHON) if ended.search(statements_of(path))]
    assert actual == ["11_states.sql"]


def test_python_and_the_panel_list_states_in_one_module() -> None:
    ended = r"(?:completed|failed|cancelled)"
    listed = re.compile(rf'[(\[]"(?:{ended}", "{ended}", "{ended}|ready", "running)"[)\]]')
    templates = sorted(assets.WEB.rglob("*.html"))
    actual = [path.name for path in (*PYTHON, *templates) if listed.search(path.read_text())]
    assert actual == ["states.py"]


def test_a_function_of_more_than_sixty_lines_states_the_reason() -> None:
    function = re.compile(
        r"(?P<head>(?:^--.*\n)*)(?P<body>^create or replace function (?P<name>[\w.]+)"
        r"(?s:.*?)^(?:end(?: \$\$)?;|\$\$;|return [^;]*;))",
        re.MULTILINE,
    )
    unexplained = [
        each["name"]
        for path in FUNCTIONS
        for each in function.finditer(path.read_text())
        if each["body"].count("\n") >= 60 and "Long" not in each["head"]
    ]
    assert unexplained == []
