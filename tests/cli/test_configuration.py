"""pgcoord.toml: what it may say, and what is said of everything else."""

from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgcoord.configuration.duration import parse_duration
from pgcoord.configuration.model import PLACEHOLDERS, Configuration, GitHub, Planner, Pool, Workflow
from pgcoord.configuration.reading import find_configuration, read_configuration
from pgcoord.errors import InvalidConfiguration
from pgcoord.plan.files import read_schedules

VALUES = {name: f"<{name}>" for name in PLACEHOLDERS}


def read(folder: Path, text: str) -> Configuration:
    path = folder / "pgcoord.toml"
    path.write_text(text)
    return read_configuration(path)


# A schedule's plan and times, without a fault.
GOOD = "plan = 'good.md'\ncron = '0 3 * * *'\n"


def problems(folder: Path, text: str) -> list[str]:
    """The faults of `text`, without the file's name, which each must begin with."""
    with pytest.raises(InvalidConfiguration) as caught:
        read(folder, text)
    lines = str(caught.value).splitlines()
    prefix = f"{folder / 'pgcoord.toml'}"
    assert all(line.startswith(prefix) for line in lines)
    return [line.removeprefix(prefix).removeprefix(": ") for line in lines]


def test_a_workflow_has_defaults(tmp_path: Path) -> None:
    configuration = read(tmp_path, '[workflow.build]\ncommand = ["make"]\n')
    assert configuration == Configuration(
        path=tmp_path / "pgcoord.toml",
        workflows={"build": Workflow("build", ("make",), tmp_path, default=True)},
        log_folder=None,
        planner=Planner(tmp_path),
    )
    assert configuration.default_workflow == configuration.workflows["build"]


def test_every_key_is_read(tmp_path: Path) -> None:
    configuration = read(
        tmp_path,
        """
        [workflow."to build"]
        command = ["uv", "run", "{issue_number}"]
        directory = "jobs"
        environment = ["API_KEY", "HTTPS_PROXY"]
        timeout = "6h"
        linger = 0
        max_attempts = 3
        retry_delay = "2.5s"
        retry_lost = true
        reports = true
        default = true

        [log]
        folder = "/var/log/pgcoord"
        max_size = "20 MB"
        retention = "30d"
        """,
    )
    workflow = Workflow(
        name="to build",
        command=("uv", "run", "{issue_number}"),
        directory=tmp_path / "jobs",
        environment=("API_KEY", "HTTPS_PROXY"),
        timeout=timedelta(hours=6),
        linger=timedelta(0),
        max_attempts=3,
        retry_delay=timedelta(seconds=2.5),
        retry_lost=True,
        reports=True,
        default=True,
    )
    assert configuration.workflows == {"to build": workflow}
    assert configuration.default_workflow == workflow
    assert configuration.log_folder == Path("/var/log/pgcoord")
    assert configuration.log_max_size == 20_000_000
    assert configuration.log_retention == timedelta(days=30)


def test_the_only_workflow_is_the_default_unless_declared_otherwise(tmp_path: Path) -> None:
    one, two = ('[workflow.a]\ncommand = ["a"]\n', '[workflow.b]\ncommand = ["b"]\n')
    for text, default in ((one, "a"), (f"{one}default = false\n", None), (one + two, None)):
        found = read(tmp_path, text).default_workflow
        assert (found and found.name) == default


def test_every_key_of_the_planner_is_read(tmp_path: Path) -> None:
    configuration = read(
        tmp_path,
        """
        [planner]
        directory = "../code"
        command = ["claude", "-p", "{plan}"]
        environment = ["ANTHROPIC_API_KEY"]
        timeout = "5m"
        max_answer = "200kB"
        template = "prompt.md"
        max_phases = 6
        max_prompt = 2000
        """,
    )
    assert configuration.planner == Planner(
        directory=tmp_path / "../code",
        command=("claude", "-p", "{plan}"),
        environment=("ANTHROPIC_API_KEY",),
        timeout=timedelta(minutes=5),
        max_answer=200_000,
        template=tmp_path / "prompt.md",
        max_phases=6,
        max_prompt=2000,
    )


