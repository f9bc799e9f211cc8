"""The statements about log-ins of the panel."""

from pgcoord.database._sql import Connection, fetch_value


async def login_has_ended(conn: Connection, digest: str) -> bool:
    """Return whether the log-in of the panel with this digest was ended."""
    return bool(
        await fetch_value(
            conn,
            "select exists (select from pgcoord_private.ended_login where digest = %s)",
            digest,
        )
    )


async def end_login(conn: Connection, digest: str, until: int) -> None:
    """End a log-in of the panel, whose cookies expire at *until*; forget those that have expired.

    *until*: seconds since 1970.
    """
    await fetch_value(conn, "select pgcoord_private.end_login(%s, %s)", digest, until)
