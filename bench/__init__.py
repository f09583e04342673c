"""Savepoint and the usual way of writing it, side by side under the same load."""
