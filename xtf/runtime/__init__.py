"""What every stage stands on: models, files, folders, loggers, progress, memory."""
