"""Commands that bring work in and run it: run, serve, submit."""

from dataclasses import replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgcoord.commands.context import (
    Answer,
    Context,
    changing,
    check_schema,
    complete,
    existing_dsn,
    make_context,
    make_runs_folder,
    print_answer,
)
from pgcoord.commands.options import (
    HIGHEST_ID,
    Config,
    Dsn,
    FeatureNumber,
    Format,
    LogFormat,
    PlanFile,
    PlanFileOrNone,
    Surroundings,
    surroundings_of,
)
from pgcoord.commands.secrecy import close_memory, forget_variables
from pgcoord.commands.terminal import say, say_json
from pgcoord.errors import InvalidConfiguration
from pgcoord.text import counted

if TYPE_CHECKING:
    from pgcoord.configuration.model import Configuration
    from pgcoord.coordination.coordinator import Coordinator
    from pgcoord.plan.model import Plan
    from pgcoord.planner.planning import FeaturePlanner

# The address of `run`'s panel: only the user on this machine looks at it.
_LOOPBACK = "127.0.0.1"


class MarkedDone(Enum):
    """The state in which phases that the plan marks as done are stored."""

    COMPLETED = "completed"


Done = Annotated[
    MarkedDone | None,
    typer.Option(
        "--done",
        help="Read phases marked ✅, [x] or (COMPLETE) as completed; else they are faults.",
    ),
]

Parameters = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="The value for {param.NAME} in the plan; may be given several times.",
    ),
]

_EXAMPLE = """Make one, for example:
    [workflow.build]
    command = ["make", "-C", "app"]
    default = true"""


def register(app: typer.Typer) -> None:
    """Add the commands to *app*."""
    for command in (run, attach, serve, submit):
        app.command()(command)


def run(
    ctx: typer.Context,
    plan: PlanFileOrNone = None,
    feature: Annotated[
        int | None,
        typer.Option(
            "--feature",
            metavar="N",
            min=1,
            max=HIGHEST_ID,
            help="Run this feature instead of a plan.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Only show the waves, commands, folders and environment of the plan.",
        ),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print no progress; at the end print the feature as JSON."),
    ] = False,
    done: Done = None,
    parameters: Parameters = None,
    log_format: LogFormat = Format.TEXT,
    config: Config = None,
    dsn: Dsn = None,
) -> None:
    """Run a plan, or an existing feature, to its end; show its progress, and serve the panel
    meanwhile.

    The exit status is 0 only if every phase completed. Where a coordinator runs already (pgcoord
    serve), it does the work, and this command only watches. Otherwise this command leads: it also
    starts other queued phases, and when its own feature has ended it waits for those it started.
    """
    if (plan is None) == (feature is None):
        raise typer.BadParameter("give a plan, or --feature with a number.", param_hint="PLAN")
    close_memory()
    surroundings = surroundings_of(ctx)
    configuration = _configuration(surroundings, config)
    work = read_plan_file(plan, configuration, done, parameters) if plan else feature
    assert work is not None
    if dry_run:
        if plan is None or isinstance(work, int):
            raise typer.BadParameter(
                "expected with a plan, not with --feature.", param_hint="--dry-run"
            )
        _show_dry_run(work, configuration, surroundings, as_json=as_json)
        return
    context = make_context(surroundings, dsn)
    check_schema(context.dsn)
    from pgcoord.commands.running import Runner
    from pgcoord.http.access import read_access
    from pgcoord.http.sockets import bind_free, url_of

    server = configuration.server
    with bind_free(_LOOPBACK, server.port) as listening_socket:
        access = read_access(
            server,
            surroundings.environment,
            address=_LOOPBACK,
            name=_LOOPBACK,
            github=configuration.github,
        )
        # It ends with its feature, and may be of another project: 'serve' declares schedules.
        configuration = replace(configuration, schedules=None)
        coordinator = _coordinator(
            surroundings, configuration, context, url=url_of(listening_socket)
        )
        forget_variables(configuration.secret_variables)
        planner = partial(_planner, surroundings, configuration)
        runner = Runner(
            surroundings,
            context.dsn,
            coordinator,
            listening_socket,
            access,
            planner,
            as_json=as_json,
        )
        raise typer.Exit(complete(context.dsn, runner.run(work)))


