"""Built-in plugins; found by entry points, like any other."""
