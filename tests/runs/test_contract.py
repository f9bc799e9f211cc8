"""What every launcher promises (docs/design.md, section 13), asked of each: one suite."""

import os
from pathlib import Path

import pytest
from support import slurm as cluster
from support.coordination import make_coordinator, running, scripts, watching

from pgcoord.configuration import Pool, read_configuration
from pgcoord.coordination import engines
from pgcoord.coordination.coordinator import Coordinator

# A second instead of a minute, so that a test of what is not heard of takes no minute.
HURRIED = {"ASKS": (0.3, 1.0), "UNSURE": 4.0, "SILENT": 3.0, "SETTLED": 1.0, "LOOK": 0.2}

PATIENCE = 120.0


class Engine:
    """A launcher under test: how a coordinator is made that uses it."""

    def __init__(self, dsn: str, folder: Path, pool: Pool | None, environment: dict[str, str]):
        self.dsn = dsn
        self.folder = folder
        self.pool = pool
        self.environment = environment

    def coordinator(self, **settings: object) -> Coordinator:
        name = self.pool.name if self.pool else "local"
        return make_coordinator(
            self.dsn,
            self.folder,
            scripts(pool=name, **settings),
            environment={**os.environ, **self.environment, "ONE": 'a,b=c\n"d"', "PATH": PATH},
            pool=self.pool,
        )


PATH = os.environ["PATH"]


EXAMPLES = Path(__file__).parents[2] / "examples" / "engines"


@pytest.fixture(params=["local", "slurm", "command"])
def engine(
    request: pytest.FixtureRequest, dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Engine:
    for name, value in HURRIED.items():
        monkeypatch.setattr(engines, name, value)
    if request.param == "local":
        return Engine(dsn, tmp_path, None, {})
    slurm: cluster.Slurm = request.getfixturevalue("slurm")
    settings: dict[str, object] = {"folder": str(tmp_path / "shared")}
    if request.param == "command":  # the same Slurm, by its commands alone
        pools = read_configuration(EXAMPLES / "slurm-commands.toml").pools
        settings = {**pools["batch"].settings, **settings}
        return Engine(dsn, tmp_path, Pool("batch", "command", 40, settings), slurm.environment)
    return Engine(dsn, tmp_path, Pool("hpc", "slurm", 40, settings), slurm.environment)


@pytest.fixture
def slurm_engine(slurm: cluster.Slurm, engine: Engine) -> Engine:
    return engine


async def run(engine: Engine, script: str, status: str, **settings: object) -> dict[str, object]:
    """Run a phase to its end; return its latest attempt."""
    async with (
        watching(engine.dsn) as watch,
        running(engine.coordinator(**settings), patience=PATIENCE),
    ):
        await watch.submit(script)
        await watch.until_statuses(status)
        return await watch.one("select * from pgcoord.attempt")


async def test_exit_status_and_log(engine: Engine) -> None:
    attempt = await run(engine, "echo to the log; echo and this >&2; exit 42", "failed")
    assert attempt["exit_code"] == 42
    assert "exited with status 42\nto the log\nand this" in str(attempt["error"])
    assert (Path(str(attempt["folder"])) / "log").read_text() == "to the log\nand this\n"


async def test_a_signal_is_128_and_its_number(engine: Engine) -> None:
    assert (await run(engine, "kill -9 $$", "failed"))["exit_code"] == 137


async def test_the_environment_is_that_of_the_workflow_as_it_is(engine: Engine) -> None:
    attempt = await run(
        engine,
        'test "$ONE" = "$(printf \'a,b=c\\n"d"\')" && test -z "$TWO"',
        "completed",
        environment=("ONE",),
    )
    assert attempt["exit_code"] == 0


async def test_a_prompt_of_five_megabytes(engine: Engine) -> None:
    filler = "# " + "x" * 5_000_000
    attempt = await run(engine, f"wc -c < $PGCOORD_PROMPT_FILE\nexit 3\n{filler}", "failed")
    assert (Path(str(attempt["folder"])) / "log").read_text().strip() > "5000000"
