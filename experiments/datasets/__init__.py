"""TFDS builders, one file each; none needs TensorFlow."""
