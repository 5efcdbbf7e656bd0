"""Writers of the canonical backbone, one a target; `convert` calls them in a folder aside and moves the result."""
