"""The hierarchical graph network of the Neural Symbolic Model: relations, pooling, and the way back down."""
