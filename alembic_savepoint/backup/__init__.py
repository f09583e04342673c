"""Copies of a database, made while it is in use, and loaded whole or not at all."""
