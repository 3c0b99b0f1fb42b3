"""Files on disk: records of runs and forecasts, plan files, atomic writes."""
