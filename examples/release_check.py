"""The steps of release-check.md that are more than one command; each says what is wrong, if any."""

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from datetime import datetime
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
OUT = PROJECT / "build" / "release-check"
DIST = OUT / "dist"
FRESH = OUT / "fresh"


def build() -> None:
    """Build the sdist, and the wheel from the sdist, as an index would get them."""
    shutil.rmtree(OUT, ignore_errors=True)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(DIST), str(PROJECT))


def contents() -> None:
    """Compare the wheel with the tree it was built from."""
    with zipfile.ZipFile(wheel()) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        licensed = any(name.endswith("licenses/LICENSE") for name in archive.namelist())
    missing = {f"pgcoord/{path}" for path in files_of("sql")} - packed
    missing |= {str(path) for path in files_of("pgcoord") if path.suffix == ".py"} - packed
    stray = {name for name in packed if not (PROJECT / unpacked(name)).exists()}
    if missing or stray or not licensed:
        sys.exit(f"missing: {sorted(missing)}; stray: {sorted(stray)}; license: {licensed}")
    print(f"{wheel().name}: {len(packed)} files, {wheel().stat().st_size // 1024} KB")


def install() -> None:
    """Install the wheel, and nothing else, into an environment of its own."""
    venv.create(FRESH, with_pip=True, clear=True)
    python = FRESH / "bin" / "python"
    run(str(python), "-m", "pip", "install", "--no-index", "--no-deps", "--quiet", str(wheel()))
    # No network: what the wheel depends on is lent by the environment that runs this.
    (site_packages(FRESH) / "lent.pth").write_text(f"{site_packages(Path(sys.prefix))}\n")


def command_line() -> None:
    """Run the installed program from outside the project, where only the wheel can serve it."""
    program = str(FRESH / "bin" / "pgcoord")
    version = run(program, "--version", cwd=OUT).split()[-1]
    if f"-{version}-" not in wheel().name:
        sys.exit(f"the program says {version}, the wheel is {wheel().name}")
    for command in ("run", "serve", "submit", "status", "why"):
        run(program, command, "--help", cwd=OUT)
    refused = subprocess.run(
        [program, "run", "no-such-plan.md"], cwd=OUT, capture_output=True, text=True, check=False
    )
    if refused.returncode == 0 or "Traceback" in refused.stderr:
        sys.exit(f"a missing plan gave {refused.returncode}: {refused.stderr}")
    print(f"pgcoord {version} runs")


def report() -> None:
    """Write how the phases before this one went."""
    feature = os.environ["PGCOORD_FEATURE_ID"]
    status = json.loads(run(f"{sys.prefix}/bin/pgcoord", "status", feature, "--json"))
    (found,) = status["features"]
    lines = [f"# {found['title']}", "", "| phase | state | seconds |", "|---|---|---:|"]
    lines += [
        f"| {phase['title']} | {phase['status']} | {seconds(phase):.1f} |"
        for phase in found["phases"]
        if phase["queue_id"] != os.environ["PGCOORD_QUEUE_ID"]
    ]
    (OUT / "report.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def seconds(phase: dict[str, str]) -> float:
    """How long a phase ran."""
    started, finished = phase["started_timestamp"], phase["finished_timestamp"]
    return (datetime.fromisoformat(finished) - datetime.fromisoformat(started)).total_seconds()


def wheel() -> Path:
    """The wheel that was built."""
    (found,) = DIST.glob("*.whl")
    return found


def files_of(folder: str) -> list[Path]:
    """The files below a folder of the project, as paths within the project."""
    found = (path for path in (PROJECT / folder).rglob("*") if path.is_file())
    return [path.relative_to(PROJECT) for path in found if "__pycache__" not in path.parts]


def unpacked(name: str) -> str:
    """Where a file of the wheel lies in the project: sql/ and web/ are beside the package there."""
    for folder in ("sql/", "web/"):
        if name.startswith(f"pgcoord/{folder}"):
            return name.removeprefix("pgcoord/")
    return name


def site_packages(environment: Path) -> Path:
    """Where an environment keeps its packages."""
    (found,) = environment.glob("lib/python3*/site-packages")
    return found


def run(*command: str, cwd: Path = PROJECT) -> str:
    """Run a command, show what it says, and return it; stop if it fails."""
    done = subprocess.run(
        command,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(done.stdout, end="", flush=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} exited with status {done.returncode}")
    return done.stdout


STEPS = {
    "build": build,
    "contents": contents,
    "install": install,
    "command-line": command_line,
    "report": report,
}

if __name__ == "__main__":
    STEPS[sys.argv[1]]()
