"""The backend of the clouds: SkyPilot's managed jobs, our strategy inside it, and what runs on its machines."""
