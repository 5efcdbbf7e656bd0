"""What is learned and measured: splits, classes, counts and the checks that run before the first step."""
