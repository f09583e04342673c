"""What is written about Savepoint, and the commands that write what can be read from the code."""
