"""Weights as files: differences between a base model and a tuned one, made and undone in constant memory."""
