"""Webhooks: what happened, sent to the receivers that asked for it."""
