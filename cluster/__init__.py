"""Where a job runs, what it costs, and what happens when the machine under it dies."""
