"""From options to estimated costs: gradients, the margin law, and a cache of estimates."""
