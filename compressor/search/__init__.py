"""Answers what a schedule asks: measured on a model, predicted from estimates, or made up in a dry run."""
