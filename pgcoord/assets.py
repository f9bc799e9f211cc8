"""The folders of pgcoord's SQL and web files: inside the package in a wheel, beside it in a
checkout."""

from pathlib import Path

_package = Path(__file__).resolve().parent
_root = _package if (_package / "sql").is_dir() else _package.parent

SQL = _root / "sql"
WEB = _root / "web"
