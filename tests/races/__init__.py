"""Races on real servers."""
