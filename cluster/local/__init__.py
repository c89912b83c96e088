"""The backend of this machine: nodes as processes, and the supervisor that keeps a run going."""
