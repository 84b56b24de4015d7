"""How the bundled data and the tiny model were made."""
