"""Training: which rows a step sees, how they become tokens, the loop that resumes bit for bit, and the export."""
