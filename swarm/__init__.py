"""How peers act together: paths, groups, agreement. Imports `protocols`, never `node`."""
