"""Training loops and the data of the demonstration."""
