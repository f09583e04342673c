"""Seeded clients against faults of every kind, and what must be true afterwards: `make chaos`."""
