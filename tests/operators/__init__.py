"""The operator: its keys, and the record of what it did."""
