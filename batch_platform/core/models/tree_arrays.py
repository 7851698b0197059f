"""Whether the arrays of a decision tree are a tree.

The libraries that walk a tree follow its numbers unchecked: a child that is not there reads foreign memory,
a child that is its own ancestor never ends. So a file that nobody has checked is looked at here first.
"""

import numpy as np

from batch_platform.errors import ModelError


def check_tree(about: str, children: np.ndarray, features: np.ndarray, nodes: int, columns: int) -> None:
    """Check that following children from node 0 stays among the nodes and ends, and that splits read columns.

    Args:
        about: the file and the tree, for messages.
        children: numbers of the nodes below every inner node, in any order, int64.
        features: number of the column that each inner node looks at, int64.
        nodes: how many nodes there are.
        columns: how many columns the model reads.

    Raises:
        ModelError: says what is wrong with the tree.
    """
    # With one parent at most for each node, and none for node 0, no way from node 0 leads back.
    if len(children) and (children.min() < 1 or children.max() >= nodes):
        raise ModelError(f"{about}: has a child that is not among its {nodes} nodes")
    if len(np.unique(children)) < len(children):
        raise ModelError(f"{about}: has a node with two parents")
    if len(features) and (features.min() < 0 or features.max() >= columns):
        raise ModelError(f"{about}: reads column {features.max()}, the model has {columns}")
