"""The floors of the house (docs/design.md, section 3): a module imports downward only."""

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import jinja2
import jinja2.nodes

ROOT = Path(__file__).parents[1]

# Lowest first. A module belongs to the longest of these names that begins its own.
FLOORS = (
    ("errors",),
    ("text", "assets", "judge", "__init__"),
    ("actions", "logs"),
    ("configuration",),
    ("database", "github", "plan"),
    ("messages", "planner"),
    ("coordination.launching",),  # what a launcher promises; those in runs keep it
    ("runs",),
    ("coordination",),
    ("http", "bench", "doctor", "v1"),
    ("commands",),
    ("__main__",),
)
HEIGHTS = {name: height for height, names in enumerate(FLOORS) for name in names}


def room_of(module: str) -> str:
    """The entry of FLOORS to which a module belongs, such as `http` for `http.panel.live`."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if (name := ".".join(parts[:length])) in HEIGHTS:
            return name
    raise AssertionError(f"pgcoord.{module} is on no floor: add it to FLOORS")


def imported_by(source: str) -> Iterator[str]:
    """The modules of ours that a source imports, anywhere in it, without `pgcoord.`"""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "pgcoord":
            names = [
                "pgcoord.__init__" if alias.name.startswith("__") else f"pgcoord.{alias.name}"
                for alias in node.names
            ]
        elif isinstance(node, ast.ImportFrom):
            # What is imported from a package may be a module of its own.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.removeprefix("pgcoord.") for name in names if name.startswith("pgcoord."))


def test_every_module_imports_downward_only() -> None:
    upward = []
    for path in sorted((ROOT / "pgcoord").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT / "pgcoord").with_suffix("").parts)
        room = room_of(module)
        for name in imported_by(path.read_text()):
            other = room_of(name)
            if other != room and HEIGHTS[other] >= HEIGHTS[room]:
                upward.append(f"{module} ({room}) imports {name} ({other})")
    assert upward == []


def test_an_import_against_the_floors_is_found() -> None:
    assert list(imported_by("def f():\n    from pgcoord.http import api\n")) == ["http.api"]
    assert HEIGHTS[room_of("http.api")] > HEIGHTS[room_of("coordination.supervision")]


def test_every_module_can_be_imported() -> None:
    """Many are imported only when something needs them, which may be days after the start."""
    elsewhere = "macos" if sys.platform == "linux" else "linux"
    for path in sorted((ROOT / "pgcoord").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] == elsewhere:
            continue
        importlib.import_module(".".join(parts).removesuffix(".__init__"))


def test_the_documents_name_existing_files_and_tests() -> None:
    documents = [ROOT / name for name in ("docs/design.md", "docs/decisions.md", "CONTRIBUTING.md")]
    documents.append(ROOT / "sql/README.md")
    path = re.compile(r"`((?:pgcoord|sql|web|tests|docs)/[\w./-]+)`")
    missing = [
        f"{document.name}: {name}"
        for document in documents
        for name in path.findall(document.read_text())
        if not (ROOT / name).exists()
    ]
    sources = "".join(path.read_text() for path in ROOT.glob("tests/**/test_*.py"))
    named = re.findall(r"`(test_\w+)`", (ROOT / "CONTRIBUTING.md").read_text())
    missing += [name for name in named if f"def {name}(" not in sources]
    assert named
    assert missing == []


def test_the_sources_name_files_that_exist() -> None:
    path = re.compile(r"(?<![\w./-])((?:pgcoord|sql|web|docs)/[\w./-]+\.(?:py|sql|js|html|md))\b")
    missing = [
        f"{source.relative_to(ROOT)}: {name}"
        for folder in ("pgcoord", "sql/functions", "web")
        for source in (ROOT / folder).rglob("*.*")
        if source.suffix in (".py", ".sql", ".js", ".css", ".html")
        for name in path.findall(source.read_text())
        if not (ROOT / name).exists()
    ]
    assert missing == []


def test_every_section_of_the_design_that_is_cited_exists() -> None:
    headings = set(re.findall(r"^## (\d+)\.", (ROOT / "docs/design.md").read_text(), re.MULTILINE))
    cited = {
        number
        for folder, ending in (("pgcoord", "py"), ("sql", "sql"), ("tests", "py"), ("docs", "md"))
        for path in (ROOT / folder).rglob(f"*.{ending}")
        for number in re.findall(r"design\.md\)?, section (\d+)", path.read_text())
    }
    assert cited
    assert cited <= headings


def test_every_table_is_in_the_list_of_the_database_half() -> None:
    listed = (ROOT / "sql/README.md").read_text()
    made = {
        name
        for path in (ROOT / "sql/migrations").glob("*.sql")
        for name in re.findall(
            r"^create table (?:public\.)?([\w.]+)", path.read_text(), re.MULTILINE
        )
    }
    assert {name for name in made if f"`{name}`" not in listed} == set()


def test_every_function_for_people_is_in_the_design() -> None:
    section = (ROOT / "docs/design.md").read_text().split("\n## 8.")[1].split("\n## ")[0]
    functions = {
        name
        for path in (ROOT / "sql/functions").glob("*.sql")
        for name in re.findall(
            r"^create or replace function pgcoord\.(\w+)", path.read_text(), re.M
        )
    }
    assert {name for name in functions if f"`{name}`" not in section} == set()


def test_every_piece_of_a_page_reads_data() -> None:
    environment = jinja2.Environment()
    without = []
    for path in sorted((ROOT / "web/templates/piece").glob("*.html")):
        names = environment.parse(path.read_text()).find_all(jinja2.nodes.Name)
        if "data" not in {each.name for each in names}:
            without.append(path.name)
    assert without == []


def test_no_two_test_files_have_one_name() -> None:
    """Pytest imports those outside packages by name alone: of two, it collects one."""
    paths = (ROOT / "tests").rglob("test_*.py")
    names = [path.name for path in paths if not (path.parent / "__init__.py").exists()]
    assert sorted(names) == sorted(set(names))
