"""What a calibration reaches, and what it is good for."""