def test_a_faulty_planner_is_said_key_by_key(tmp_path: Path) -> None:
    text = '[planner]\ncommand = []\nmax_phases = 0\nmax_prompt = "x"\ntimeout = 0\nmodel = "y"\n'
    assert [each.partition(":")[0] for each in problems(tmp_path, text)] == [
        "planner.command",
        "planner.max_phases",
        "planner.max_prompt",
        "planner.timeout",
        "planner.model",
    ]


def test_every_key_of_a_repository_is_read(tmp_path: Path) -> None:
    configuration = read(
        tmp_path,
        """
        [github]
        repository = "owner/name"
        api_url = "https://github.example/api/v3"
        app_id = 123
        installation_id = "456"
        private_key_file = "app.pem"
        required = false
        wait = "5m"
        webhook_secret = "SECRET"
        on_issue_closed = "cancel"
        on_issue_reopened = "retry"
        on_pull_request_merged = "complete"
        """,
    )
    assert configuration.github == GitHub(
        repository="owner/name",
        api_url="https://github.example/api/v3",
        app_id="123",
        installation_id="456",
        private_key_file=tmp_path / "app.pem",
        required=False,
        wait=timedelta(minutes=5),
        webhook_secret="SECRET",
        on_issue_closed="cancel",
        on_issue_reopened="retry",
        on_pull_request_merged="complete",
    )
    assert configuration.github.page == "https://github.example/owner/name"
    assert GitHub("owner/name").page == "https://github.com/owner/name"
    example = Path(__file__).parents[2] / "examples" / "github.toml"
    text = example.read_text().replace("# on_", "on_").replace("# required", "required")
    assert read(tmp_path, text).github == GitHub("owner/name", required=False)


def test_a_pool_has_slots_and_workflows_name_their_pool(tmp_path: Path) -> None:
    configuration = read(
        tmp_path,
        """
        [pool.local]
        slots = 5
        [pool.batch]
        launcher = "local"
        slots = 40
        [workflow.train]
        command = ["train"]
        pool = "batch"
        """,
    )
    assert configuration.pools == {
        "local": Pool("local", slots=5),
        "batch": Pool("batch", "local", 40),
    }
    assert configuration.workflows["train"].pool == "batch"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('pool.gpu.launcher = "local"', "pool.gpu.slots: missing; expected how many"),
        ('pool.gpu = {launcher = "local", slots = 0}', "pool.gpu.slots: expected a whole number"),
        ('pool.gpu = {launcher = "local", slots = -3}', "pool.gpu.slots: expected a whole number"),
        ("pool.gpu = {slots = 1}", "pool.gpu.launcher: missing; expected one of local, slurm"),
        ('pool.gpu = {launcher = "locale", slots = 1}', "did you mean local?"),
        ('pool.gpu = {launcher = "local", slots = 1, queue = 1}', "pool.gpu.queue: unknown key"),
        ('pool.gpu = {launcher = "slurm", slots = 1}', "folder: missing; expected a folder that"),
        ('pool."g pu" = {launcher = "local", slots = 1}', 'pool."g pu": expected a name'),
        ('workflow.a = {command = ["a"], pool = "loca"}', "there is no [pool.loca]; did you mean"),
    ],
)
def test_a_fault_of_a_pool_is_named(tmp_path: Path, text: str, expected: str) -> None:
    [problem] = problems(tmp_path, text)
    assert expected in problem


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "cron = '0 3 * * *'",
            'schedule.nightly.plan: missing; expected a file such as "nightly.md"',
        ),
        ("plan = 'good.md'", 'schedule.nightly.cron: missing; expected times such as "0 3 * * *"'),
        ("plan = 'good.md'\ncron = '0 25 * * *'", "schedule.nightly.cron: expected times such as"),
        ("plan = 'good.md'\ncron = '0 3 31 2 *'", "schedule.nightly.cron: expected times such as"),
        (GOOD + "zone = 'UTC'", "schedule.nightly.zone: unknown key; did you mean timezone?"),
        (
            GOOD + "timezone = 'Mars/Olympus'",
            "schedule.nightly.timezone: expected a time zone such",
        ),
        (
            GOOD + "overlap = 'kill'",
            "schedule.nightly.overlap: expected skip or queue or start, not",
        ),
        (GOOD + "missed = true", "schedule.nightly.missed: expected run or skip, not True"),
        (GOOD + "parameters = {a = 1}", "schedule.nightly.parameters: expected a table such as"),
        (GOOD + "[schedule.'a b']\n" + GOOD, 'schedule."a b": expected a name of letters, digits'),
        (GOOD.replace("good", "none"), "schedule.nightly.plan: {folder}/none.md: no such file"),
        (
            GOOD.replace("good", "bad"),
            "schedule.nightly.plan: {folder}/bad.md:3: Workflow: ",
        ),
        (GOOD + "parameters = {b = 'x'}", "schedule.nightly.plan: {folder}/good.md:"),
    ],
)
def test_a_fault_of_a_schedule_or_its_plan_is_named(
    tmp_path: Path, text: str, expected: str
) -> None:
    (tmp_path / "good.md").write_text("# P\n## Phase 1: A\nx\n")
    (tmp_path / "bad.md").write_text("# P\n## Phase 1: A\nWorkflow: none\nx\n")
    workflow = "[workflow.work]\ncommand = ['true']\n[schedule.nightly]\n"
    with pytest.raises(InvalidConfiguration) as caught:
        read_schedules(read(tmp_path, workflow + text))
    assert str(caught.value).startswith(
        f"{tmp_path / 'pgcoord.toml'}: {expected.format(folder=tmp_path)}"
    )


