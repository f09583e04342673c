"""Accounts, currencies and statements: what a user holds, and how it came to be."""
