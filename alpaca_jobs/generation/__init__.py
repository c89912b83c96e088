"""Writing instruction rows by a teacher LLM: prompt, parse, filter, dedupe (Self-Instruct, Alpaca form)."""
