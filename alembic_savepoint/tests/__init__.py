"""Tests of the tool as any Alembic project uses it; nothing of the service is imported."""
