"""Measures of a classifier, from its confusion matrix."""

import numpy as np


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, count: int) -> np.ndarray:
    """Counts of true classes (rows) and predictions (columns).

    Example:
      >>> confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), 2)
      array([[1, 1],
             [0, 1]])
    """
    matrix = np.zeros((count, count), int)
    np.add.at(matrix, (labels, predictions), 1)
    return matrix


def accuracy(matrix: np.ndarray) -> float:
    """The share on the diagonal of a confusion matrix.

    Example:
      >>> accuracy(np.array([[3, 1], [0, 4]]))
      0.875
    """
    return float(matrix.trace() / matrix.sum())


def macro_f1(matrix: np.ndarray) -> float:
    """F1 of each class (0 where it neither occurs nor is predicted), averaged.

    Example:
      >>> round(macro_f1(np.array([[3, 1], [0, 4]])), 4)
      0.873
    """
    all_told = matrix.sum(axis=0) + matrix.sum(axis=1)
    return float(np.mean(2 * matrix.diagonal() / np.maximum(all_told, 1)))
