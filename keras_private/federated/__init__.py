"""Data of many clients: opened where the work on it runs. Training over them is in development."""
