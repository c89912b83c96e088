"""What runs on one machine: the attempt, its stages, Ray, the teacher's ledger."""
