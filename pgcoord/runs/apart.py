"""Orders for nodes that share no folder with the coordinator: the job carries everything that it
needs.

The prompt and the inputs come with the answer that the job may begin; the result goes with its
exit status.
"""

from collections.abc import Mapping
from typing import Any

from pgcoord.configuration.model import PASSED_ON
from pgcoord.coordination.launching import Order
from pgcoord.runs.job import PROMPT_MARK


def order_apart(order: Order, directory: str, *, secrets: bool = True) -> dict[str, Any]:
    """Return the content of *order* for a node that has none of our folders.

    *directory*: where the command runs there. Without *secrets*, for an engine that shows a
    job's content to everybody, it has no variable of the workflow, only ours and the secret of the
    attempt.
    """
    content = dict(order.content)
    prompt = str(order.folder / "prompt.md")
    environment: Mapping[str, str] = content["environment"]
    # Variables that were passed on describe the coordinator's machine only.
    content["environment"] = {
        name: value
        for name, value in environment.items()
        if name not in PASSED_ON and (secrets or name.startswith("PGCOORD_"))
    }
    content["command"] = [word.replace(prompt, PROMPT_MARK) for word in content["command"]]
    content |= {"folder": None, "scratch": f"/tmp/{order.name}", "directory": directory}
    return content
