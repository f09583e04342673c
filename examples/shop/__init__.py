"""A marketplace that sells for credits."""
