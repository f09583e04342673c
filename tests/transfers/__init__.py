"""Transfers, deposits, withdrawals, batches and reversals: money moves whole, once, or not at all."""
