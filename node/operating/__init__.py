"""What a node does for those whom its owner named as operators."""
