"""The figures, a module each with one function ``chart``."""
