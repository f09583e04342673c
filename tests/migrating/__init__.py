"""What surrounds a run of migrations: one migrator at a time, whole revisions, losses, copies, locks and the record."""
