"""Answers a schedule's requests: measured on a model, predicted from estimates, or made up in a dry run."""
