"""Language modelling of characters or words."""
