"""Graphs as problems of classification: three domains, made from a seed, with the best accuracy that there can be."""
