"""The revision files, what a database says of them, and how they hang together."""
