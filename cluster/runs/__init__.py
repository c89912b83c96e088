"""What a run is to those who look at it: its attempts, reports, costs, and what this machine remembers."""
