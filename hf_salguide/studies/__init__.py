"""Studies: predictions with maps, panels, the demo and the benchmark."""
