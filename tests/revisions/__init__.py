"""Revision files read without being executed: as Alembic reads them, what is wrong with them, what they drop."""
