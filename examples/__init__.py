"""Programs that call Savepoint, as patterns for your own."""
