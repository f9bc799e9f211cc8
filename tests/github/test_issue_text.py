"""What is written on GitHub: the same to a reader, and harmless to everybody else."""

import uuid
from typing import Any

import pytest

from pgcoord.github.text import LIMIT, comment_body, inert, issue_body, issue_title

KEY = uuid.UUID(int=1)
ZERO_WIDTH = "\u200b"


def body(prompt: str, **given: Any) -> str:
    facts = {"feature": "Live updates", "total_phases": 5, "prerequisites": [], **given}
    title = facts.pop("title", "Backend API")
    return issue_body(
        title=title,
        feature_id=104,
        phase_number=2,
        prompt=prompt,
        facts=facts,
        key=KEY,
        page=given.get("page"),
    )


def phase(number: int, title: str, issue: int | None = None) -> dict[str, Any]:
    return {
        "phase_number": number,
        "title": title,
        "status": "completed",
        "issue_number": issue,
        "eligible": True,
    }


def tokens(text: str) -> float:
    """As they are usually estimated: four characters each."""
    return len(text) / 4


def test_an_issue_has_the_form_of_the_spec() -> None:
    assert issue_title(104, 2, "Backend API") == "Feature #104 - Phase 2: Backend API"
    text = body("Implement the endpoint.", prerequisites=[phase(1, "Schema", 200), phase(3, "UI")])
    assert text == (
        "# Backend API\n\n"
        "**Feature**: Live updates (planned feature 104)\n"
        "**Phase**: 2 of 5\n\n"
        "Implement the endpoint.\n\n"
        "## Dependencies\n\n"
        "This phase depends on:\n"
        "- ✅ Phase 1: Schema (Issue #200) - completed\n"
        "- ✅ Phase 3: UI - completed\n\n"
        "---\n"
        "**Tracking**: phase 2 of planned feature 104 in the panel\n"
        "**Labels**: feature-104, phase-2\n"
        f"<!-- pgcoord {KEY} -->"
    )


def test_a_phase_number_above_the_count_has_no_total() -> None:
    assert "**Phase**: 2\n" in body("x", total_phases=1)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("Ask @alice.", "Ask @~alice."),
        ("@org/team and (@bob)", "@~org/team and (@~bob)"),
        ("\\@eve", "\\@~eve"),
        ("&#64;eve &#x40;eve &commat;eve", "&#~64;eve &~#x40;eve &~commat;eve"),
        ("see #12, owner/name#9, GH-3", "see #~12, owner/name#~9, GH~-3"),
        ("Fixes #7", "Fixes #~7"),
        (
            "adw_sdlc_complete_iso adws/adw_plan_iso.py",
            "adw~_sdlc_complete_iso adws/adw~_plan_iso.py",
        ),
        ("/retest\n /deploy prod", "~/retest\n ~/deploy prod"),
        ("<!-- pgcoord 0 -->", "<!-~- pgcoord 0 -->"),
        ("```sh\nadw_plan_iso\n/retest\n```", "```sh\nadw~_plan_iso\n~/retest\n```"),
    ],
)
def test_a_text_of_somebody_pings_links_and_triggers_nothing(text: str, written: str) -> None:
    assert inert(text) == written.replace("~", ZERO_WIDTH)
    assert inert(text).replace(ZERO_WIDTH, "") == text


@pytest.mark.parametrize(
    "text",
    [
        "mail a@b.example, # a heading, ## another, C#, 5 @ 3",
        "/api/v1/users is a path, and/or is not one",
        "```python\n@pytest.fixture\ndef it(): ...  # 12 or #12\n```",
        "    @indented #12\n",
        "<!-- a comment -->, 100 % sure, A & B",
    ],
)
def test_text_without_effect_on_github_is_unchanged(text: str) -> None:
    assert inert(text) == text


def test_a_number_in_a_body_links_only_to_an_issue_of_a_phase() -> None:
    text = body("see #3", title="do #4", feature="of #5", prerequisites=[phase(1, "after #6", 200)])
    assert [line for line in text.splitlines() if "#200" in line]
    for number in range(3, 7):
        assert f"#{number}" not in text
    assert "#104" not in text


