"""What keeps a migration whole: one at a time, each revision in a transaction, its losses counted."""
