"""Crash-consistent sharded checkpoints on any object store; usable without the rest of alpaca-jobs."""
