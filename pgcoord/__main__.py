"""The command line: `pgcoord`, or `python -m pgcoord`.

The only reader of arguments and environment. Errors are printed as one line, with an exit status
(pgcoord.errors); a traceback is a bug of pgcoord.
"""

import gc
import signal

# Until the imports are done, Ctrl-C ends the program at once, without a traceback of Python.
_interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
if _interruptible:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

# One collection of garbage among the imported modules takes a tenth of the time of a short command,
# none of which makes so many objects.
gc.set_threshold(100_000)

import errno
import importlib
import os
import pwd
import sys
from collections.abc import Sequence
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import typer

from pgcoord import __version__, logs
from pgcoord.commands.options import Config, Dsn, Surroundings
from pgcoord.commands.terminal import say
from pgcoord.errors import CoordError

if _interruptible:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_EXIT_STATUSES = """Exit status: 0 all went well; 1 a phase did not complete; 2 wrong usage;
3 refused in this state; 4 no such feature or phase; 5 a plan or pgcoord.toml has faults;
6 the database cannot be used; 7 something could not be started; 8 and 9 doctor found something;
129, 130, 143 ended by a signal."""

# The modules of commands, in the order of the help, and the modules of frequent commands: importing
# all modules takes a tenth of the time of `status`.
_MODULES = (
    "starter",
    "reference",
    "work",
    "plan",
    "show",
    "logs",
    "control",
    "schedule",
    "edit",
    "report",
    "doctor",
    "server",
    "v1",
    "psql",
    "bench",
    "worktree",
    "pull_request",
)
_MODULE_OF = {
    "status": "show",
    "why": "show",
    "logs": "logs",
    "retry": "control",
    "cancel": "control",
    "serve": "work",
    "run": "work",
    "submit": "work",
    "report": "report",
}


def make_app(words: Sequence[str] = ()) -> typer.Typer:
    """Return the program with all its commands, or with those that the first of *words* needs."""
    app = typer.Typer(
        help="Run the phases of long jobs in the order that their dependencies allow; "
        "Postgres is the coordinator.",
        epilog=_EXIT_STATUSES,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_start)
    module = _MODULE_OF.get(words[0]) if words else None
    for name in (module,) if module else _MODULES:
        importlib.import_module(f"pgcoord.commands.{name}").register(app)
    return app


def main() -> None:
    """Run the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        _choose_time_zone()
        app = make_app(sys.argv[1:])
        app(prog_name="pgcoord", obj=Surroundings(dict(os.environ), _folder(), _user()))
    except CoordError as error:
        for line in str(error).splitlines():
            say(f"pgcoord: {line}", err=True)
        if error.hint:
            from pgcoord.commands.hints import in_commands

            say(f"  {in_commands(error.hint)}", err=True)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        _flush()
        # At its end the interpreter would look at all objects again: a tenth of that time, or more.
        gc.freeze()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream:  # None where it was closed
                stream.flush()
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):  # EIO: of a terminal that is closed
                raise
            # The reader has closed the pipe; Python would write again at exit, and report an error.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _choose_time_zone() -> None:
    """Make the database format times in the time zone of this machine's user."""
    if "PGTZ" in os.environ:
        return
    zone = os.environ.get("TZ", "").removeprefix(":")
    if not zone:
        with suppress(OSError):
            zone = os.path.realpath("/etc/localtime").partition("/zoneinfo/")[2]
    with suppress(ValueError, ZoneInfoNotFoundError, OSError):
        os.environ["PGTZ"] = ZoneInfo(zone).key


def _folder() -> Path | None:
    try:
        return Path.cwd()
    except FileNotFoundError:
        return None


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"user {os.getuid()}"


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"pgcoord {__version__}")
        raise typer.Exit


def _start(
    ctx: typer.Context,
    dsn: Dsn = None,
    config: Config = None,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Log more details to stderr.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version, and exit."
        ),
    ] = False,
) -> None:
    logs.configure(serves=ctx.invoked_subcommand == "serve", verbose=verbose)


if __name__ == "__main__":
    main()
