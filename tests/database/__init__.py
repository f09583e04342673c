"""Transactions against what goes wrong between a service and its database: locks, broken connections, and the end."""