def test_a_prompt_keeps_the_rest_of_the_body_out_of_its_code() -> None:
    text = body("```\nnot closed", prerequisites=[phase(1, "Schema", 200)])
    assert "```\nnot closed\n```\n\n## Dependencies" in text
    assert "~~~sh\nclosed\n~~~\n\n---" in body("~~~sh\nclosed\n~~~")


def test_a_long_prompt_is_cut_at_a_paragraph_with_a_note_where_the_rest_is() -> None:
    paragraph = "@alice " * 100 + "end."
    text = body("\n\n".join([paragraph] * 200), page="https://build.example/phases/queue-104-2")
    assert 50_000 < len(text) <= LIMIT
    prompt, _, rest = text.partition("\n\n*The prompt is longer than an issue may be.")
    assert prompt.endswith("end.")
    assert rest.startswith(" All of it: https://build.example/phases/queue-104-2*\n\n---")
    assert text.endswith(f"<!-- pgcoord {KEY} -->")


@pytest.mark.parametrize("prompt", ["x" * 70_000, "```\n" + "x\n" * 50_000, "@a " * 30_000])
def test_a_prompt_of_any_shape_fits(prompt: str) -> None:
    text = body(prompt)
    assert len(text) <= LIMIT
    assert text.endswith(f"<!-- pgcoord {KEY} -->")


def test_titles_are_one_line_and_fit() -> None:
    title = issue_title(104, 2, "@alice\n" * 200)
    assert len(title) <= 256
    assert "\n" not in title
    assert title.startswith(f"Feature #104 - Phase 2: @{ZERO_WIDTH}alice @")
    assert title.endswith("…")


def test_a_comment_on_a_failure_shows_its_last_lines_as_code() -> None:
    error = "\n".join(["exited with status 1", *(f"line {n} @alice" for n in range(50)), "```"])
    facts = {
        "attempt": 2,
        "adw_id": "adw-1234abcd",
        "outcome": "timed_out",
        "pr_number": 31,
        "ran_seconds": 3_725.0,
        "error": error,
        "reason": None,
        "dependents": [{**phase(3, "UI", 12), "status": "blocked", "eligible": False}],
    }
    text = comment_body("failed", facts, KEY)
    assert text.startswith(
        "❌ **Failed** after 1 h 2 min (attempt 2, adw-1234abcd, timed out)\n\n"
        "Pull request: #31\n\n"
        "````text\nline 31 @alice\n"
    )
    assert text.endswith(
        "```\n````\n\nWaiting for it: Phase 3: UI (Issue #12)\n"
        "<!-- pgcoord 00000000-0000-0000-0000-000000000001 -->"
    )


def test_an_issue_is_its_prompt_and_at_most_400_tokens() -> None:
    prompt = "Implement the endpoint.\n\n" * 300
    usual = body(prompt, prerequisites=[phase(n, f"Phase of work {n}", 200 + n) for n in (1, 2, 3)])
    most = body(
        prompt,
        title="A title " * 50,
        feature="A feature " * 50,
        prerequisites=[phase(n, "A prerequisite " * 20, 10_000 + n) for n in range(1, 40)],
        page="https://a-rather-long-name.of-a-server.example/phases/queue-104-2",
    )
    usual_cost, most_cost = tokens(usual) - tokens(prompt), tokens(most) - tokens(prompt)
    print(f"\nan issue is its prompt and {usual_cost:.0f} tokens, at most {most_cost:.0f}")  # noqa: T201
    assert usual_cost <= 200
    assert most_cost <= 400


def test_five_phases_take_a_fifth_of_the_tokens_of_a_parent_issue() -> None:
    """Sizes: a parent of 5,000 tokens, children of 2,000."""
    prompts = ["Do this. " * 889 for _ in range(5)]
    children = [body(prompt, prerequisites=[phase(1, "Schema", 200)]) for prompt in prompts]
    parent = "Implement this. " * 1_250
    before = len(children) * (tokens(parent) + sum(map(tokens, children)))
    now = sum(map(tokens, children))
    saved = 1 - now / before
    print(  # noqa: T201
        f"\n{before:,.0f} tokens (characters / 4) with a parent issue, {now:,.0f} now:"
        f" {saved:.0%} less over five phases"
    )
    assert saved >= 0.8
