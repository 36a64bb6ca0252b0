"""fusionkit: train, compare and evaluate vision-language fusion encoders on several objectives at once."""

__version__ = "0.1.0"
