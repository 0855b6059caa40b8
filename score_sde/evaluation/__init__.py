"""Evaluation of trained models: samples, likelihood, noise levels, restoration; and what they leave on the disk."""
