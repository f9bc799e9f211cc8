"""What the tests share."""

# Seconds until a test that waits gives up: what takes ten on two idle cores has taken more than
# sixty on a loaded machine, and whoever waits for what comes pays nothing for more.
PATIENCE = 300.0
