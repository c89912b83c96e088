"""The `alpaca-jobs` command: parse, call one function, render."""
