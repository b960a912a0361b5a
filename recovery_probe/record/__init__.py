"""The run directory: how it lies on the disk, who writes it, who reads it. Imports no torch."""
