"""What machines cost and what a job will cost: offers, factors, simulation."""
