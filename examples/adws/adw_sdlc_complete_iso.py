# /// script
# requires-python = ">=3.10"
# ///
"""A stand-in for an AI developer workflow (ADW): what pgcoord expects of one, and nothing more.

    uv run adws/adw_sdlc_complete_iso.py ISSUE_NUMBER ADW_ID

It makes a git worktree of its own, `trees/<adw_id>`, with the work of the phases before it, reads
its issue, does as it is told there ("Write hello.txt: Hello"), commits, and reports by a signed
webhook. Put an agent in the place of `develop`.
"""

import base64
import fcntl
import hashlib
import hmac
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
import uuid
from pathlib import Path


def main() -> None:
    """Work on the issue; report how that went."""
    issue_number, adw_id = int(sys.argv[1]), sys.argv[2]
    try:
        issue = read_issue(issue_number)
        branch = f"feature-issue-{issue_number}-{adw_id}"
        tree = make_worktree(branch, adw_id)
        written = develop(tree, str(issue["body"]))
        git(tree, "add", "--all")
        git(tree, "commit", "--message", f"{issue['title']} (#{issue_number})")
    except Exception as error:
        report(adw_id, status="failed", error_message=f"{type(error).__name__}: {error}")
        raise
    commit = git(tree, "rev-parse", "HEAD")
    git_alone("worktree", "remove", str(tree))
    result = {"summary": f"wrote {', '.join(written)}", "branch": branch, "commit": commit}
    report(adw_id, status="completed", result=result)


def read_issue(number: int) -> dict[str, object]:
    """Ask GitHub for the issue that pgcoord has made for this phase."""
    api = os.environ.get("GITHUB_API_URL", "https://api.github.com")
    request = urllib.request.Request(
        f"{api}/repos/{os.environ['GITHUB_REPOSITORY']}/issues/{number}",
        headers={
            "Authorization": f"token {os.environ['GITHUB_TOKEN']}",
            "Accept": "application/vnd.github+json",
        },
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        issue: dict[str, object] = json.load(answer)
    return issue


def make_worktree(branch: str, adw_id: str) -> Path:
    """Make a worktree with what the phases before this one have handed on."""
    tree = Path("trees", adw_id).absolute()
    git_alone("worktree", "add", "--quiet", "-b", branch, str(tree))
    inputs = json.loads(Path(os.environ["PGCOORD_INPUT_FILE"]).read_text())
    for number in sorted(inputs, key=int):
        if commit := inputs[number].get("commit"):
            git(tree, "merge", "--quiet", "--no-edit", commit)
    return tree


def develop(tree: Path, task: str) -> list[str]:
    """Do what the issue says, in place of an agent; return the names of the files."""
    found: list[tuple[str, str]] = re.findall(r"Write ([\w.-]+): (.*)", task)
    if not found:
        raise ValueError("the issue does not say what to write")
    for name, text in found:
        (tree / name).write_text(f"{text}\n")
        print(f"wrote {name}")
    return [name for name, _ in found]


def report(adw_id: str, **what: object) -> None:
    """Tell pgcoord how it went, signed as Standard Webhooks has it."""
    body = json.dumps({"adw_id": adw_id, **what}).encode()
    message, at = f"msg_{uuid.uuid4().hex}", str(int(time.time()))
    key = base64.b64decode(os.environ["PGCOORD_WEBHOOK_SECRET"].removeprefix("whsec_"))
    signed = hmac.new(key, b".".join([message.encode(), at.encode(), body]), hashlib.sha256)
    headers = {
        "Content-Type": "application/json",
        "webhook-id": message,
        "webhook-timestamp": at,
        "webhook-signature": f"v1,{base64.b64encode(signed.digest()).decode()}",
    }
    request = urllib.request.Request(os.environ["PGCOORD_REPORT_URL"], body, headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        print(f"reported {what['status']}: {answer.read().decode()}")


def git_alone(*words: str) -> None:
    """Make or remove a worktree: git fails now and then where two do so at once."""
    with open(".git/adw.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        git(Path.cwd(), *words)


def git(folder: Path, *words: str) -> str:
    """Run git; return what it says."""
    done = subprocess.run(
        ["git", *words], cwd=folder, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.strip()


if __name__ == "__main__":
    main()
