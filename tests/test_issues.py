"""One issue for each phase, on a GitHub of ours that keeps to GitHub's contract."""

import os
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from coordination import Watch, make_coordinator, running, watching
from fake_github import (
    REPOSITORY,
    TOKEN,
    FakeGitHub,
    prism,
    serving_github,
    why_no_prism,
)

from pgcoord.configuration import GitHub
from pgcoord.coordinator import Coordinator

LATER = timedelta(minutes=5)


@pytest.fixture(scope="module")
def github_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeGitHub, str]]:
    """The fake, and where to ask it: through Prism, where there is one."""
    fake = FakeGitHub()
    with serving_github(fake) as url:
        if why_no_prism():
            yield fake, url
        else:
            with prism(tmp_path_factory.mktemp("prism"), "proxy", url) as checked:
                yield fake, checked


@pytest.fixture
def github(github_server: tuple[FakeGitHub, str]) -> Iterator[FakeGitHub]:
    """GitHub with an empty repository."""
    fake, _ = github_server
    fake.reset()
    yield fake
    fake.let_go.set()


@pytest.fixture
async def watch(dsn: str) -> AsyncIterator[Watch]:
    async with watching(dsn) as watch:
        yield watch


Make = Any


@pytest.fixture
def make(dsn: str, tmp_path: Path, github_server: tuple[FakeGitHub, str]) -> Make:
    """Makes coordinators that make issues."""

    def make(**settings: Any) -> Coordinator:
        github = GitHub(REPOSITORY, github_server[1], **settings)
        environment = os.environ | {"GITHUB_TOKEN": TOKEN}
        return make_coordinator(dsn, tmp_path, github=github, environment=environment)

    return make


async def test_each_phase_has_an_issue_of_its_own_before_its_process_starts(
    make: Make, github: FakeGitHub, watch: Watch, tmp_path: Path
) -> None:
    say = f"echo $PGCOORD_ISSUE_NUMBER >> {tmp_path}/numbers"
    await watch.submit(say, (say, [1]))
    async with running(make()):
        await watch.until_statuses("completed", "completed")
        await watch.until_found("select from pgcoord.errand", nothing=True)
    assert (tmp_path / "numbers").read_text() == "1\n2\n"
    first, second = github.issues
    assert first["title"] == "Feature #1 - Phase 1: Step 1"
    assert [label["name"] for label in first["labels"]] == ["feature-1", "phase-1"]
    assert "- ✅ Phase 1: Step 1 (Issue #1) - completed" in second["body"]
    assert say in second["body"]
    assert [(issue["state"], issue["state_reason"]) for issue in github.issues] == [
        ("closed", "completed")
    ] * 2
    (comment,) = github.comments[1]
    assert comment["body"].startswith("✅ **Completed** after 0 s (attempt 1, adw-")
    assert "Next: Phase 2: Step 2" in comment["body"]
    assert len(github.comments[2]) == 1
