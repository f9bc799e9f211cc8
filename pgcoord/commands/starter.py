"""The command that writes a first configuration and plan: init."""

from pathlib import Path
from typing import Annotated

import typer

from pgcoord.commands.options import surroundings_of
from pgcoord.commands.terminal import say
from pgcoord.errors import CannotStart

STARTER = Path(__file__).resolve().parents[1] / "starter"


def register(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command()(init)


def init(
    ctx: typer.Context,
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="FOLDER", help="The folder; the current one by default.", show_default=False
        ),
    ] = None,
) -> None:
    """Write a first pgcoord.toml and plan.md. Existing files are not changed."""
    target = surroundings_of(ctx).folder / (folder or "")
    try:
        target.mkdir(parents=True, exist_ok=True)
        for source in sorted(STARTER.iterdir()):
            try:
                with (target / source.name).open("x", encoding="utf-8") as file:
                    file.write(source.read_text(encoding="utf-8"))
                say(f"wrote {target / source.name}")
            except FileExistsError:
                say(f"{target / source.name} exists, and is not changed")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CannotStart(f"cannot write in {target}: {reason}") from error
    to_it = "" if folder is None else f"cd {folder} && "
    say(f"next: '{to_it}pgcoord run plan.md'")
