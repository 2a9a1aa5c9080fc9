"""The format of a run directory: files, logs, columns, results, configuration and locks."""
