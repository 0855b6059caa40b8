"""Evaluation of trained models: samples, likelihood."""
