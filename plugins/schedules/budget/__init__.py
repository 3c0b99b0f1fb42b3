"""The schedule `budget`: the plan of least estimated cost under a budget."""
