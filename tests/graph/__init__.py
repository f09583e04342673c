"""The revision graph as text, SVG and JSON, and the command that prints it: applied, pending, unknown."""
