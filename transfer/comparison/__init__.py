"""Two sides, each one or several trials or a foreign result file, compared on one test split. No torch."""
