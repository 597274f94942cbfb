"""Panels that several charts share, and the rows and words that belong to them."""