def test_an_empty_file_declares_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, "").workflows == {}


def test_folders_are_relative_to_the_file_wherever_it_is_read_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "pgcoord.toml").write_text(
        '[log]\nfolder = "logs"\n[workflow.a]\ncommand = ["a"]\ndirectory = "~/jobs"\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ann")
    configuration = read_configuration(Path("project/pgcoord.toml"))
    assert configuration.log_folder == tmp_path / "project" / "logs"
    assert configuration.workflows["a"].directory == Path("/home/ann/jobs")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[workflows.a]", "workflows: unknown key; did you mean workflow?"),
        ("[servers]\nport = 1", "servers: unknown key; did you mean server?"),
        ("[server]\nport = 70000", "server.port: expected a port from 0 (any) to 65535, not 70000"),
        ('[server]\nhost = "http://x"', "server.host: expected an address such as"),
        ('[server]\npublic_url = "build"', "server.public_url: expected a URL such as"),
        ('[server]\nwebhook_secrets = "X"', "server.webhook_secrets: expected a list of variable"),
        ('[server]\ntrusted_proxies = "127.0.0.1"', "server.trusted_proxies: expected a list such"),
        ('[server]\ntrusted_proxies = ["proxy"]', "server.trusted_proxies: expected addresses or"),
        (
            '[server]\ntrusted_proxies = ["10.0.0.1/8"]',
            "server.trusted_proxies: expected addresses",
        ),
        ("[github]", 'github.repository: missing; expected "owner/name"'),
        ("[github]\nrepository = 'work'", 'github.repository: expected "owner/name", not'),
        ("[github]\nrepository = 'a/b'\ntoken = 'x'", "github.token: unknown key; expected one of"),
        ("[github]\nrepository = 'a/b'\napp_id = 1", "github: app_id, installation_id and private"),
        ("[github]\nrepository = 'a/b'\nrequired = 1", "github.required: expected true or false"),
        ("[github]\nrepository = 'a/b'\nwait = 'x'", "github.wait: expected a duration"),
        (
            "[github]\nrepository = 'a/b'\non_issue_closed = 'retry'",
            "github.on_issue_closed: expected nothing or cancel or complete, not 'retry'",
        ),
        ("[log]\nfoldr = 'x'", "log.foldr: unknown key; did you mean folder?"),
        ("[log]\nfolder = 3", "log.folder: expected a folder"),
        ("[planner]\ntemplate = 3", 'planner.template: expected a file such as "prompt.md", not 3'),
        (
            "[github]\nrepository = 'a/b'\napp_id = 1\ninstallation_id = 1\nprivate_key_file = 3",
            'github.private_key_file: expected a file such as "app.pem", not 3',
        ),
        ("[log]\nmax_size = 100", "log.max_size: expected a size such as"),
        ("[log]\nmax_size = '0 MB'", "log.max_size: expected a size such as"),
        ("[log]\nmax_size = '1 TB'", "log.max_size: expected a size such as"),
        ("[log]\nretention = 'for ever'", "log.retention: expected a duration"),
        ("workflow = 3", "workflow: expected a table, not 3"),
        ("[workflow]\na = 3", "workflow.a: expected a table [workflow.NAME], not 3"),
        ("[workflow.a]", "workflow.a.command: missing; expected a list such as"),
        ("[workflow.'']\ncommand = ['x']", 'workflow."": expected a name of visible characters'),
    ],
)
def test_a_fault_of_a_section_is_named(tmp_path: Path, text: str, expected: str) -> None:
    [problem] = problems(tmp_path, text)
    assert problem.startswith(expected)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("timout = '6h'", "timout: unknown key; did you mean timeout?"),
        ("timeout = '6 weeks'", 'timeout: expected a duration such as "90s"'),
        ("timeout = 0", "timeout: expected a duration above 0, not 0"),
        ("timeout = true", "timeout: expected a duration such as"),
        ("timeout = nan", "timeout: expected a duration such as"),
        ("timeout = 1e300", "timeout: expected a duration such as"),
        ("timeout = '4000d'", "timeout: expected a duration of at most ten years"),
        ("linger = -1", "linger: expected a duration such as"),
        ("retry_delay = []", "retry_delay: expected a duration such as"),
        ("max_attempts = 0", "max_attempts: expected a whole number from 1 to 1000000, not 0"),
        ("max_attempts = true", "max_attempts: expected a whole number"),
        ("max_attempts = 2.0", "max_attempts: expected a whole number"),
        ("retry_lost = 1", "retry_lost: expected true or false, not 1"),
        (
            "agent = 'claud'",
            "agent: expected claude or codex or gemini or copilot or opencode or qwen",
        ),
        ("reports = 'yes'", "reports: expected true or false, not 'yes'"),
        ("directory = ''", "directory: expected a folder"),
        ("environment = 'PATH'", "environment: expected a list of variable names"),
        ("environment = ['A=B']", "environment: expected names of variables"),
    ],
)
def test_a_fault_of_a_workflow_is_named(tmp_path: Path, line: str, expected: str) -> None:
    [problem] = problems(tmp_path, f"[workflow.build]\ncommand = ['make']\n{line}\n")
    assert problem.startswith(f"workflow.build.{expected}")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("'make build'", "expected a list of arguments such as"),
        ("[]", "expected a program and its arguments"),
        ("['', 'x']", "expected a program and its arguments"),
        ("['make', 3]", "expected a list of arguments"),
        (r'["a\u0000"]', "expected a list of arguments"),
        ("['{promt}']", "unknown placeholder {promt}; did you mean prompt?"),
        ("['{}']", "unknown placeholder {}; expected one of queue_id, feature_id"),
        ("['{title!r}']", "unknown placeholder {title!r}; did you mean title?"),
        ("['{title']", "unbalanced { in '{title'; write {{ for a literal brace"),
        ("['{title}}']", "unbalanced } in '{title}}'; write }} for a literal brace"),
    ],
)
def test_a_command_that_cannot_be_filled_is_refused(
    tmp_path: Path, command: str, expected: str
) -> None:
    [problem] = problems(tmp_path, f"[workflow.a]\ncommand = {command}\n")
    assert problem.startswith(f"workflow.a.command: {expected}")


