"""Results to table: collecting, statistics, published numbers, plots and pages. Imports no torch and no detectron2."""
