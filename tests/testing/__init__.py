"""What the tests share: matrices, layouts, tolerances and the state of the machine."""
