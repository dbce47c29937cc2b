"""The ways to run the loop over time, one file each, all with the signature of `reference.run`."""
