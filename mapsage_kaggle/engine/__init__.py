"""Everything that runs inside mmengine: imported in training children only."""
