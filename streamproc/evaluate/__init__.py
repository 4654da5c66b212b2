"""How right a model is: questions with known answers, asked through the real processor."""
