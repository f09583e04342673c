"""HTTP: one router a noun, and what they share."""
