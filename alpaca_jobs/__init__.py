"""What a job is and what runs inside it: the spec, data generation, training, export."""
