"""Parameters of a plan: `{param.NAME}` in its texts, and the values given for them."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from pgcoord.errors import did_you_mean
from pgcoord.plan.model import PlannedPhase, Problem, Section

# A parameter of a plan; in double braces it is plain text.
_PARAMETER = re.compile(r"\{\{param\.[\w-]+\}\}|\{param\.([\w-]+)\}", re.ASCII)


def faults_in_parameters(lines: list[str], parameters: Mapping[str, str]) -> Iterator[Problem]:
    """Find parameters without a value in *parameters*, and values that no parameter uses."""
    used = set()
    for number, line in enumerate(lines, 1):
        for match in _PARAMETER.finditer(line):
            name = match[1]
            if name is not None and name not in parameters:
                yield (
                    number,
                    f"{match[0]} has no value: 'run', 'submit' and 'schedule' take one by"
                    f" --set {name}=VALUE; {{{match[0]}}} is this text itself",
                )
            used.add(name)
    for name in parameters:
        if name not in used:
            hint = did_you_mean(name, sorted(each for each in used if each))
            yield 1, f"--set {name}: there is no {{param.{name}}} in the plan{hint}"


def unfilled_names(sections: list[Section]) -> Iterator[Problem]:
    """Find parameters in names of pgcoord.toml, which are looked up before anything is filled."""
    for section in sections:
        for key in ("workflow", "check"):
            if match := _PARAMETER.search(section.value(key) or ""):
                yield (
                    section.line_of(key),
                    f"{key.capitalize()} is a name of pgcoord.toml: {match[0]} is not filled there",
                )


def fill(text: str, values: Mapping[str, str]) -> str:
    """Fill the parameters of *text*, once: braces in a value are not filled again."""
    return _PARAMETER.sub(lambda match: values[match[1]] if match[1] else match[0][1:-1], text)


def fill_phase(phase: PlannedPhase, values: Mapping[str, str]) -> PlannedPhase:
    """Return *phase* with *values* in place of the parameters in its texts."""

    def line(text: str) -> str:
        return " ".join(fill(text, values).split())

    return replace(
        phase,
        title=line(phase.title),
        prompt=fill(phase.prompt, values),
        gate=line(phase.gate) if phase.gate else None,
        lock=line(phase.lock) if phase.lock else None,
        files=tuple(line(each) for each in phase.files),
        environment=tuple((name, fill(each, values)) for name, each in phase.environment),
    )
