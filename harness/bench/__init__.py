"""Performance bars: ratios measured in one run and compared with their goals; and the cost of compressing a model."""
