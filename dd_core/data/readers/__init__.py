"""Readers of data sets in the form in which their authors ship them: one module for each form of files.

A reader takes the data set's record and the folder of its files. It returns uint8 images (N, height, width, channels),
int64 labels (N,) and how many of the images, which come first, are for training.
"""
