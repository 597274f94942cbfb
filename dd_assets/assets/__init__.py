"""The assets, a module each: what depends on what. Bodies are thin and call dd_core."""
