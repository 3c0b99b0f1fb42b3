"""The schedule `budget`: the plan of least estimated cost within a budget."""
