"""The columns of every table, and what a reader needs to know of each. ``dd_core.tables`` puts them to use."""
