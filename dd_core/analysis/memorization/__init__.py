"""Memorisation of training images: scores of single images, what they detect, and what memorisation really is.

Pure functions on arrays. Curves are float64 (evaluations, images), in the order of training; NaN stands for "was not
evaluated". ``dd_core.results.memorization`` reads the tables and writes the results.
"""