def test_a_second_default_names_the_first(tmp_path: Path) -> None:
    workflow = "[workflow.{}]\ncommand = ['x']\ndefault = true\n"
    text = workflow.format("a") + workflow.format("b") + workflow.format("c")
    assert problems(tmp_path, text) == [
        "workflow.b.default: workflow.a is the default already",
        "workflow.c.default: workflow.a is the default already",
    ]


def test_all_faults_are_reported_at_once(tmp_path: Path) -> None:
    text = "[workflow.a]\ntimout = 1\n[workflow.b]\ncommand = ['{x']\nlinger = 'x'\n[log]\nx = 1\n"
    assert [problem.split(":")[0] for problem in problems(tmp_path, text)] == [
        "workflow.a.command",
        "workflow.a.timout",
        "workflow.b.command",
        "workflow.b.linger",
        "log.x",
    ]


@pytest.mark.parametrize(
    ("text", "line"), [("[log]\nfolder =\n", 2), ("a = 1\n\na = 1", 3), ("[log]\nx = '''\n\n", 3)]
)
def test_a_fault_of_syntax_names_its_line(tmp_path: Path, text: str, line: int) -> None:
    [problem] = problems(tmp_path, text)
    assert problem.startswith(f":{line}: not TOML: ")


def test_a_number_of_thousands_of_digits_is_a_fault(tmp_path: Path) -> None:
    [problem] = problems(tmp_path, "a = " + "1" * 5000)
    assert "not TOML" in problem


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "pgcoord.toml"
    with pytest.raises(InvalidConfiguration, match=r"pgcoord\.toml: no such file or directory"):
        read_configuration(path)
    with pytest.raises(InvalidConfiguration, match="is a directory"):
        read_configuration(tmp_path)
    path.write_bytes(b"# \xff")
    with pytest.raises(InvalidConfiguration, match="not UTF-8: byte 0xff at offset 2"):
        read_configuration(path)


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "pgcoord.toml").write_text("[log]\nfolder = 'x'\n", encoding="utf-8-sig")
    assert read_configuration(tmp_path / "pgcoord.toml").log_folder == tmp_path / "x"


