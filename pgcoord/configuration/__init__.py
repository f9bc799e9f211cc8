"""pgcoord.toml: which workflows this coordinator may run, and how.

The command line reads it at the start, and on SIGHUP. An unknown key is an error that names it: a
misspelt `timeout` must not become a job without one.
"""
