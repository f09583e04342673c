"""The tests of Savepoint."""
