"""What the commands call: plan, estimate, launch, resume, cancel, drill."""