def _show_dry_run(
    plan: "Plan", configuration: "Configuration", surroundings: Surroundings, *, as_json: bool
) -> None:
    from pgcoord.commands.dry_run import DryRun

    dry = DryRun(plan, configuration, surroundings)
    print_answer(Answer("\n".join(dry.lines()), dry.as_json()), as_json=as_json)


def attach(
    ctx: typer.Context,
    feature: FeatureNumber,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print no progress; at the end print the feature as JSON."),
    ] = False,
    dsn: Dsn = None,
) -> None:
    """Show the progress of a feature until its end, without starting any phase.

    The exit status is 0 only if every phase completed.
    """
    existing = existing_dsn(ctx, dsn)
    from pgcoord.commands import running

    raise typer.Exit(complete(existing, running.attach(existing, feature, as_json=as_json)))


def serve(
    ctx: typer.Context,
    host: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="The address to listen on; by default that of [server], else 127.0.0.1.",
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            metavar="PORT",
            min=0,
            max=65535,
            help="The port; by default that of [server], else 8002; 0 for any free one.",
        ),
    ] = None,
    insecure_webhooks: Annotated[
        bool, typer.Option("--insecure-webhooks", help="Accept unsigned reports.")
    ] = False,
    drain: Annotated[
        bool,
        typer.Option(
            "--drain",
            help="On a signal, claim no further phase, and stop when the processes here have"
            " ended; on a second one, stop at once.",
        ),
    ] = False,
    log_format: LogFormat = Format.TEXT,
    config: Config = None,
    dsn: Dsn = None,
) -> None:
    """Run queued phases until stopped; serve the panel and the API meanwhile.

    SIGTERM or Ctrl-C stop it, and not the processes of phases: a coordinator that is started again
    takes them over. SIGHUP has it read a changed pgcoord.toml. Any number may serve a database, on
    any machine: one leads and runs what is queued, the others stand by, and one of them takes over
    when it ends.
    """
    close_memory()
    surroundings = surroundings_of(ctx)
    configuration = _configuration_to_serve(surroundings, config)
    context = make_context(surroundings, dsn)
    from pgcoord.commands import running
    from pgcoord.http.access import read_access
    from pgcoord.http.sockets import bind, url_of

    server = configuration.server
    name = host or server.host
    with bind(name, server.port if port is None else port) as listening_socket:
        access = read_access(
            server,
            surroundings.environment,
            address=listening_socket.getsockname()[0],
            name=name,
            unsigned_webhooks=insecure_webhooks,
            github=configuration.github,
        )
        url = server.public_url or url_of(listening_socket)
        coordinator = _coordinator(surroundings, configuration, context, url=url)
        forget_variables(configuration.secret_variables)
        planner = partial(_planner, surroundings, configuration)

        def read_anew() -> "Configuration":
            from pgcoord.runs.account import check_accounts

            read = _configuration_to_serve(surroundings, configuration.path)
            check_accounts(read.workflows.values())
            return read

        service = running.serve(
            context.dsn,
            coordinator,
            listening_socket,
            access,
            planner,
            read_anew=read_anew,
            drain=drain,
        )
        raise typer.Exit(complete(context.dsn, service))


