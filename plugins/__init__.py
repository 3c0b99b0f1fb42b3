"""Built-in plugins. They are found by entry points, like all other plugins."""
