"""Forecasts of series, with baselines, scores and pictures."""