def submit(
    ctx: typer.Context,
    plan: PlanFile,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Only show the phases that would be queued, with their lines in the plan; needs"
            " no database.",
        ),
    ] = False,
    done: Done = None,
    parameters: Parameters = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print a JSON object: id, title, total_phases; with --check the object that"
            " 'plan' prints.",
        ),
    ] = False,
    config: Config = None,
    dsn: Dsn = None,
) -> None:
    """Queue the phases of a plan; a coordinator runs them."""
    surroundings = surroundings_of(ctx)
    configuration = configuration_here(surroundings, config)
    read = read_plan_file(plan, configuration, done, parameters)
    if check:
        from pgcoord.commands.plan import show_check

        show_check(plan, read, as_json)
        return
    context = make_context(surroundings, dsn)
    check_schema(context.dsn)
    from pgcoord.database import actions, reads

    async def work() -> tuple[int, bool]:
        async with changing(surroundings, context.dsn) as conn:
            feature_id = await actions.submit_feature(conn, read.feature())
            return feature_id, await reads.leader(conn) is not None

    feature_id, led = complete(context.dsn, work())
    total = len(read.phases)
    if as_json:
        say_json({"id": feature_id, "title": read.title, "total_phases": total})
        return
    waits = "" if led else "; no coordinator runs: 'pgcoord serve' starts one"
    say(f"feature {feature_id}: {counted(total, 'phase is', 'phases are')} queued{waits}")


def configuration_here(surroundings: Surroundings, config: Path | None) -> "Configuration | None":
    """Read the configuration *config*, else that here or above; None if there is none."""
    from pgcoord.configuration.reading import find_configuration, read_configuration

    path = config or find_configuration(surroundings.folder, surroundings.environment)
    return read_configuration(path) if path else None


def _configuration(surroundings: Surroundings, config: Path | None) -> "Configuration":
    """Read the configuration. Raises `InvalidConfiguration` if there is none, or no workflow."""
    configuration = configuration_here(surroundings, config)
    if configuration is None:
        raise InvalidConfiguration(
            f"no pgcoord.toml in {surroundings.folder} or above: there is no workflow to run",
            hint=_EXAMPLE,
        )
    if not configuration.workflows:
        raise InvalidConfiguration(f"{configuration.path}: no workflow is declared", hint=_EXAMPLE)
    return configuration


def _configuration_to_serve(surroundings: Surroundings, config: Path | None) -> "Configuration":
    """Read the configuration, and the plans of its schedules. Raises `InvalidConfiguration`."""
    configuration = _configuration(surroundings, config)
    if not configuration.schedules:  # then no plan is read, and nothing that reads one is imported
        return configuration
    from pgcoord.plan.files import read_schedules

    return read_schedules(configuration)


def _coordinator(
    surroundings: Surroundings,
    configuration: "Configuration",
    context: Context,
    url: str | None = None,
) -> "Coordinator":
    """Create the runs folder, and return a coordinator that is not started yet.

    Its processes report to the API at *url* (None: they cannot report). Raises `CannotStart` when
    the folder is not writable.
    """
    runs_folder = make_runs_folder(context, configuration)
    from pgcoord.coordination.coordinator import Coordinator
    from pgcoord.runs.account import check_accounts

    check_accounts(configuration.workflows.values())

    return Coordinator(
        context.dsn,
        configuration,
        runs_folder=runs_folder,
        environment=surroundings.environment,
        report_url=f"{url}/api/v1/workflow-complete" if url else None,
        embedded=context.embedded,
    )


def _parameter(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise typer.BadParameter(f"expected name=value, not {text!r:.60}", param_hint="--set")
    return name, value


def _planner(surroundings: Surroundings, configuration: "Configuration") -> "FeaturePlanner":
    from pgcoord.planner.planning import FeaturePlanner

    return FeaturePlanner(configuration.planner, surroundings.environment, surroundings.folder)


def read_plan_file(
    path: Path,
    configuration: "Configuration | None",
    done: MarkedDone | None,
    parameters: list[str] | None,
) -> "Plan":
    """Read the plan at *path* (-: standard input), print its notes. Raises `InvalidPlan`."""
    from pgcoord.plan.files import check_environment, read_plan

    workflows = configuration.workflows if configuration else None
    has_default = configuration is None or configuration.default_workflow is not None
    plan = read_plan(
        path,
        workflows=workflows,
        has_default=has_default,
        takes_done=done is not None,
        parameters=dict(map(_parameter, parameters or ())),
    )
    if configuration:
        check_environment(path, plan, configuration)
    for note in plan.notes:
        say(f"pgcoord: {note}", err=True)
    return plan
