"""What training will cost before it is done: FLOPs, measured speeds, and what the resource probe found. No torch."""
