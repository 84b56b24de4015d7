"""What a model says and expects: completions, grades, losses, general ability."""