def test_the_file_is_looked_for_upward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    actual = tmp_path / "pgcoord.toml"
    actual.touch()
    (inner / "pgcoord.toml").mkdir()  # a folder of that name is not the file
    assert find_configuration(inner) == actual
    assert find_configuration(tmp_path) == actual
    monkeypatch.chdir(inner)
    assert find_configuration(Path()) == actual
    nearer = tmp_path / "a" / "pgcoord.toml"
    nearer.touch()
    assert find_configuration(Path()) == nearer
    assert find_configuration(Path("..") / "..") == actual


def test_a_search_without_a_file_returns_none(tmp_path: Path) -> None:
    assert find_configuration(tmp_path) is None


def workflow(*command: str) -> Workflow:
    return Workflow("build", command, Path("/"))


def test_each_placeholder_is_filled() -> None:
    command = [f"--{name}={{{name}}}" for name in PLACEHOLDERS]
    expected = [f"--{name}=<{name}>" for name in PLACEHOLDERS]
    assert workflow(*command).arguments(VALUES) == expected


def test_doubled_braces_are_braces() -> None:
    arguments = workflow("{{}}", "{{title}}", "{{{title}}}", "{title}{{").arguments(VALUES)
    assert arguments == ["{}", "{title}", "{<title>}", "<title>{"]


@given(st.text(), st.text())
def test_a_value_stays_in_its_argument_and_is_never_filled(title: str, prompt: str) -> None:
    filled = workflow("{title}", "-p", "{prompt}{title}").arguments(
        {"title": title, "prompt": prompt}
    )
    assert filled == [title, "-p", prompt + title]


def test_a_value_with_braces_or_shell_characters_is_passed_on() -> None:
    title = "{prompt} {{ \\1 $(rm -rf /) 'a' \"b\""
    assert workflow("{title}").arguments({"title": title, "prompt": "x"}) == [title]


def test_a_value_that_the_phase_lacks_is_named() -> None:
    with pytest.raises(InvalidConfiguration, match=r"^\{issue_number\}: the phase has no issue$"):
        workflow("x", "{issue_number}").arguments({**VALUES, "issue_number": None})
    with pytest.raises(InvalidConfiguration, match=r"^\{prompt_file\}: the phase has no prompt fi"):
        workflow("{prompt_file}").arguments({})
    assert workflow("x").arguments({**VALUES, "issue_number": None}) == ["x"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("6h", 21600),
        ("90s", 90),
        ("30m", 1800),
        ("1h 30m", 5400),
        ("1h30m", 5400),
        ("500ms", 0.5),
        ("2d", 172800),
        ("1.5h", 5400),
        (" 90s ", 90),
        ("1d 2h 3m 4s 5ms", 93784.005),
    ],
)
def test_a_duration_is_a_text_with_units(text: object, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "value",
    ["", " ", "h", "1w", "1m 1h", "1h 1h", "-1s", "0s", "1e3", "٣s", "4000d", 10**400, None, True],
)
def test_a_text_that_is_no_duration_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="expected a duration"):
        parse_duration(value)


@pytest.mark.parametrize("value", [30, 0.5, "30", " 1.5 "])
def test_a_number_without_a_unit_is_no_duration(value: object) -> None:
    with pytest.raises(ValueError, match=r"^expected a duration .*, not .* without a unit$"):
        parse_duration(value)


def test_a_duration_of_zero_is_refused_unless_allowed() -> None:
    assert parse_duration("0s", zero=True) == parse_duration(0, zero=True) == timedelta(0)
