"""The columns of every table, and what a reader needs to know of each. ``dd_core.tables.files`` puts them to use."""
