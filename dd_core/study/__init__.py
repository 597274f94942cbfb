"""What a user writes, typed and validated: studies, recipes, monitors, curvature, resources. Needs no torch."""
