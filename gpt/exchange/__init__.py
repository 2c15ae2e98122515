"""Weights in and out: published checkpoints, exported models, runs."""
