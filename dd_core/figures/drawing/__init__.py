"""How all figures look, which rows they may show, and how they become files."""
