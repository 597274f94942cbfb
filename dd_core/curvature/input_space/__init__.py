"""Curvature of the loss in each input image: exact, by top directions, by double backward, by differences."""
