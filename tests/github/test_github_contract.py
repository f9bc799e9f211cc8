"""Requests to GitHub conform to its OpenAPI description, checked by Prism."""

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime

import httpx2
import pytest
from support import PATIENCE
from support.fake_github import REPOSITORY, TOKEN, prism, why_no_prism

from pgcoord.configuration.model import GitHub
from pgcoord.github.client import Issue, PullRequest, Repository, read_credentials

pytestmark = [
    pytest.mark.scale,  # Prism takes ten seconds to read the description of GitHub
    pytest.mark.skipif(why_no_prism() is not None, reason=why_no_prism() or ""),
]


@pytest.fixture(scope="module")
def mock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with prism(tmp_path_factory.mktemp("prism"), "mock") as url:
        yield url


@pytest.fixture
async def repository(mock: str) -> AsyncIterator[Repository]:
    settings = GitHub(REPOSITORY, mock)
    async with Repository(settings, read_credentials(settings, {"GITHUB_TOKEN": TOKEN})) as found:
        yield found


async def test_every_call_keeps_the_description_of_github(repository: Repository) -> None:
    issue = await repository.post_issue("Feature #1 - Phase 1: x", "body", ["feature-1"])
    assert issue == Issue(1347, 1, "octocat", True)
    assert await repository.issue(1347) == issue
    await repository.find_issues("nothing", datetime(2100, 1, 1, tzinfo=UTC))
    await repository.make_label("feature-1", "1d76db", "Phases of feature 1")
    assert await repository.has_comment(1347, "Me too")
    await repository.comment(1347, "done")
    await repository.close(1347, "completed")
    await repository.close(1347, "not_planned")
    await repository.close_duplicate(1348, issue)
    await repository.reopen(1347)
    opened = PullRequest(1347, "https://github.com/octocat/Hello-World/pull/1347")
    assert await repository.find_pull_request("pgcoord/feature-1", "main") == opened
    pull = await repository.open_pull_request("x", "pgcoord/feature-1", "main", "y", draft=True)
    assert pull == opened
    assert (await repository.about())["full_name"] == "octocat/Hello-World"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/issues", {"body": "no title"}),
        ("POST", "/issues", {"title": "x", "lables": []}),
        ("POST", "/issues", {"title": "x", "labels": "feature-1"}),
        ("PATCH", "/issues/1", {"state": "done"}),
        ("POST", "/issues/1/comments", {}),
        ("POST", "/labels", {"color": "ffffff"}),
    ],
)
def test_a_body_that_is_wrong_is_refused(
    mock: str, method: str, path: str, body: dict[str, object]
) -> None:
    answer = httpx2.request(method, f"{mock}/repos/{REPOSITORY}{path}", json=body, timeout=PATIENCE)
    assert answer.status_code == 422
