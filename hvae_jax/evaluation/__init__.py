"""From parameters and data to numbers."""
