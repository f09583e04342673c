"""Tests of events: what is told, when, and in which order."""
