"""Trained checkpoints over HTTP: ``fusionkit serve`` builds them and passes them in."""
