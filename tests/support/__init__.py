"""What the tests share."""

PATIENCE = 60.0  # seconds until a test that waits gives up
