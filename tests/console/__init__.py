"""The console: who may use it, what its pages show, and what its actions do."""
