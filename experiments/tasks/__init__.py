"""What experiments of a kind share: models and data as tasks of the training loop."""
