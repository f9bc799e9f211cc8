"""Layers: the kinds of work that a feature is made of, how a text names them, which needs which.

A layer is recognised by the words and the files of a piece of work. What it needs follows from the
layers that are there at all: the first of `_FOUNDATIONS` is what the others are built on, so that
they need not wait for each other.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

# Points for a word that says it by itself, for one that only hints at it, and for a file.
_STRONG, _WEAK, _FILE = 3, 1, 4

# What begins a piece of work ("Test …", "Document …") outweighs what it is done to.
_OPENING = 8


@dataclass(frozen=True)
class Layer:
    """A kind of work.

    `weight` is its usual share of a feature's hours. `leaves` says what the phases after it can
    build on, `proof` how it is judged.
    """

    name: str
    title: str
    weight: int
    leaves: str
    proof: str
    opening: re.Pattern[str]
    strong: re.Pattern[str]
    weak: re.Pattern[str]
    files: tuple[str, ...]

    def points(self, text: str, files: Iterable[str]) -> int:
        """How much a text and the files that it names say that this is the layer."""
        named = sum(any(fnmatchcase(file.lower(), each) for each in self.files) for file in files)
        return (
            _OPENING * bool(self.opening.match(text))
            + _STRONG * len({match[0].lower() for match in self.strong.finditer(text)})
            + _WEAK * len({match[0].lower() for match in self.weak.finditer(text)})
            + _FILE * min(named, 2)
        )


def _words(*alternatives: str) -> re.Pattern[str]:
    """Whole words; `+` at the end of one stands for any ending."""
    parts = (each.removesuffix("+") + (r"\w*" if each.endswith("+") else "") for each in alternatives)
    pattern = "|".join(parts) or r"(?!)"
    return re.compile(rf"(?<![\w-])(?:{pattern})(?![\w])", re.IGNORECASE)


_NOTHING = _words()

GENERAL = Layer(
    "core",
    "Implementation",
    3,
    "the code, with tests of its own",
    "The new behaviour has tests of its own, and the tests that were there still pass.",
    _NOTHING,
    _words(
        "parsers?", "algorithms?", "librar(?:y|ies)", "business logic", "domain model", "ETL",
        "data ?sets?", "data ?frames?", "importers?", "exporters?", "schedulers?", "engine",
        "calculation", "aggregat+", "deduplicat+",
    ),
    _words(
        "models?", "modules?", "class(?:es)?", "functions?", "validat+", "transform+", "pipelines?",
        "cache", "caching", "imports?", "exports?", "refactor+", "logic", "rules?", "types?",
        "pars(?:e|es|ing)",
    ),
    ("*.ipynb", "lib/*", "*/lib/*", "core/*", "*/core/*", "*/models/*", "*/domain/*"),
)

LAYERS = (
    Layer(
        "setup",
        "Groundwork",
        1,
        "what everything else is built with",
        "A fresh checkout builds and its tests run.",
        _words("scaffold", "bootstrap", "set up (?:the|a) (?:project|package|repository)"),
        _words(
            "scaffold+", "project skeleton", "boilerplate", "groundwork", "lock ?file",
            "dependency upgrades?", "package manager", "feature flags?",
        ),
        _words("dependenc(?:y|ies)", "upgrade", "bump", "versions?", "settings?"),
        ("*pyproject.toml", "*package.json", "*cargo.toml", "*go.mod", "*requirements*.txt", "*.lock"),
    ),
    Layer(
        "database",
        "Database schema",
        2,
        "the schema and its migrations, applied and with a way back",
        "The migration runs forwards and back on a copy with data in it, and loses none.",
        _words("migrate the (?:schema|database|data)", "backfill", "normali[sz]e the"),
        _words(
            "databases?", "schemas?", "tables?", "migrations?", "columns?", "foreign keys?",
            "SQL", "Postgres(?:QL)?", "MySQL", "SQLite", "MongoDB", "backfill+", "DDL", "partition+",
            "triggers?", "materiali[sz]ed views?", "unique constraints?", "data model",
        ),
        _words("index(?:es)?", "quer(?:y|ies)", "rows?", "records?", "constraints?", "stores?", "storage"),
        (
            "*.sql", "*migrations/*", "*migrate/*", "*alembic/*", "*.prisma", "*schema.rb",
        ),
    ),
    GENERAL,
    Layer(
        "backend",
        "Backend API",
        3,
        "the endpoints or services, answering as described",
        "Each new way in is tested with good and with bad input, and refuses the bad with a clear error.",
        _NOTHING,
        _words(
            "back-?end", "APIs?", "endpoints?", "REST", "GraphQL", "gRPC", "servers?", "middleware",
            "web ?hooks?", "web ?sockets?", "controllers?", "micro-?services?", "OAuth2?", "SSO",
            "authenti+", "authori[sz]+", "rate limit+", "background jobs?", "workers?",
            "(?:message )?queues?", "JWT", "log-?ins?", "HTTP",
        ),
        _words(
            "services?", "handlers?", "routes?", "requests?", "responses?", "sessions?", "tokens?",
            "permissions?", "e-?mails?", "notifications?", "events?", "uploads?", "webhook",
        ),
        (
            "*/api/*", "api/*", "*server/*", "*/routes/*", "*/controllers/*", "*/handlers/*",
            "*backend/*", "*/services/*", "*views.py", "*routes.*",
        ),
    ),
    Layer(
        "cli",
        "Command line",
        2,
        "the commands and options, with their help",
        "Each command and option does what its help says; wrong use ends with a message and a status of its own.",
        _NOTHING,
        _words(
            "CLI", "command[- ]line", "sub-?commands?", "flags?", "exit (?:codes?|status(?:es)?)",
            "stdin", "stdout", "terminal", r"shell completions?",
        ),
        _words("commands?", "options?", "arguments?", r"prints?"),
        ("*cli.*", "*/cli/*", "cli/*", "cmd/*", "*/cmd/*", "*/commands/*", "bin/*"),
    ),
    Layer(
        "frontend",
        "Frontend",
        2,
        "the views, working against what is agreed above",
        "The view works by mouse and keyboard, on a narrow screen, and shows what it does when something fails.",
        _NOTHING,
        _words(
            "front-?end", "UI", "user interface", "pages?", "components?", "buttons?", "forms?",
            "dialogs?", "modals?", "dashboards?", "screens?", "CSS", "HTML", "React", "Vue",
            "Svelte", "Angular", "dark (?:mode|theme)", "layout", "tool ?tips?", "side ?bars?",
            "nav(?:igation)? ?bars?", "menus?", "widgets?", "charts?", "accessib+", "browsers?",
            "mobile app", "iOS", "Android", "toggles?", "banners?", "panels?",
        ),
        _words("views?", "shows?", "displays?", "icons?", "filters?", "themes?", "styles?", "templates?"),
        (
            "*.tsx", "*.jsx", "*.vue", "*.svelte", "*.css", "*.scss", "*.html", "*frontend/*",
            "*/components/*", "web/*", "*/client/*", "*/static/*", "*/templates/*",
        ),
    ),
    Layer(
        "infrastructure",
        "Infrastructure",
        2,
        "the environment, described as code",
        "It can be built from nothing by what is in the repository, twice with the same result.",
        _words("provision", "containeri[sz]e"),
        _words(
            "Docker+", "containers?", "Kubernetes", "k8s", "Helm", "Terraform", "Ansible", "CI",
            "CI/CD", "GitHub Actions", "GitLab CI", "Jenkins", "nginx", "systemd", "Prometheus",
            "Grafana", "monitoring", "alert(?:s|ing)?", "load balancers?", "VPC", "subnets?",
            "S3", "buckets?", "IAM", "cluster", "back-?ups?", "infrastructure", "autoscal+",
            "CDN", "TLS", "certificates?", "DNS",
        ),
        _words("deploy+", "metrics", "logs?", "logging", "environments?", "secrets?", "builds?"),
        (
            "*dockerfile*", "*docker-compose*", "*.tf", "*.tfvars", ".github/workflows/*", "*helm/*",
            "*k8s/*", "*ansible/*", "deploy/*", ".gitlab-ci.yml", "*.nix", "*makefile",
        ),
    ),
    Layer(
        "tests",
        "Tests",
        2,
        "tests of the whole, which pass",
        "The tests fail when what they test is broken on purpose, and pass as it stands.",
        _words(
            "(?:add|write|extend) (?:\\w+[- ]){0,3}tests", "(?:\\w+[- ])?tests",
            # "Test feature" is a name.
            "test \\S+ \\S+", "verify", "cover", "reproduce", "benchmark", "load[- ]test",
        ),
        _words(
            "(?:integration|end-to-end|e2e|unit|regression|acceptance|browser|load|smoke) tests?",
            "test suite", "test coverage", "testing", "fixtures?", "pytest", "playwright", "QA",
        ),
        _words("tests?", "tested", "coverage", "benchmarks?", "cover"),
        ("test_*", "*/test_*", "tests/*", "*/tests/*", "*_test.*", "*.spec.*", "*.test.*", "spec/*"),
    ),
    Layer(
        "documentation",
        "Documentation",
        1,
        "the documents that people read",
        "Every command and example in it was run as it is written.",
        _words(
            "documents?", "describe", "explain", "update the (?:docs|documentation|readme|changelog)",
            "documentation", "docs", "(?:write|add|update|extend)(?: an?| the)?(?: \\w+)? (?:guide|tutorial|docs|documentation|readme|changelog|runbook)",
        ),
        _words(
            "documentation", "docs", "README", "change ?log", "tutorials?", "(?:\\w+ )?guides?",
            "how-?tos?", "docstrings?", "manual", "runbooks?", "release notes", "FAQ", "glossary",
            "ADRs?",
        ),
        _words("document(?:s|ed)?", "examples?", "explain(?:s|ed)?", "articles?"),
        ("*.md", "*.rst", "*.adoc", "docs/*", "*/docs/*", "doc/*"),
    ),
    Layer(
        "rollout",
        "Rollout",
        1,
        "the change in use, the old way gone",
        "What was switched over works for those who use it, and the way back was tried.",
        _words(
            "roll (?:it )?out", "deploy", "release", "switch (?:\\w+ ){0,3}over", "cut over", "go live",
            "enable (?:it )?for", "announce",
            "(?:remove|drop|delete|retire|turn off|switch off) (?:the )?(?:old|legacy|deprecated|previous)",
        ),
        _words(
            "roll-?outs?", "cut-?over", "go-?live", "production", "canary",
            "(?:old|legacy|deprecated) (?:\\w+)",
        ),
        _words("releases?", "enable", "announcement"),
        (),
    ),
)

# What a thing is called in a rule; and where a layer stands in a plan.
_BY_NAME = {each.name: each for each in LAYERS}
_STAGE = {each.name: stage for stage, each in enumerate(LAYERS)}

# The first of these that a feature has is what its other code is built on, and what its documents
# can be written from: phases after it need not wait for each other.
_FOUNDATIONS = ("database", "core", "backend", "cli", "frontend", "infrastructure")

# Layers that are built on what stands above them in this list, where it is there.
_INNER = ("database", "core")
_OUTER = ("backend", "cli")

_CODE = ("setup", "database", "core", "backend", "cli", "frontend")


def layer(name: str) -> Layer:
    """The layer of a name."""
    return _BY_NAME[name]


def stage(name: str) -> int:
    """Where a layer stands in a plan: what it may need stands before it."""
    return _STAGE[name]


def layer_of(text: str, files: Collection[str] = (), *, surely: bool = False) -> str | None:
    """The layer that a text is about, by its words and the files it names; None if it says none.

    `surely` leaves out what only hints at one.
    """
    points = {each.name: each.points(text, files) for each in LAYERS}
    best = max(points.values())
    if best < (_STRONG if surely else _WEAK):
        return None
    return next(name for name in points if points[name] == best)


def needs(name: str, other: str, present: Collection[str]) -> bool:
    """Whether work of one layer needs that of another, given all layers that there are."""
    if name == other or stage(other) > stage(name):
        return False
    foundation = next((each for each in _FOUNDATIONS if each in present), None)
    match name:
        case "setup":
            return False
        case "infrastructure":
            return other == "setup"
        case "tests":
            return other in _CODE or other == foundation
        case "rollout":
            return other != "documentation"
        case "documentation":
            return other in ("setup", foundation) or foundation is None
    if name in _INNER or name in _OUTER:
        return other in ("setup", *_INNER) or other == foundation
    return other in ("setup", foundation)
